// Derivatives of any order: grad of grad, Hessian-vector and Jacobian-vector products, f64, and what composite
// operators decompose into.
import test from 'ava'
import { grad, gradients, hvp, jvp, vjp } from '../lib/graph/grad.js'
import { operators } from '../lib/graph/operator.js'
import { attention, attentionCached } from '../lib/graph/ops/attention.js'
import { blockDiagonal } from '../lib/graph/ops/block_diagonal.js'
import { conv2d } from '../lib/graph/ops/conv.js'
import { add, cast, cos, div, exp, mul, relu, select, sin, square } from '../lib/graph/ops/elementwise.js'
import { groupedLowRank } from '../lib/graph/ops/grouped_low_rank.js'
import { kroneckerMatmul } from '../lib/graph/ops/kronecker.js'
import { linearCrossEntropy } from '../lib/graph/ops/loss.js'
import { matmul } from '../lib/graph/ops/matmul.js'
import { monarch } from '../lib/graph/ops/monarch.js'
import { layerNorm, rmsNorm } from '../lib/graph/ops/norm.js'
import { pagedAttention } from '../lib/graph/ops/paged_attention.js'
import { reshape, sum } from '../lib/graph/ops/reduce.js'
import { rope, ropeTable } from '../lib/graph/ops/rope.js'
import { logSumExp, softmax } from '../lib/graph/ops/softmax.js'
import { program } from '../lib/graph/program.js'
import { assign, read, type Sym } from '../lib/graph/sym.js'
import type { SiteHook } from '../lib/nn/site.js'
import { causalLmLoss } from '../lib/objectives/causal_lm_loss.js'
import { type Tensor, tensor, zeros } from '../lib/tensor/tensor.js'
import { goldenLlama } from './golden.js'
import { randomNumbers, randomTensor } from './random_numbers.js'

const numbers = async (x: Tensor): Promise<number[]> => [...((await x.data()) as Float64Array)]
const f64 = (values: readonly number[], shape?: readonly number[]): Tensor => tensor(Float64Array.from(values), shape)
test('the fourth derivative of sin is sin', async (t) => {
  const derivative = program(async (x) => {
    let y = sin(x!)
    for (let order = 0; order < 4; order += 1) [y] = (await gradients(sum(y), [x!])) as [Sym]
    return y
  })
  const x = [0, 0.5, -2]
  const got = await numbers(await derivative(f64(x)))
  for (const [i, value] of got.entries()) t.true(Math.abs(value - Math.sin(x[i]!)) < 1e-14)
})

test('the Hessian of xᵀ A x / 2 + sin times a vector', async (t) => {
  const x = f64([0.3, -1, 2])
  const a = f64([2, 1, 0, 1, 3, -1, 0, -1, 4], [3, 3])
  const quadratic = (): Sym => {
    const column = reshape(read(x), [3, 1])
    return add(mul(0.5, sum(mul(column, matmul(read(a), column)))), sum(sin(read(x))))
  }
  const [product] = await program(hvp(quadratic, [x], [f64([1, 2, 3])]))()
  // A v − sin(x) v
  const expected = [4 - Math.sin(0.3), 4 - 2 * Math.sin(-1), 10 - 3 * Math.sin(2)]
  for (const [i, value] of (await numbers(product!)).entries()) t.true(Math.abs(value - expected[i]!) < 1e-14)
})

test('a gradient penalty: grad of a function that contains grad', async (t) => {
  const w = f64([0.5, -1])
  const penalty = async (): Promise<Sym> => {
    const [g] = await grad(() => sum(mul(square(read(w)), read(w))), [w])()
    return sum(square(g!))
  }
  const [result] = await program(grad(penalty, [w]))()
  // (3 w²)² → 36 w³
  t.deepEqual(await numbers(result!), [36 * 0.125, -36])
})

test('jvp gives the value and the directional derivative of a function of any shape', async (t) => {
  const x = f64([0.2, 0.7])
  const fn = (): Sym => reshape(mul(exp(read(x)), cos(read(x))), [1, 2])
  const [value, tangent] = await program(jvp(fn, [x], [f64([1, -2])]))()
  t.deepEqual(value.shape, [1, 2])
  const expected = [0.2, 0.7].map((v, i) => Math.exp(v) * (Math.cos(v) - Math.sin(v)) * [1, -2][i]!)
  for (const [i, got] of (await numbers(tangent)).entries()) t.true(Math.abs(got - expected[i]!) < 1e-14)
})

