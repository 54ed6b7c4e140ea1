// EVA: A from the principal components of a module's inputs, ranks by what they explain; PEFT's numbers by make_eva.py.
import { readFile } from 'node:fs/promises'
import { join } from 'node:path'
import test from 'ava'
import { Adapter } from '../lib/adapters/adapter.js'
import { type EvaSettings, eva } from '../lib/adapters/methods/eva.js'
import { principalComponents } from '../lib/adapters/methods/eva_components.js'
import { selectSites } from '../lib/adapters/target_modules.js'
import { computed } from '../lib/graph/computed.js'
import { matmul } from '../lib/graph/ops/matmul.js'
import { read } from '../lib/graph/sym.js'
import { IncrementalSvd } from '../lib/linalg/incremental_svd.js'
import { type Tensor, tensor } from '../lib/tensor/tensor.js'
import { golden, goldenJson, goldenLlama, goldenTensors, relativeError } from './golden.js'
import { logits } from './support/adapter_goldens.js'
import { evaCalibration, evaGoldens } from './support/eva_goldens.js'
import { matrix, near, numbers } from './support/one_site.js'
import { temporaryFolder } from './support/temporary_folder.js'

const { base, targets, cases, batches } = evaGoldens
const ids = batches[0]!.input_ids

const attached = async (settings: EvaSettings, batchCount?: number): Promise<Adapter> =>
  Adapter.attach(await goldenLlama(base), eva({ r: 4, lora_alpha: 8, target_modules: targets, eva_config: settings }), {
    baseModel: base,
    calibration: evaCalibration(batchCount),
  })

const ranksOf = (adapter: Adapter): Record<string, number> =>
  Object.fromEntries(
    adapter.attachedSites.map(({ site, parameters }) => [site.path, parameters['lora_A.weight']!.shape[0]!]),
  )

for (const [name, { eva_config: settings, ranks, alpha_pattern: alphas }] of Object.entries(cases))
  test(`${name}: PEFT's ranks and alphas of the same batches`, async (t) => {
    const adapter = await attached(settings)
    t.deepEqual(ranksOf(adapter), ranks)
    const ours = adapter.method.config.alpha_pattern as Record<string, number> | undefined
    const found = Object.entries(ours ?? {}).map(([path, alpha]) => [path.replaceAll('\\.', '.'), alpha])
    t.deepEqual(Object.fromEntries(found), alphas)
    const expected = await goldenTensors('eva.golden.safetensors')
    for (const { site, parameters } of adapter.attachedSites) {
      const squaresOf = async (a: Tensor): Promise<number[]> =>
        rowsOf(await numbers(a), ranks[site.path]!).map((row) => Math.hypot(...row) ** 2)
      // 1, or with whitening 1/s; PEFT's decomposition and ours are randomised.
      const [own, peft] = [parameters['lora_A.weight']!, expected.get(`${name}.${site.path}`)!]
      t.true(near(await squaresOf(own), await squaresOf(peft), 2e-2), site.path)
    }
  })

interface Exact {
  readonly cases: Readonly<
    Record<
      string,
      {
        readonly ranks: Readonly<Record<string, number>>
        readonly ratios: Readonly<Record<string, readonly number[]>>
      }
    >
  >
  readonly waves: Readonly<Record<'sizes' | 's' | 'vh' | 'ratios' | 'mean', readonly number[]>>
}
/** PEFT's search with exact decompositions, in float64: what is left is deterministic, by make_eva_exact.py. */
const exact = goldenJson<Exact>('eva-exact.golden.json')

test("incremental components in f64 are those of PEFT's IncrementalPCA to 1e-11", async (t) => {
  const { sizes, s, vh, ratios, mean } = exact.waves
  using svd = new IncrementalSvd({ rank: 5 })
  let before = 0
  for (const size of sizes) {
    const [first, width] = [before, 12]
    const wave = (_: unknown, at: number): number => {
      const [i, j] = [first + Math.floor(at / width), at % width]
      return Math.sin(0.7 * i * j + 1.3 * i + 0.1 * j * j)
    }
    using rows = tensor(Float64Array.from({ length: size * width }, wave), [size, width])
    await svd.update(rows)
    before += size
  }
  for (const [found, expected] of [
    [svd.s, s],
    [svd.vh, vh],
    [await svd.explainedVarianceRatio(), ratios],
    [svd.mean, mean],
  ] as const)
    t.true(near(await numbers(found), expected, 1e-11))
})

/** The search for the components of the golden batches, as the method runs it. */
async function searched(settings: EvaSettings, iterations: number | undefined) {
  const network = await goldenLlama(base)
  const all = { tau: 0.99, rho: 2, use_label_mask: true, max_batches: 256, ...settings }
  const context = {
    network,
    sites: [],
    seed: 0,
    watch: {},
    report() {},
    warn() {},
    calibration: () => evaCalibration(),
  }
  const sites = selectSites(network.sites.values(), targets)
  return await principalComponents(context, sites, { ...all, iterations, rankOf: () => 4 })
}

