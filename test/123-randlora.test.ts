// RandLoRA: PEFT's random bases and pairing, full rank, and a step that keeps neither P nor the change of the weight.
import test from 'ava'
import { Adapter } from '../lib/adapters/adapter.js'
import { type RandLoraOptions, randlora } from '../lib/adapters/methods/randlora.js'
import { gradients } from '../lib/graph/grad.js'
import { add, mul } from '../lib/graph/ops/elementwise.js'
import { matmul } from '../lib/graph/ops/matmul.js'
import { reshape, sum } from '../lib/graph/ops/reduce.js'
import { program } from '../lib/graph/program.js'
import { read, type Sym } from '../lib/graph/sym.js'
import { svdvals } from '../lib/linalg/factorise.js'
import { linear } from '../lib/nn/site.js'
import { tensor } from '../lib/tensor/tensor.js'
import { goldenLlama, goldenTensors, relativeError } from './golden.js'
import { randomNumbers } from './random_numbers.js'
import { disturb, mergedWeight, numbers, oneSite, outputOf, setTensors } from './support/one_site.js'
import { testGoldens } from './support/peft_method_goldens.js'

const zeroRows = (rows: number, columns: number) =>
  Array.from({ length: rows }, () => new Array<number>(columns).fill(0))
const count = (n: number) => Array.from({ length: n }, (_, i) => i + 1)

/** s = 2, N = 2 */
const options: RandLoraOptions = { r: 2, randlora_alpha: 4, target_modules: ['proj'] }
const hand = {
  randlora_A: [1, 0, 2, 0, 1, 1],
  randlora_B: count(20),
  randlora_lambda: [1, 0.5, -1, 2],
  randlora_gamma: [1, 2, 3, 4, 5, 6],
}
/** What PEFT's get_delta_weight says for a Linear(5, 3), [in, out] of the 5 × 3 weight. */
const change = [
  [10, 34, 58, 82, 106],
  [68, 132, 196, 260, 324],
  [114, 282, 450, 618, 786],
]

for (const transposed of [false, true]) {
  const stored = transposed ? ', stored [in, out]' : ''
  test(`the change of a tall weight is PEFT's, pairing and all${stored}`, async (t) => {
    const one = oneSite(transposed ? zeroRows(3, 5) : zeroRows(5, 3), { transposed })
    const adapter = await Adapter.attach(one.network, randlora(options))
    await setTensors(one, adapter, hand)
    t.deepEqual(
      await outputOf(
        one,
        [
          [1, 0, 0],
          [0, 1, 0],
          [0, 0, 1],
        ],
        adapter,
      ),
      change.flat(),
    )
    const columns = change[0]!.map((_, i) => change.map((row) => row[i]!))
    t.deepEqual(await mergedWeight(one, adapter), (transposed ? change : columns).flat())
  })

  test(`a wide weight has the transposed change${stored}`, async (t) => {
    const one = oneSite(transposed ? zeroRows(5, 3) : zeroRows(3, 5), { transposed })
    const adapter = await Adapter.attach(one.network, randlora(options))
    await setTensors(one, adapter, hand)
    t.deepEqual(await outputOf(one, [[1, 0, 0, 0, 1]], adapter), [116, 392, 900])
  })
}

for (const [r, bases] of [
  [8, 8],
  [12, 6],
] as const)
  test(`with constant γ the change has rank ${r}, with any other it is full, for ${bases} bases`, async (t) => {
    const one = oneSite(zeroRows(64, 64))
    const adapter = await Adapter.attach(one.network, randlora({ r, randlora_alpha: r, target_modules: ['proj'] }))
    const rank = async (): Promise<number> => {
      const weight = tensor(Float32Array.from(await mergedWeight(one, adapter)), [64, 64])
      const values = await numbers(await svdvals(weight))
      return values.filter((value) => value > 1e-5 * values[0]!).length
    }
    await setTensors(one, adapter, { randlora_lambda: [...randomNumbers(r * bases, 1)] })
    t.is(await rank(), r)
    await setTensors(one, adapter, { randlora_gamma: [...randomNumbers(bases * 64, 2)] })
    t.true((await rank()) >= 63)
  })

const deviation = (values: readonly number[]): number => {
  const mean = values.reduce((a, b) => a + b, 0) / values.length
  return Math.sqrt(values.reduce((a, b) => a + (b - mean) ** 2, 0) / (values.length - 1))
}