test('vjp sums over several outputs and refuses cotangents of another shape', async (t) => {
  const pull = program(async (x) => vjp([square(x!), mul(3, x!)], [x!, x!], [x!]))
  t.deepEqual(await numbers((await pull(f64([1, 2])))[0]!), [5, 14])
  const wrong = program(async (x) => vjp([square(x!)], [sum(x!)], [x!]))
  await t.throwsAsync(wrong(f64([1, 2])), { code: 'ERR_HEDDLE_SHAPE', message: /cotangent 0 f64 \[2\]/ })
})

test('one value in several places of one operator gets the sum of their cotangents', async (t) => {
  const twice = program(async (x) => {
    const [first] = await gradients(sum(square(mul(x!, x!))), [x!])
    return gradients(sum(first!), [x!])
  })
  t.deepEqual(await numbers((await twice(f64([1, -2])))[0]!), [12, 48])
})

test('kinks: second derivatives of relu networks are those of their linear pieces', async (t) => {
  const second = program(async (x) => {
    const [first] = await gradients(sum(square(relu(x!))), [x!])
    return gradients(sum(first!), [x!])
  })
  t.deepEqual(await numbers((await second(f64([-1, 2])))[0]!), [0, 2])
})

test('f64 stays f64, constants follow, and mixing it with f32 is refused by name', async (t) => {
  const third = await program((x) => div(x!, 3))(f64([1]))
  t.is(third.dtype, 'f64')
  t.is(third.item(), 1 / 3)
  const chosen = await program((x, c) => select(cast(c!, 'f32'), x!, 0))(f64([1, 2]), tensor(Int32Array.of(0, 1)))
  t.deepEqual(await numbers(chosen), [0, 2])
  await t.throwsAsync(program((x, y) => mul(x!, y!))(f64([1]), tensor([1])), {
    code: 'ERR_HEDDLE_DTYPE',
    message: /mul.*f64 \[1\] and f32 \[1\]/s,
  })
  await t.throwsAsync(program((x) => matmul(x!, x!, { precision: 'bf16' }))(f64([1], [1, 1])), {
    code: 'ERR_HEDDLE_DTYPE',
  })
})

test('f64 products agree with sums written out, whatever is transposed', async (t) => {
  const [m, n, k] = [70, 67, 300]
  const a = Float64Array.from(randomNumbers(m * k, 1))
  const b = Float64Array.from(randomNumbers(k * n, 2))
  const turned = (x: Float64Array, rows: number, columns: number) =>
    Float64Array.from(x, (_, at) => x[(at % rows) * columns + Math.floor(at / rows)]!)
  const expected = Array.from({ length: m * n }, (_, at) => {
    let total = 0
    for (let i = 0; i < k; i += 1) total += a[Math.floor(at / n) * k + i]! * b[i * n + (at % n)]!
    return total / 2
  })
  for (const transposeA of [false, true])
    for (const transposeB of [false, true]) {
      const left = transposeA ? tensor(turned(a, m, k), [k, m]) : tensor(a, [m, k])
      const right = transposeB ? tensor(turned(b, k, n), [n, k]) : tensor(b, [k, n])
      const product = await program((x, y) => matmul(x!, y!, { transposeA, transposeB, alpha: 0.5 }))(left, right)
      const error = Math.max(...(await numbers(product)).map((value, at) => Math.abs(value - expected[at]!)))
      t.true(error < 1e-12, `${error}`)
    }
})

test("Hessian-vector products of a language model's loss are differences of its gradients", async (t) => {
  const model = await goldenLlama('tiny-llama')
  const [ids, targets, segments] = [Int32Array.of(5, 9, 2, 7), Int32Array.of(9, 2, 7, -100), new Int32Array(4)].map(
    (values) => tensor(values, [1, 4]),
  )
  const delta = zeros([64, 64])
  const path = 'model.layers.0.self_attn.q_proj'
  t.deepEqual(model.sites.get(path)!.weight.shape, delta.shape)
  const hook: SiteHook = {
    targets: (site) => site.path === path,
    apply: (_, x, base) => add(base(), matmul(x, read(delta), { transposeB: true })),
  }
  const forward = { precision: 'f32', training: true, hook } as const
  const loss = () =>
    causalLmLoss(model, { ids: read(ids!), targets: read(targets!), segments: read(segments!) }, forward)
  const direction = randomTensor([64, 64], 3)
  const [product] = await program(hvp(loss, [delta], [direction]))()
  const move = program((step) => {
    assign(delta, mul(step!, read(direction)))
    return []
  })
  const gradient = program(grad(loss, [delta]))
  const at = async (step: number) => {
    await move(tensor([step], []))
    return numbers((await gradient())[0]!)
  }
  const h = 2e-3
  const [ahead, behind] = [await at(h), await at(-h)]
  const expected = ahead.map((value, i) => (value - behind[i]!) / (2 * h))
  const norm = (values: readonly number[]) => Math.hypot(...values)
  const got = await numbers(product!)
  const error = norm(got.map((value, i) => value - expected[i]!)) / norm(expected)
  t.true(error < 2e-3, `relative error ${error}`)
})

