// Sliding windows, capped scores and their gradients against the same attention written out with a mask.
import test from 'ava'
import { gradients } from '../lib/graph/grad.js'
import { type AttentionOptions, attention, attentionCached } from '../lib/graph/ops/attention.js'
import { add, mul, tanh } from '../lib/graph/ops/elementwise.js'
import { transpose } from '../lib/graph/ops/index.js'
import { matmul } from '../lib/graph/ops/matmul.js'
import { reshape, sum } from '../lib/graph/ops/reduce.js'
import { softmax } from '../lib/graph/ops/softmax.js'
import { program } from '../lib/graph/program.js'
import { read, type Sym } from '../lib/graph/sym.js'
import { tensor } from '../lib/tensor/tensor.js'
import { relativeError } from './golden.js'
import { randomNumbers } from './random_numbers.js'

/** b 2, t 150 (three blocks of keys), 3 heads of 20 elements. */
const shape = [2, 150, 3, 20]
const size = shape.reduce((a, b) => a * b)
const random = (seed: number) =>
  tensor(
    randomNumbers(size, seed).map((x) => 3 * x),
    shape,
  )

/** Attention with every score in memory. */
function writtenOut(q: Sym, k: Sym, v: Sym, { softcap, window = 1e9 }: AttentionOptions): Sym {
  const heads = (x: Sym): Sym => reshape(transpose(x, [0, 2, 1, 3]), [6, 150, 20])
  const scores = matmul(heads(q), heads(k), { transposeB: true, alpha: 0.25 })
  const bent = softcap ? mul(softcap, tanh(mul(scores, 1 / softcap))) : scores
  const hidden = Float32Array.from({ length: 150 * 150 }, (_, at) => {
    const [i, j] = [Math.floor(at / 150), at % 150]
    return j <= i && i - j < window ? 0 : -1e9
  })
  const mixed = matmul(softmax(add(bent, read(tensor(hidden, [150, 150])))), heads(v))
  return transpose(reshape(mixed, [2, 3, 150, 20]), [0, 2, 1, 3])
}

for (const options of [{ window: 2 }, { window: 7 }, { window: 64 }, { window: 100, softcap: 2 }, { softcap: 0.5 }])
  test(`${JSON.stringify(options)}: output and gradients are those of the attention written out`, async (t) => {
    const both = program(async (q, k, v, g) => {
      const fused = attention(q!, k!, v!, { causal: true, scale: 0.25, ...options })
      const plain = writtenOut(q!, k!, v!, options)
      const slopes = (y: Sym): Promise<Sym[]> => gradients(sum(mul(y, g!)), [q!, k!, v!])
      return { found: [fused, ...(await slopes(fused))], expected: [plain, ...(await slopes(plain))] }
    })
    const { found, expected } = await both(random(1), random(2), random(3), random(4))
    for (const [i, each] of found.entries()) {
      const error = await relativeError(each, expected[i]!)
      t.true(error < 1e-5, `${['output', 'dq', 'dk', 'dv'][i]}: ${error}`)
    }
  })

test('the cached form sees the same window from any position', async (t) => {
  const options = { scale: 0.25, window: 70, softcap: 2 }
  const rows = (x: Float32Array): Float32Array =>
    Float32Array.of(...x.subarray(140 * 60, 150 * 60), ...x.subarray(290 * 60, 300 * 60))
  const q = random(1)
  const last = tensor(rows((await q.data()) as Float32Array), [2, 10, 3, 20])
  const whole = await program((...x) => attention(x[0]!, x[1]!, x[2]!, { causal: true, ...options }))(
    q,
    random(2),
    random(3),
  )
  const cached = await program((x, k, v, position) => attentionCached(x!, k!, v!, position!, options))(
    last,
    random(2),
    random(3),
    tensor(Int32Array.of(140, 140)),
  )
  const expected = tensor(rows((await whole.data()) as Float32Array), [2, 10, 3, 20])
  t.true((await relativeError(cached, expected)) < 1e-6)
})

test('a window without a causal mask is refused', async (t) => {
  const run = program((x) => attention(x!, x!, x!, { window: 3 }))
  await t.throwsAsync(run(random(1)), { code: 'ERR_HEDDLE_SHAPE', message: /a causal mask with a window/ })
})
