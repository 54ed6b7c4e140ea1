/**
 * Trains where files may not grow beyond a limit that its parent has set: `full_disk_child.js <model> <data> <output>`.
 * Prints the error as JSON.
 */
import { HeddleError } from '../../lib/errors.js'
import { loadModel } from '../../lib/model.js'
import { train } from '../../lib/train/train.js'

const [folder, data, outputFolder] = process.argv.slice(2) as [string, string, string]
const model = await loadModel(folder)
try {
  for await (const step of train(model, { data, outputFolder, maxSteps: 3, maxLength: 32, checkpointEvery: 1 }))
    console.error(`step ${step.index}`)
} catch (error) {
  const { code, place, expected, got } = error as HeddleError
  console.log(JSON.stringify({ code, place, expected, got, known: error instanceof HeddleError }))
}
await model.dispose()