/** Calls of composite operators, over a grid of shapes: floating inputs, then what is made of them. */
interface Call {
  readonly shapes: readonly (readonly number[])[]
  readonly fn: (...inputs: Sym[]) => Sym
  /** The kernel has no gradient to compare. */
  readonly forwardOnly?: boolean
}

const ints = (values: readonly number[], shape: readonly number[] = [values.length]): Sym =>
  read(tensor(Int32Array.from(values), shape))
const sequence = (n: number, of: (i: number) => number): number[] => Array.from({ length: n }, (_, i) => of(i))
const rowsAndWidths = [
  [2, 3],
  [3, 17],
  [33, 128],
  [5, 1000],
] as const
const heads = [
  { b: 1, t: 1, h: 1, kv: 1, d: 4 },
  { b: 2, t: 17, h: 4, kv: 2, d: 16 },
  { b: 1, t: 70, h: 3, kv: 1, d: 32 },
  { b: 1, t: 130, h: 2, kv: 2, d: 64 },
] as const

const calls: Readonly<Record<string, readonly Call[]>> = {
  block_diagonal: [
    {
      shapes: [
        [130, 96],
        [8, 10, 12],
      ],
      fn: (x, w) => blockDiagonal(x!, w!),
    },
    {
      shapes: [
        [3, 5, 20],
        [4, 7, 5],
      ],
      fn: (x, w) => blockDiagonal(x!, w!),
    },
  ],
  monarch: [
    {
      shapes: [
        [130, 96],
        [8, 12, 12],
        [8, 10, 12],
      ],
      fn: (x, first, second) => monarch(x!, first!, second!),
    },
    {
      shapes: [
        [2, 3, 10],
        [4, 2, 3],
        [4, 2, 2],
      ],
      fn: (x, first, second) => monarch(x!, first!, second!, { out: 7 }),
    },
  ],
  kronecker: [
    {
      shapes: [
        [67, 96],
        [1, 5, 8],
        [1, 9, 12],
      ],
      fn: (x, ...factors) => kroneckerMatmul(x!, factors as Sym[]),
    },
    {
      shapes: [
        [3, 12],
        [2, 2, 4],
        [2, 5, 3],
      ],
      fn: (x, ...factors) => kroneckerMatmul(x!, factors as Sym[]),
    },
  ],
  conv2d: [
    {
      shapes: [[3, 19, 9, 8], [34, 19, 3, 3], [34]],
      fn: (x, w, bias) => conv2d(x!, w!, { bias, stride: [2, 1], padding: 1 }),
    },
    {
      shapes: [
        [2, 32, 7, 7],
        [32, 1, 3, 3],
      ],
      fn: (x, w) => conv2d(x!, w!, { groups: 32 }),
    },
    {
      shapes: [
        [1, 8, 6, 6],
        [16, 4, 3, 2],
      ],
      fn: (x, w) => conv2d(x!, w!, { groups: 2, dilation: 2 }),
    },
    {
      shapes: [
        [20, 3, 12, 12],
        [8, 3, 1, 1],
      ],
      fn: (x, w) => conv2d(x!, w!),
    },
  ],
  rms_norm: rowsAndWidths.map(([n, d]) => ({ shapes: [[n, d], [d]], fn: (x, w) => rmsNorm(x!, w!, 1e-5) })),
  layer_norm: rowsAndWidths.slice(1).flatMap(([n, d]): Call[] => [
    { shapes: [[n, d], [d], [d]], fn: (x, w, b) => layerNorm(x!, w!, b!) },
    { shapes: [[n, d], [d]], fn: (x, b) => layerNorm(x!, undefined, b!) },
  ]),
  softmax: rowsAndWidths.map(([n, d]) => ({ shapes: [[n, d]], fn: (x) => softmax(x!) })),
  log_sum_exp: rowsAndWidths.map(([n, d]) => ({ shapes: [[n, d]], fn: (x) => logSumExp(x!) })),
  rope: heads.map(({ b, t, h, d }) => ({
    shapes: [[b, t, h, d]],
    fn: (x) =>
      rope(
        x!,
        ropeTable(
          ints(
            sequence(t, (i) => i),
            [1, t],
          ),
          sequence(d / 2, (i) => 0.7 ** i),
        ),
      ),
  })),
  attention: heads.flatMap(({ b, t, h, kv, d }) => {
    const shapes = [
      [b, t, h, d],
      [b, t, kv, d],
      [b, t, kv, d],
    ]
    const segments = () =>
      ints(
        sequence(b * t, (i) => Math.floor(((i % t) * 3) / t) - 1),
        [b, t],
      )
    return [
      { shapes, fn: (q: Sym, k: Sym, v: Sym) => attention(q, k, v) },
      { shapes, fn: (q: Sym, k: Sym, v: Sym) => attention(q, k, v, { causal: true, scale: 0.3 }) },
      { shapes, fn: (q: Sym, k: Sym, v: Sym) => attention(q, k, v, { causal: true, window: 5, softcap: 0.8 }) },
      { shapes, fn: (q: Sym, k: Sym, v: Sym) => attention(q, k, v, { causal: true, segments: segments() }) },
    ] as Call[]
  }),
  attention_cached: heads.map(({ b, t, h, kv, d }) => ({
    shapes: [
      [b, t, h, d],
      [b, t + 9, kv, d],
      [b, t + 9, kv, d],
    ],
    fn: (q, k, v) => attentionCached(q!, k!, v!, ints(sequence(b, (i) => 9 - 4 * i))),
    forwardOnly: true,
  })),
  paged_attention: [{}, { window: 5, softcap: 0.8 }].map((options) => ({
    shapes: [
      [9, 4, 8],
      [5, 4, 2, 8],
      [5, 4, 2, 8],
    ],
    // A prompt, a token, nothing, a token, padding.
    fn: (q, k, v) =>
      pagedAttention(
        q!,
        k!,
        v!,
        {
          tables: ints([4, 1, 0, 2, -1, 3, -1, -1, -1, 0, 1, 4], [4, 3]),
          starts: ints([0, 6, 7, 7, 8]),
          positions: ints([2, 3, 5, 11]),
        },
        options,
      ),
    forwardOnly: true,
  })),
  grouped_low_rank: [
    {
      shapes: [[4, 20], [4, 33], [9, 33], [9, 20], [4]],
      fn: (y, x, a, b, scales) =>
        groupedLowRank(y!, x!, a!, b!, { ranges: ints([3, 4, 3, 4, 0, 0, 8, 1], [4, 2]), scales: scales! }),
      forwardOnly: true,
    },
  ],
  linear_cross_entropy: (
    [
      [1, 4, 3],
      [19, 32, 300],
      [130, 16, 1500],
    ] as const
  ).map(([n, d, v]) => ({
    shapes: [
      [n, d],
      [v, d],
    ],
    fn: (x, w) => linearCrossEntropy(x!, w!, ints(sequence(n, (i) => (i % 5 === 3 ? -100 : (i * 37) % v)))),
  })),
}

