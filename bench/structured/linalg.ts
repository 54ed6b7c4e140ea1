/** Factorisations. */
import { computed } from '../../lib/graph/computed.js'
import { randomNormal } from '../../lib/graph/ops/random.js'
import { eigh, qr, svd } from '../../lib/linalg/factorise.js'
import { svdLowRank } from '../../lib/linalg/low_rank.js'
import type { Tensor } from '../../lib/tensor/tensor.js'
import { tensor } from '../../lib/tensor/tensor.js'
import type { StructuredCase } from './cases.js'

type Run = (a: Tensor) => Promise<object>

const product = (shape: readonly number[]): number => shape.reduce((x, y) => x * y, 1)

/** `perMatrix`: operations; `written`: elements beside those of a. */
function matrixCase(name: string, shape: readonly number[], perMatrix: number, run: Run): StructuredCase {
  return {
    name,
    flops: product(shape.slice(0, -2)) * perMatrix,
    bytes: 4 * 3 * product(shape),
    prepare: async () => {
      using seed = tensor(Uint32Array.of(1, 0))
      const a = await computed((words) => randomNormal(words!, 0, shape), [seed])
      return async () => {
        for (const factor of Object.values(await run(a)) as Tensor[]) factor.dispose()
      }
    },
  }
}

// Golub and Van Loan: thin singular vectors of a square matrix take about 22 n³ by bidiagonalisation.
const svdFlops = (n: number): number => 22 * n ** 3
// By reflections, q included.
const qrFlops = (m: number, n: number): number => 4 * m * n ** 2 - (4 / 3) * n ** 3
// Reduction and product of its reflections; the QR iterations at their least, one sweep per eigenvalue.
const eighFlops = (n: number): number => (4 / 3 + 4 / 3 + 3) * n ** 3
const sketch = 4 * 4096 * 4096 * 128

/** Cases of `structured`. */
export const cases: readonly StructuredCase[] = [
  matrixCase('svd-1024x32x32', [1024, 32, 32], svdFlops(32), (a) => svd(a)),
  matrixCase('svd-256x64x64', [256, 64, 64], svdFlops(64), (a) => svd(a)),
  matrixCase('svd-4096x8x8', [4096, 8, 8], svdFlops(8), (a) => svd(a)),
  matrixCase('svd-64x128x128', [64, 128, 128], svdFlops(128), (a) => svd(a)),
  matrixCase('qr-1024x32x32', [1024, 32, 32], qrFlops(32, 32), (a) => qr(a)),
  matrixCase('qr-64x128x128', [64, 128, 128], qrFlops(128, 128), (a) => qr(a)),
  matrixCase('qr-4096x128', [4096, 128], qrFlops(4096, 128), (a) => qr(a)),
  matrixCase('eigh-1024x32x32', [1024, 32, 32], eighFlops(32), (a) => eigh(a)),
  matrixCase('eigh-64x128x128', [64, 128, 128], eighFlops(128), (a) => eigh(a)),
  matrixCase('svd-2048x2048', [2048, 2048], svdFlops(2048), (a) => svd(a)),
  matrixCase('svd-lowrank-4096x4096-r128', [4096, 4096], 3 * sketch, (a) => svdLowRank(a, { rank: 128 })),
]
