// LQ-LoRA: NormalFloat codes, the decomposition, bits under a budget, and files that hold the quantised weight.
import { stat } from 'node:fs/promises'
import test from 'ava'
import { Adapter } from '../lib/adapters/adapter.js'
import { lqLora } from '../lib/adapters/methods/lq_lora.js'
import type { LqLoraCandidate, LqLoraOptions } from '../lib/adapters/methods/lq_lora_config.js'
import { decompose, lowRank } from '../lib/adapters/methods/lq_lora_decomposition.js'
import { computed } from '../lib/graph/computed.js'
import { mul, square, sub } from '../lib/graph/ops/elementwise.js'
import { matmul } from '../lib/graph/ops/matmul.js'
import { sum } from '../lib/graph/ops/reduce.js'
import { read } from '../lib/graph/sym.js'
import { linear, type Site } from '../lib/nn/site.js'
import type { Calibration } from '../lib/observers/calibration.js'
import { allocateBits, type Choice } from '../lib/quant/allocate_bits.js'
import {
  bitsPerWeight,
  dequantised,
  type NormalFloatConfig,
  normalFloats,
  quantised,
} from '../lib/quant/normal_float.js'
import { type Tensor, tensor } from '../lib/tensor/tensor.js'
import { randomNumbers } from './random_numbers.js'
import { matrix, near, networkOf, numbers, oneSite, outputOf } from './support/one_site.js'
import { temporaryFolder } from './support/temporary_folder.js'

const configOf = (num_bits: 2 | 3 | 4 | 8, more: Partial<NormalFloatConfig> = {}): NormalFloatConfig => ({
  num_bits,
  num_bits_0: 8,
  num_bits_1: 'fp32',
  block_size_0: 16,
  block_size_1: 16,
  ...more,
})

/** 0.05 (sin 0.7 i j + 0.5 cos 0.3 i cos 0.2 j), i and j from 1 to 32. */
const waves = Array.from({ length: 32 }, (_, row) =>
  Array.from({ length: 32 }, (_, column) => {
    const [i, j] = [row + 1, column + 1]
    return 0.05 * (Math.sin(0.7 * i * j) + 0.5 * Math.cos(0.3 * i) * Math.cos(0.2 * j))
  }),
)

async function coded(a: Tensor, config: NormalFloatConfig): Promise<Record<string, number[]>> {
  const found = await computed(() => {
    const all = quantised(read(a), config)
    return { ...all, values: dequantised(all, config, a.shape) }
  })
  return Object.fromEntries(
    await Promise.all(Object.entries(found).map(async ([name, each]) => [name, await numbers(each)] as const)),
  )
}

const distance = (a: readonly number[], b: readonly number[]): number =>
  Math.hypot(...a.map((value, i) => value - b[i]!))

test('the numbers of 2, 3 and 4 bits are those of the paper, with 0 and ±1 among them', (t) => {
  const nf3 = [-1, -0.4786292, -0.2171418, 0, 0.1609302, 0.3379152, 0.562617, 1]
  const nf4 = [
    -1, -0.6961929, -0.525073, -0.3949175, -0.2844414, -0.1847734, -0.09105, 0, 0.0795803, 0.1609302, 0.2461123,
    0.3379152, 0.4407098, 0.562617, 0.7229567, 1,
  ]
  for (const [bits, expected] of [
    [2, [-1, 0, 0.3379152, 1]],
    [3, nf3],
    [4, nf4],
  ] as const)
    t.true(distance(normalFloats(bits), expected) < 2e-7)
  t.is(normalFloats(8).length, 256)
  t.is(normalFloats(8).filter((value) => value > 0).length, 128)
})

test('bits per weight: codes, scales and scales of scales', (t) => {
  const large = { block_size_0: 64, block_size_1: 256 }
  t.is(bitsPerWeight(configOf(4, large)), 4.126953125)
  t.is(bitsPerWeight(configOf(3, large)), 3.126953125)
  t.is(bitsPerWeight(configOf(2, { ...large, num_bits_0: 2, num_bits_1: 'bf16' })), 2.0322265625)
})