for (const [name, { ranks, ratios }] of Object.entries(exact.cases)) {
  const { eva_config: settings } = cases[name]!

  test(`${name}: with exact decompositions PEFT's ranks, shares and components, to the rounding of f32`, async (t) => {
    const found = await searched(settings, undefined)
    t.deepEqual(Object.fromEntries([...found.ranks].map(([site, rank]) => [site.path, rank])), ranks)
    const components = await goldenTensors('eva-exact.golden.safetensors')
    for (const { sites, svd, ratios: own } of found.groups) {
      const { path } = sites[0]!
      t.true(near(own, ratios[path]!, 1e-6), path)
      const peft = await numbers(components.get(`${name}.${path}`)!)
      const rank = ranks[path]!
      const unit = rowsOf(peft, rank).map((row) => row.map((value) => value / Math.hypot(...row)))
      for (const [i, row] of rowsOf(await numbers(svd.vh), svd.vh.shape[0]!)
        .slice(0, rank)
        .entries()) {
        const distance = Math.hypot(...row.map((value, j) => value - unit[i]![j]!))
        // Davis and Kahan: rounding of relative size ε turns a component by at most about ε over its relative distance
        // to the other singular values.
        t.true(distance < (64 * 2 ** -23) / gapOf(ratios[path]!, i), `${path} ${i}: ${distance}`)
      }
    }
  })

  test(`${name}: the randomised decomposition explains what the exact one does, to 2 %`, async (t) => {
    const [rough, best] = [await searched(settings, 4), await searched(settings, undefined)]
    for (const [g, { sites, ratios: own }] of rough.groups.entries()) {
      const rank = ranks[sites[0]!.path]!
      const share = (among: readonly number[]): number => among.slice(0, rank).reduce((a, b) => a + b, 0)
      const part = share(own) / share(best.groups[g]!.ratios)
      // Not of the same data to the end: the batches are repeated until the components of either have converged.
      t.true(Math.abs(part - 1) < 0.02, `${sites[0]!.path}: ${part}`)
    }
  })
}

const rowsOf = (values: readonly number[], count: number): number[][] =>
  Array.from({ length: count }, (_, i) => values.slice((i * values.length) / count, ((i + 1) * values.length) / count))

/** |s_i − s_j| / s_0 to the nearest other singular value that is known. */
function gapOf(ratios: readonly number[], i: number): number {
  const s = ratios.map(Math.sqrt)
  return Math.min(...s.filter((_, j) => j !== i).map((other) => Math.abs(other - s[i]!))) / s[0]!
}

test('A has orthonormal rows, B is zero, and nothing changes at the start', async (t) => {
  const adapter = await attached({})
  for (const { parameters } of adapter.attachedSites) {
    const a = parameters['lora_A.weight']!
    const gram = await numbers(await computed(() => matmul(read(a), read(a), { transposeB: true })))
    const r = a.shape[0]!
    t.true(
      near(
        gram,
        Array.from({ length: r * r }, (_, i) => Number(i % (r + 1) === 0)),
      ),
    )
    t.true((await numbers(parameters['lora_B.weight']!)).every((value) => value === 0))
  }
  const model = adapter.model as Awaited<ReturnType<typeof goldenLlama>>
  t.deepEqual(await numbers(await logits(model, ids, adapter)), await numbers(await logits(model, ids)))
})

test('ranks add up to the budget, none is above r ρ, and the scale stays 2 everywhere', async (t) => {
  for (const rho of [1.5, 2, 4]) {
    const adapter = await attached({ rho })
    const ranks = Object.values(ranksOf(adapter))
    t.is(
      ranks.reduce((a, b) => a + b, 0),
      8 * 4,
    )
    t.true(ranks.every((rank) => rank <= 4 * rho))
    const alphas = adapter.method.config.alpha_pattern as Record<string, number>
    const pattern = adapter.method.config.rank_pattern as Record<string, number>
    for (const [path, rank] of Object.entries(pattern)) t.is(alphas[path]! / rank, 2)
  }
})

test('the incremental components of two batches are those of the closed example, exact or by subspace iterations', async (t) => {
  const first = matrix([
    [1, 0, 0],
    [0, 2, 0],
    [0, 0, 3],
    [1, 1, 1],
  ])
  const second = matrix([
    [2, 1, 0],
    [0, 1, 4],
    [1, 0, 1],
    [3, 0, 0],
  ])
  for (const iterations of [undefined, 8]) {
    using svd = new IncrementalSvd({ rank: 2, iterations })
    await svd.update(first)
    await svd.update(second)
    t.true(near(await numbers(svd.s), [4.552969, 2.45397]))
    t.true(near(await numbers(svd.vh), [-0.482332, 0.026034, 0.875602, -0.614612, 0.702178, -0.359442]))
    t.true(near(await numbers(await svd.explainedVarianceRatio()), [0.721027, 0.20946]))
  }
})

test('the folder is a plain LoRA that says where it began; it loads without data', async (t) => {
  const adapter = await attached({})
  const folder = temporaryFolder()
  await adapter.save(folder)
  const config = JSON.parse(await readFile(join(folder, 'adapter_config.json'), 'utf8')) as Record<string, unknown>
  t.is(config.peft_type, 'LORA')
  t.is(config.init_lora_weights, 'eva')
  const model = await goldenLlama(base)
  t.deepEqual(ranksOf(await Adapter.load(model, folder)), ranksOf(adapter))
})

test("PEFT's folder gives PEFT's ranks, and what Heddle writes, PEFT computes", async (t) => {
  const model = await goldenLlama(base)
  t.deepEqual(ranksOf(await Adapter.load(model, golden('eva'))), cases.redistributed!.ranks)
  const adapter = await Adapter.load(model, golden('eva-heddle'))
  const expected = (await goldenTensors('eva-heddle.golden.safetensors')).get('logits')!
  t.true((await relativeError(await logits(model, ids, adapter), expected)) < 1e-4)
})

test('too few tokens for the components, no data and no calibration are refused', async (t) => {
  await t.throwsAsync(attached({ rho: 100 }), {
    message: /eva: model\.layers\.0\.\S+: expected a batch of at least 400 tokens/,
  })
  await t.throwsAsync(attached({}, 0), { message: /eva: calibration: expected a batch/ })
  const method = eva({ target_modules: targets })
  await t.throwsAsync(Adapter.attach(await goldenLlama(base), method), { message: /expected data to look at/ })
})