test('the bases have deviation 1; sparse ones are −c, 0 and c, two thirds of them 0', async (t) => {
  const { network } = oneSite(zeroRows(96, 96))
  for (const sparse of [false, true]) {
    const adapter = await Adapter.attach(network, randlora({ r: 8, sparse, target_modules: ['proj'] }))
    const b = await numbers(adapter.buffers().get('randlora_B')!)
    t.true(Math.abs(deviation(b) - 1) < 4e-3)
    t.is(new Set(b).size === 3, sparse)
    if (sparse) t.true(Math.abs(b.filter((value) => value === 0).length / b.length - 2 / 3) < 0.01)
  }
})

test("the bases drawn from a key are those in PEFT's file, bit for bit", async (t) => {
  const stored = await goldenTensors('peft-methods/randlora/adapter_model.safetensors')
  const targets = { r: 24, target_modules: ['q_proj', 'v_proj', 'down_proj'] }
  const adapter = await Adapter.attach(await goldenLlama('tiny-llama-untied'), randlora(targets))
  for (const name of ['randlora_A', 'randlora_B'])
    t.deepEqual(await numbers(adapter.buffers().get(name)!), await numbers(stored.get(`base_model.${name}`)!))
})

/** Rows of a step, width of its modules, and how many there are one behind the other. */
const [rows, width, depth] = [256, 96, 8]

/** A chain of modules with RandLoRA, and a step that gives the loss and all gradients. */
async function chained(forward: 'randlora' | 'naive', training: boolean) {
  const sites = Array.from({ length: depth }, (_, i) => {
    const values = randomNumbers(width * width, i + 1).map((value) => value / 4)
    const weight = tensor(Float32Array.from(values), [width, width])
    return { path: `model.layers.${i}.proj`, kind: 'linear' as const, weight }
  })
  const network = { ...oneSite([[1]]).network, sites: new Map(sites.map((site) => [site.path, site])) }
  const adapter = await Adapter.attach(network, randlora({ r: 8, randlora_alpha: 8, target_modules: ['proj'] }))
  await disturb(adapter, 0.02)
  const parameters = [...adapter.parameters().values()]
  const step = program(async (x) => {
    let y = x!
    for (const site of sites)
      y =
        forward === 'randlora'
          ? linear(site, y, { precision: 'f32', training, hook: adapter.hook })
          : add(matmul(y, read(site.weight), { transposeB: true }), naive(adapter, site.path, y))
    const loss = sum(mul(y, y))
    return [loss, ...(await gradients(loss, parameters.map(read)))]
  })
  return { step, x: tensor(Float32Array.from(randomNumbers(rows * width, 99)), [rows, width]) }
}

/** x Pᵀ Qᵀ as autodiff sees it: P, and x Pᵀ, are kept. */
function naive(adapter: Adapter, path: string, x: Sym): Sym {
  const own = (name: string): Sym => read(adapter.parameters().get(`${path}.randlora_${name}`)!)
  const [a, b] = [adapter.buffers().get('randlora_A')!, adapter.buffers().get('randlora_B')!]
  const bases = width / 8
  const p = matmul(
    reshape(mul(mul(reshape(own('lambda'), [8, bases, 1]), read(a)), own('gamma')), [width, width]),
    read(
      tensor(
        Float32Array.from({ length: width * width }, (_, i) => Number(i % (width + 1) === 0)),
        [width, width],
      ),
    ),
  )
  return matmul(matmul(x, p, { transposeB: true }), reshape(read(b), [width, width]), { transposeB: true })
}

test('one product with W + s M, and P and Q apart, give the same loss and gradients', async (t) => {
  const [dense, apart] = [await chained('randlora', true), await chained('randlora', false)]
  const [got, wanted] = [await dense.step(dense.x), await apart.step(apart.x)]
  for (const [i, each] of got.entries()) t.true((await relativeError(each, wanted[i]!)) < 1e-4, `result ${i}`)
})

test('a training step keeps neither P nor M nor x Pᵀ: only what goes into each module', async (t) => {
  const [own, kept] = [await chained('randlora', true), await chained('naive', true)]
  const [lean, naivePlan] = [await own.step.plan([own.x]), await kept.step.plan([kept.x])]
  const activations = 4 * rows * width
  const matrices = 4 * width * width
  // Inputs of all modules, what one of them needs while it is differentiated, and the gradients.
  t.true(lean.peakBytes < (depth + 2) * activations + 6 * matrices, `${lean.peakBytes}`)
  t.true(naivePlan.peakBytes > 1.4 * lean.peakBytes, `${naivePlan.peakBytes} against ${lean.peakBytes}`)
})

testGoldens(test, 'randlora')