test('scales, codes and errors of the 32 × 32 waves', async (t) => {
  const a = matrix(waves)
  const errors: number[] = []
  for (const bits of [2, 3, 4, 8] as const) {
    const { offset, superScales, scales, codes, values } = await coded(a, configOf(bits))
    errors.push(distance(values!, waves.flat()))
    t.true(near(offset!, [0.01813169]))
    t.true(near(superScales!, [0.0546699, 0.0553562, 0.0555218, 0.0565588]))
    t.deepEqual(scales!.slice(0, 16), [255, 246, 240, 235, 194, 198, 176, 190, 152, 155, 145, 171, 202, 205, 234, 231])
    if (bits === 3) t.deepEqual(codes!.slice(0, 8), [6, 7, 7, 6, 3, 1, 1, 1])
    if (bits === 4) t.deepEqual(codes!.slice(0, 8), [14, 15, 15, 12, 6, 2, 1, 3])
  }
  t.true(near(errors, [0.448003, 0.195414, 0.102207, 0.006347], 1e-6))
})

test('a value half-way between two numbers gets the lower one, a scale half-way the even one', async (t) => {
  // One scale of 1: numbers of 2 bits are −1, 0, 0.3379152, 1.
  const middle = Math.fround((Math.fround(normalFloats(2)[2]!) + 1) / 2)
  const { codes } = await coded(
    tensor(Float32Array.of(1, -0.5, middle, 0.9), [4]),
    configOf(2, { block_size_0: 4, block_size_1: 1 }),
  )
  t.deepEqual(codes, [3, 0, 2, 3])
  // Scales of 2 bits between 0 and 6 stand 2 apart: 1 and 3 lie half-way, and go to 0 and to 4.
  const blocks = tensor(Float32Array.of(0, 1, 3, 6), [4])
  const { scales } = await coded(blocks, configOf(2, { num_bits_0: 2, block_size_0: 1, block_size_1: 4 }))
  t.deepEqual(scales, [0, 0, 2, 3])
})

test('sizes that are no multiple of the blocks: what is filled up has no say in the offset', async (t) => {
  const values = Float32Array.from(randomNumbers(37, 3), (value) => 5 + value)
  const { offset, values: found } = await coded(tensor(values, [37]), configOf(8))
  t.true(offset![0]! > 4)
  t.true(distance(found!, [...values]) < 0.2)
})

test('equal scales and zeros are no division by zero', async (t) => {
  const { values: same } = await coded(
    tensor(Float32Array.of(2, -2, 2, -2), [4]),
    configOf(4, { block_size_0: 2, block_size_1: 2 }),
  )
  t.deepEqual(same, [2, -2, 2, -2])
  const { values: none } = await coded(
    tensor(new Float32Array(4), [4]),
    configOf(4, { block_size_0: 2, block_size_1: 2 }),
  )
  t.deepEqual(none, [0, 0, 0, 0])
})

test('the decomposition stops when its error rises, and gives the best', async (t) => {
  const a = matrix(waves)
  for (const [bits, rank, best, first] of [
    [3, 2, 0.140558, [0.169917, 0.154631, 0.149603, 0.148406]],
    [3, 4, 0.093352, [0.124572, 0.109927, 0.102473]],
    [2, 4, 0.262597, [0.30235, 0.27149]],
  ] as const) {
    const { error, errors, parts } = await decompose(a, { rank, config: configOf(bits), iterations: 100 })
    t.true(Math.abs(error - best) < 2e-5, `${error}`)
    t.true(near(errors.slice(0, first.length), first, 2e-5), `${errors}`)
    t.true(errors.at(-1)! > error)
    using product = await computed(() => matmul(read(parts.l1), read(parts.l2)))
    const [low, q] = [await numbers(product), await numbers(parts.q)]
    t.true(
      Math.abs(
        distance(
          waves.flat(),
          low.map((value, i) => value + q[i]!),
        ) - error,
      ) < 1e-5,
    )
  }
})

