/**
 * Principal components of rows that arrive in batches, and clusters of the rows in them: three hidden clouds in 64
 * dimensions are found again from 2 components.
 *
 *   node dist/examples/linalg/main.js [--ci]
 */
import { IncrementalSvd, kMeans, matmul, program, randomOrthogonal, tensor, truncatedSvd } from '../../lib/index.js'

const count = process.argv.includes('--ci') ? 300 : 30_000
const width = 64

/** Row i lies around the (i mod 3)-th of three orthogonal directions. */
const directions = (await (await randomOrthogonal([3, width], { seed: 1 })).data()) as Float32Array
const rowsOf = (start: number, rows: number) =>
  tensor(
    Float32Array.from({ length: rows * width }, (_, at) => {
      const i = start + Math.floor(at / width)
      return 4 * directions[(i % 3) * width + (at % width)]! + Math.sin(i * 7.1 + (at % width) * 3.3) / 4
    }),
    [rows, width],
  )

using components = new IncrementalSvd({ rank: 2 })
for (let start = 0; start < count; start += count / 3) {
  using rows = rowsOf(start, count / 3)
  await components.update(rows)
}
const share = (await (await components.explainedVarianceRatio()).data()) as Float32Array
console.log(`two components hold ${(100 * share.reduce((a, b) => a + b, 0)).toFixed(0)} % of the variance`)

using all = rowsOf(0, count)
const project = program((rows, vh) => matmul(rows!, vh!, { transposeB: true }))
const { labels, inertia } = await kMeans(await project(all, components.vh), { clusters: 3, seed: 1 })
const found = (await labels.data()) as Int32Array
const right = found.every((label, i) => label === found[i % 3])
console.log(`k-means ${right ? 'found' : 'missed'} the three clouds (inertia ${inertia.toFixed(1)})`)

const { s, error } = await truncatedSvd(all, { rank: 3 })
const values = (await s.data()) as Float32Array
console.log(
  `leading singular values ${[...values].map((x) => x.toFixed(1)).join(', ')}; what is left ≤ ${error.item().toFixed(1)}`,
)
if (!right) process.exitCode = 1
