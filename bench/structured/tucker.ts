/** Tucker: a convolution (512, 512, 3, 3) with a core of 64 on 4 images of 28 × 28, and HOSVD of a kernel. */
import { computed } from '../../lib/graph/computed.js'
import { vjp } from '../../lib/graph/grad.js'
import { mul } from '../../lib/graph/ops/elementwise.js'
import { randomNormal } from '../../lib/graph/ops/random.js'
import { type TuckerKernel, tuckerConv2d } from '../../lib/graph/ops/tucker.js'
import { program } from '../../lib/graph/program.js'
import { read, type Sym } from '../../lib/graph/sym.js'
import { disposeTucker, hosvd } from '../../lib/structured/tucker.js'
import { type Tensor, tensor } from '../../lib/tensor/tensor.js'
import type { StructuredCase } from './cases.js'

const [images, channels, rank, window, side] = [4, 512, 64, 3, 28]
const pixels = images * side * side
const convFlops = 2 * pixels * (2 * channels * rank + rank * rank * window * window)
const imageShape = [images, channels, side, side]

async function normal(shape: readonly number[], stream: number): Promise<Tensor> {
  using seed = tensor(Uint32Array.of(1, 0))
  return await computed(() => mul(randomNormal(read(seed), stream, shape), 0.05))
}

type Trace = (x: Sym, kernel: TuckerKernel, g: Sym) => readonly Sym[] | Promise<readonly Sym[]>

async function prepare(trace: Trace): Promise<() => Promise<void>> {
  const core = await normal([rank, rank, window, window], 0)
  const [out, input] = [await normal([channels, rank], 1), await normal([channels, rank], 2)]
  const [x, g] = [await normal(imageShape, 3), await normal(imageShape, 4)]
  const step = program((image, gradient) =>
    trace(image!, { core: read(core), out: read(out), in: read(input) }, gradient!),
  )
  return async () => {
    for (const result of await step(x, g)) result.dispose()
  }
}

/** Cases of `structured`. */
export const cases: readonly StructuredCase[] = [
  {
    name: 'tucker-conv-512x512x3x3-r64',
    flops: convFlops,
    bytes: 4 * 2 * pixels * channels,
    prepare: () => prepare((x, kernel) => [tuckerConv2d(x, kernel, { padding: 1 })]),
  },
  {
    name: 'tucker-conv-512x512x3x3-r64-step',
    flops: 3 * convFlops,
    bytes: 4 * 6 * pixels * channels,
    prepare: () =>
      prepare((x, kernel, g) => {
        const y = tuckerConv2d(x, kernel, { padding: 1 })
        return vjp([y], [g], [x, kernel.core, kernel.out, kernel.in])
      }),
  },
  {
    name: 'hosvd-128x128x3x3-r32',
    // The first unfolding's singular vectors, m² n each way, are most of it.
    flops: 6 * 128 * 128 * 1152,
    bytes: 4 * 2 * 128 * 128 * 9,
    prepare: async () => {
      const x = await normal([128, 128, 3, 3], 0)
      return async () => disposeTucker(await hosvd(x, { ranks: [32, 32, undefined, undefined] }))
    },
  },
]