test('with weights of rank one the weighted approximation is the best one', async (t) => {
  const a = matrix(waves)
  const fisher = matrix(waves.map((row, i) => row.map((_, j) => (1 + i + 1) * (1 + 0.1 * (j + 1)))))
  const errorOf = async (weighted: boolean): Promise<number> => {
    using found = await computed(() => {
      const { l1, l2 } = lowRank(read(a), weighted ? read(fisher) : undefined, 2)
      return sum(mul(read(fisher), square(sub(read(a), matmul(l1, l2)))))
    })
    return Math.sqrt(found.item())
  }
  const [weighted, plain] = [await errorOf(true), await errorOf(false)]
  t.true(near([weighted, plain], [6.992924, 7.271041]), `${weighted} and ${plain}`)
})

const toy: readonly (readonly Choice[])[] = [
  [8, 3, 1],
  [4, 2, 1],
].map((errors) => errors.map((error, i) => ({ error, bits: i + 2 })))

test('the integer programme of two matrices, for every budget', async (t) => {
  for (const [budget, error] of [
    [4, 12],
    [5, 7],
    [6, 5],
    [7, 3],
    [8, 2],
  ] as const)
    t.is((await allocateBits(toy, budget)).error, error)
  await t.throwsAsync(allocateBits(toy, 3), { message: /expected at least 4 bits/ })
})

test('the integer programme agrees with trying everything', async (t) => {
  for (let seed = 0; seed < 40; seed += 1) {
    const drawn = randomNumbers(40, seed)
    const choices = Array.from({ length: 5 }, (_, i) =>
      Array.from({ length: 4 }, (_, k) => ({
        error: 2 + drawn[8 * i + 2 * k]!,
        bits: Math.round(10 * (2 + drawn[8 * i + 2 * k + 1]!)),
      })),
    )
    const budget = 95
    const all = choices.reduce<Choice[]>(
      (sums, own) => sums.flatMap((a) => own.map((b) => ({ error: a.error + b.error, bits: a.bits + b.bits }))),
      [{ error: 0, bits: 0 }],
    )
    const fitting = all.filter(({ bits }) => bits <= budget)
    if (fitting.length === 0) continue
    const { error, bits, chosen } = await allocateBits(choices, budget)
    t.true(Math.abs(error - Math.min(...fitting.map((each) => each.error))) < 1e-5)
    t.true(bits <= budget)
    t.true(Math.abs(chosen.reduce((total, k, i) => total + choices[i]![k]!.error, 0) - error) < 1e-9)
  }
})

test('hundreds of matrices alike: the search ends, with a bound that says how near it came', async (t) => {
  const drawn = randomNumbers(210 * 4, 1)
  const choices = Array.from({ length: 210 }, (_, i) =>
    [2, 3, 4, 8].map((bits, k) => ({
      bits: 1000 * bits + 10 * (i % 7),
      error: 4 ** -bits * (1 + 0.1 * drawn[4 * i + k]!),
    })),
  )
  const { error, bits, bound } = await allocateBits(choices, 210 * 3000, { relaxations: 32 })
  t.true(bits <= 210 * 3000)
  t.true(bound <= error && error - bound < 1e-2 * error, `${bound} and ${error}`)
  const exact = await allocateBits(toy, 6)
  t.true(exact.error - exact.bound <= 1e-6 * exact.error)
})

const options: LqLoraOptions = {
  target_modules: ['proj'],
  num_ranks: 4,
  num_bits: 3,
  block_size_0: 16,
  block_size_1: 16,
  randomized: false,
}

test('an adapter begins at Q + L₁ L₂, and s B A is L₁ L₂ whatever the scale', async (t) => {
  const one = oneSite(waves)
  const adapter = await Adapter.attach(one.network, lqLora(options))
  await adapter.merge()
  t.true(Math.abs(distance(await numbers(one.site.weight), waves.flat()) - 0.093352) < 2e-5)
  adapter.unmerge()
  t.deepEqual(await numbers(one.site.weight), waves.flat().map(Math.fround))
})