for (const [name, { decompose, vjp: rule }] of operators) {
  // An operator that is another one's gradient is reached through that one.
  if (!decompose || rule === 'decomposition' || name.endsWith('_vjp')) continue
  test(`${name}: the kernel and its gradient are what the operator decomposes into`, async (t) => {
    t.truthy(calls[name], `add ${name} to the calls of this file`)
    for (const { shapes, fn, forwardOnly } of calls[name] ?? []) {
      const both = program(async (...inputs) => {
        const y = fn(...inputs)
        const g = cast(read(randomTensor(y.shape, 99)), y.dtype as 'f32')
        return forwardOnly ? [y] : [y, ...(await vjp([y], [g], inputs))]
      })
      const inputs = shapes.map((shape, i) => randomTensor(shape, 7 + i))
      const wide = await Promise.all(inputs.map(async (x) => f64([...((await x.data()) as Float32Array)], x.shape)))
      const [kernel, meaning] = [await both(...inputs), await both(...wide)]
      for (const [i, result] of kernel.entries()) {
        const expected = await numbers(meaning[i]!)
        const scale = Math.max(1e-3, ...expected.map(Math.abs))
        const error = Math.max(...(await numbers(result)).map((value, at) => Math.abs(value - expected[at]!))) / scale
        t.true(error < 2e-5, `${JSON.stringify(shapes)}: result ${i} is off by ${error.toExponential(1)}`)
      }
    }
  })
}

test('a sum of thousands of scalars is more than one instruction takes, and is split', async (t) => {
  const scalars = Array.from({ length: 2000 }, (_, i) => tensor([i], []))
  const step = program(() => scalars.map((each) => square(read(each))).reduce((total, each) => add(total, each)))
  using result = await step()
  t.true(Math.abs(result.item() / ((1999 * 2000 * 3999) / 6) - 1) < 1e-5)
  step.dispose()
})
