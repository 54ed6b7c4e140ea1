// Loads the CUDA addon. On a machine without a GPU it must say that the driver or the device is missing, and nothing else.
import { addon } from '../dist/lib/native.js'

try {
  const { name, operators } = addon.cudaInfo()
  console.log(`   ${name}: ${operators.length} operators`)
} catch (error) {
  if (error.code !== 'ERR_HEDDLE_DEVICE' || error.place !== 'device cuda') throw error
  console.log(`   ${error.message}`)
}