test('a file holds Q in bits, and computes the same on any base', async (t) => {
  const folder = temporaryFolder()
  const one = oneSite(waves)
  const adapter = await Adapter.attach(one.network, lqLora(options))
  await adapter.save(folder)
  const other = oneSite(waves.map((row) => row.map(() => 0)))
  const again = await Adapter.load(other.network, folder)
  const x = waves.slice(0, 2)
  t.deepEqual(await outputOf(other, x, again), await outputOf(one, x, adapter))
  // 3 bits of 1024 codes, 64 scales of a byte, 4 scales of scales and an offset, beside A and B of 4 × 32 floats.
  const bytes = (1024 * 3) / 8 + 64 + 4 * 4 + 4 + 2 * 4 * 32 * 4
  const { size } = await stat(`${folder}/adapter_model.safetensors`)
  t.true(size >= bytes && size < bytes + 1024, `${size} against ${bytes}`)
})

test('a weight stored [in, out] is quantised along its inputs too', async (t) => {
  const turned = waves.map((_, j) => waves.map((row) => row[j]!))
  const [plain, stored] = [oneSite(waves), oneSite(turned, { transposed: true })]
  const x = waves.slice(0, 2)
  const outputs: number[][] = []
  for (const one of [plain, stored])
    outputs.push(await outputOf(one, x, await Adapter.attach(one.network, lqLora(options))))
  t.true(near(outputs[0]!, outputs[1]!))
})

/** A task whose loss is ⟨G, W x⟩ for the rows x of the identity, for one module after the other. */
function taskOf(sites: readonly Site[], sizes: readonly number[]): Calibration {
  const width = 32
  const identity = Float32Array.from({ length: width * width }, (_, i) => (i % (width + 1) === 0 ? 1 : 0))
  const objective = {
    name: 'sums',
    config: {},
    inputs: ['x'],
    arrays: () => ({ x: { data: identity, shape: [width, width] } }),
    weight: () => 1,
    tokens: () => 1,
    loss: async (_: unknown, { x }: Readonly<Record<string, never>>, forward: never) =>
      sites.map((site, i) => mul(sum(linear(site, x!, forward)), sizes[i]!)).reduce((a, b) => sub(a, mul(b, -1))),
  }
  return {
    objective: objective as never,
    async *batches() {
      yield 0
    },
  }
}

const candidates: readonly LqLoraCandidate[] = [
  [2, 8, 'bf16', 16, 16],
  [4, 8, 'bf16', 16, 16],
]

test('under a budget the matrix that loses more gets more bits; with data, the one that matters more', async (t) => {
  const site = (path: string, factor: number): Site =>
    oneSite(
      waves.map((row) => row.map((value) => factor * value)),
      { path },
    ).site
  const sites = [site('large.proj', 2), site('small.proj', 1)]
  const budget =
    (bitsPerWeight(configOf(2, { num_bits_1: 'bf16' })) + bitsPerWeight(configOf(4, { num_bits_1: 'bf16' }))) / 2
  const own = { ...options, budget, candidates }
  const plain = await Adapter.attach(networkOf(sites), lqLora(own))
  t.deepEqual(plain.method.config.configurations, { 'large.proj': candidates[1], 'small.proj': candidates[0] })
  const calibration = taskOf(sites, [1, 10])
  const aware = await Adapter.attach(networkOf(sites), lqLora({ ...own, data_aware: true }), { calibration })
  t.deepEqual(aware.method.config.configurations, { 'large.proj': candidates[0], 'small.proj': candidates[1] })
})

test('what cannot be quantised is refused by name', async (t) => {
  const broken = waves.map((row) => row.map(() => Number.NaN))
  await t.throwsAsync(Adapter.attach(oneSite(broken).network, lqLora(options)), { message: /weight of model\.proj/ })
  await t.throwsAsync(Adapter.attach(oneSite(waves).network, lqLora({ ...options, data_aware: true })), {
    message: /calibration/,
  })
})
