// EVA: A from the principal components of a module's inputs, ranks by what they explain; PEFT's numbers by make_eva.py.
import { readFile } from 'node:fs/promises'
import { join } from 'node:path'
import test from 'ava'
import { Adapter } from '../lib/adapters/adapter.js'
import { type EvaSettings, eva } from '../lib/adapters/methods/eva.js'
import { computed } from '../lib/graph/computed.js'
import { matmul } from '../lib/graph/ops/matmul.js'
import { read } from '../lib/graph/sym.js'
import { IncrementalSvd } from '../lib/linalg/incremental_svd.js'
import { golden, goldenLlama, goldenTensors, relativeError } from './golden.js'
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

/** Of each of `rows` rows, the cosine with the other's, or the inner product. */
function rowCosines(a: readonly number[], b: readonly number[], rows: number, isNormalised = true): number[] {
  const width = a.length / rows
  const dot = (x: readonly number[], y: readonly number[], row: number): number =>
    x.slice(row * width, (row + 1) * width).reduce((total, value, i) => total + value * y[row * width + i]!, 0)
  return Array.from({ length: rows }, (_, row) =>
    isNormalised ? dot(a, b, row) / Math.sqrt(dot(a, a, row) * dot(b, b, row)) : dot(a, b, row),
  )
}

for (const [name, { eva_config: settings, ranks, alpha_pattern: alphas, agreement }] of Object.entries(cases)) {
  test(`${name}: PEFT's ranks, alphas and components of the same batches`, async (t) => {
    const adapter = await attached(settings)
    t.deepEqual(ranksOf(adapter), ranks)
    const ours = adapter.method.config.alpha_pattern as Record<string, number> | undefined
    const found = Object.entries(ours ?? {}).map(([path, alpha]) => [path.replaceAll('\\.', '.'), alpha])
    t.deepEqual(Object.fromEntries(found), alphas)
    const expected = await goldenTensors('eva.golden.safetensors')
    for (const { site, parameters } of adapter.attachedSites) {
      const peft = await numbers(expected.get(`${name}.${site.path}`)!)
      const cosines = rowCosines(await numbers(parameters['lora_A.weight']!), peft, ranks[site.path]!)
      // PEFT's decomposition is randomised: where the spectrum is flat, PEFT with another seed is as far from
      // itself as this. Here: at most twice as far.
      for (const [i, cosine] of cosines.entries())
        t.true(1 - Math.abs(cosine) < 2 * (1 - agreement[site.path]![i]!) + 0.005, `${site.path}: ${cosines}`)
      const lengths = rowCosines(peft, peft, ranks[site.path]!, false)
      const a = await numbers(parameters['lora_A.weight']!)
      const own = rowCosines(a, a, ranks[site.path]!, false)
      t.true(near(own, lengths, 2e-2), `${site.path}: ${own} and ${lengths}`)
    }
  })
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
