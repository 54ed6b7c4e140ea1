/**
 * Compresses a colour image [height, width, 3] with HOOI at several ranks, and writes each as a picture (PPM). The image is
 * drawn here: a sky with a sun over hills.
 *
 *   node dist/examples/tucker-image/main.js [folder] [--ci]
 */
import { writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { disposeTucker, hooi, program, tensor, tuckerParameterCount, tuckerToDense } from '../../lib/index.js'

const isShort = process.argv.includes('--ci')
const folder = process.argv.slice(2).find((argument) => !argument.startsWith('--'))
const size = isShort ? 48 : 192

/** The colour of a place, x and y from 0 to 1. */
function colour(x: number, y: number): readonly [number, number, number] {
  const hill = 0.65 + 0.1 * Math.sin(7 * x) + 0.04 * Math.sin(23 * x + 1)
  if (y > hill) return [0.15 + 0.2 * y, 0.35 + 0.25 * Math.cos(5 * x) ** 2 * y, 0.12]
  const sun = Math.exp(-60 * ((x - 0.7) ** 2 + (y - 0.3) ** 2))
  return [
    Math.min(1, 0.5 * y + 0.35 + sun),
    Math.min(1, 0.45 + 0.3 * y + 0.8 * sun),
    Math.max(0, 0.85 - 0.3 * y - 0.2 * sun),
  ]
}

const pixels = Float32Array.from({ length: size * size * 3 }, (_, i) => {
  const pixel = Math.floor(i / 3)
  return colour((pixel % size) / size, Math.floor(pixel / size) / size)[i % 3]!
})
using image = tensor(pixels, [size, size, 3])
if (folder) await writePicture(join(folder, 'original.ppm'), pixels)

let last = Number.POSITIVE_INFINITY
for (const rank of isShort ? [4, 8, 16] : [8, 16, 32, 64]) {
  const found = await hooi(image, { ranks: [rank, rank, 3], maxIterations: 20 })
  const count = tuckerParameterCount(found)
  console.log(
    `rank ${String(rank).padStart(2)}: ${String(count).padStart(6)} of ${image.size} numbers ` +
      `(${(image.size / count).toFixed(1)}× smaller), relative error ${found.relativeError.toFixed(4)}, ` +
      `${found.fit.length - 1} sweeps`,
  )
  if (found.relativeError > last) throw new Error('a higher rank made the image worse')
  last = found.relativeError
  if (folder) {
    const rebuilt = program(() => tuckerToDense(found))
    using dense = await rebuilt()
    await writePicture(join(folder, `rank-${rank}.ppm`), (await dense.data()) as Float32Array)
    rebuilt.dispose()
  }
  disposeTucker(found)
}

async function writePicture(path: string, values: Float32Array): Promise<void> {
  const bytes = Uint8Array.from(values, (value) => Math.round(255 * Math.min(1, Math.max(0, value))))
  await writeFile(path, Buffer.concat([Buffer.from(`P6 ${size} ${size} 255\n`), bytes]))
}
