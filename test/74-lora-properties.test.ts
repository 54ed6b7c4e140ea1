// What holds for every variant of LoRA, and the closed forms of the papers.
import { readFile } from 'node:fs/promises'
import { join } from 'node:path'
import test from 'ava'
import { type ActiveAdapters, activeOf } from '../lib/adapters/active.js'
import { Adapter } from '../lib/adapters/adapter.js'
import { lora } from '../lib/adapters/methods/lora.js'
import type { LoraConfig, LoraOptions } from '../lib/adapters/methods/lora_config.js'
import { add } from '../lib/graph/ops/elementwise.js'
import { matmul } from '../lib/graph/ops/matmul.js'
import { program } from '../lib/graph/program.js'
import { assign, read, type Sym } from '../lib/graph/sym.js'
import type { CausalLm } from '../lib/models/causal_lm.js'
import type { Network } from '../lib/nn/network.js'
import { linear, type Site } from '../lib/nn/site.js'
import { type Tensor, tensor } from '../lib/tensor/tensor.js'
import { golden, goldenLlama, goldenTensors, relativeError } from './golden.js'
import { randomNumbers } from './random_numbers.js'
import { goldens, logits, trainFiveSteps } from './support/adapter_goldens.js'
import { temporaryFolder } from './support/temporary_folder.js'
import { tinyModel } from './tiny_model.js'

const { ids } = goldens.variants.dora!

async function computed(fn: () => Sym): Promise<Tensor> {
  const step = program(fn)
  const result = await step()
  step.dispose()
  return result
}

const numbers = async (each: Tensor): Promise<number[]> => [...((await each.data()) as Float32Array)]

/** Adds noise to everything that is trained, so that the adapter does something. */
async function disturb(adapter: Adapter, size = 0.1): Promise<void> {
  const noise = [...adapter.parameters().values()].map((each, i) => ({
    each,
    values: tensor(
      randomNumbers(each.size, i + 1).map((value) => size * value),
      each.shape,
    ),
  }))
  const step = program(() => {
    for (const { each, values } of noise) assign(each, add(read(each), read(values)))
    return []
  })
  await step()
}

/** Variants with the number of parameters that they have on tiny-llama-untied. */
const variants: readonly (readonly [string, LoraOptions, number])[] = [
  ['plain', { target_modules: ['q_proj'] }, 2 * 4 * (64 + 64)],
  ['gaussian', { target_modules: ['v_proj'], init_lora_weights: 'gaussian' }, 2 * 4 * (64 + 32)],
  ['orthogonal', { target_modules: ['q_proj'], init_lora_weights: 'orthogonal' }, 2 * 4 * (64 + 64)],
  ['dora', { target_modules: ['down_proj'], use_dora: true }, 2 * (4 * (64 + 96) + 64)],
  ['pissa', { target_modules: ['q_proj'], init_lora_weights: 'pissa' }, 2 * 4 * (64 + 64)],
  ['pissa_niter_8', { target_modules: ['up_proj'], init_lora_weights: 'pissa_niter_8' }, 2 * 4 * (64 + 96)],
  ['olora', { target_modules: ['o_proj'], init_lora_weights: 'olora' }, 2 * 4 * (64 + 64)],
  ['pissa with dora', { target_modules: ['q_proj'], init_lora_weights: 'pissa', use_dora: true }, 2 * (4 * 128 + 64)],
  ['embedding', { target_modules: ['embed_tokens', 'lm_head'] }, 2 * 4 * (257 + 64)],
  ['embedding with dora', { target_modules: ['embed_tokens'], use_dora: true }, 4 * (257 + 64) + 64],
  ['a copied head', { target_modules: ['q_proj'], modules_to_save: ['lm_head'] }, 2 * 4 * 128 + 257 * 64],
  ['rsLoRA by pattern', { target_modules: ['q_proj'], use_rslora: true, rank_pattern: { '0.*': 2 } }, 6 * 128],
]

for (const [name, options, count] of variants) {
  const attach = async (): Promise<{ readonly model: CausalLm; readonly adapter: Adapter }> => {
    const model = await goldenLlama('tiny-llama-untied')
    return { model, adapter: await Adapter.attach(model, lora({ r: 4, lora_alpha: 6, ...options })) }
  }

  test(`${name}: ${count} parameters, and a fresh adapter changes nothing`, async (t) => {
    const { model, adapter } = await attach()
    t.is(adapter.parameterCount, count)
    t.true((await relativeError(await logits(model, ids, adapter), await logits(model, ids))) < 1e-5)
  })

  test(`${name}: merged weights compute what the adapter computes, and unmerge is exact`, async (t) => {
    const { model, adapter } = await attach()
    await disturb(adapter)
    const before = await logits(model, ids)
    const wanted = await logits(model, ids, adapter)
    t.true((await relativeError(wanted, before)) > 1e-3, 'the adapter does something')
    await adapter.merge()
    t.true((await relativeError(await logits(model, ids), wanted)) < 1e-5)
    adapter.unmerge()
    t.deepEqual(await numbers(await logits(model, ids)), await numbers(before))
  })

  test(`${name}: a saved folder gives the same logits on a fresh base`, async (t) => {
    const { model, adapter } = await attach()
    await disturb(adapter)
    const folder = temporaryFolder()
    await adapter.save(folder)
    const other = await goldenLlama('tiny-llama-untied')
    const again = await Adapter.load(other, folder)
    t.true((await relativeError(await logits(other, ids, again), await logits(model, ids, adapter))) < 1e-5)
  })
}

/** One linear module `proj` with this weight. */
function oneSite(rows: readonly (readonly number[])[]): { readonly net: Network; readonly site: Site } {
  const weight = tensor(Float32Array.from(rows.flat()), [rows.length, rows[0]!.length])
  const site: Site = { path: 'model.proj', kind: 'linear', weight }
  const sites = new Map([[site.path, site]])
  return {
    net: { config: {}, architecture: 'test', sites, maxPositions: 1, embeddingTied: false, weights: () => [] },
    site,
  }
}
const onProj = (options: LoraOptions) => lora({ target_modules: ['proj'], ...options })
const proj = (adapter: Adapter, name: string): Tensor => adapter.parameters().get(`model.proj.${name}`)!
const near = (actual: readonly number[], expected: readonly number[]): boolean =>
  actual.length === expected.length && actual.every((value, i) => Math.abs(value - expected[i]!) < 1e-5)

const small = [
  [3, 0, 0],
  [0, 2, 0],
  [0, 0, 1],
  [1, 1, 1],
]

test("PiSSA's factors: the square roots of the leading singular values over the scale", async (t) => {
  const { net } = oneSite(small)
  const adapter = await Adapter.attach(net, onProj({ r: 2, lora_alpha: 4, init_lora_weights: 'pissa' }))
  const [a, b] = [await numbers(proj(adapter, 'lora_A.weight')), await numbers(proj(adapter, 'lora_B.weight'))]
  t.true(near(a.map(Math.abs), [1.22824, 0.26247, 0.17834, 0.24922, 0.9969, 0.24922]))
  t.true(near(b.map(Math.abs), [1.14484, 0.33437, 0.1631, 0.89165, 0.05541, 0.11146, 0.51858, 0.44583]))
})

test("OLoRA's factors: R and Q, not divided by the scale", async (t) => {
  const { net } = oneSite(small)
  const adapter = await Adapter.attach(net, onProj({ r: 2, lora_alpha: 4, init_lora_weights: 'olora' }))
  const a = await numbers(proj(adapter, 'lora_A.weight'))
  t.true(near(a, [-3.16228, -0.31623, -0.31623, 0, -2.21359, -0.40658]))
  const rest = await numbers(adapter.attachments.get('model.proj')!.weight!)
  t.true(near(rest.slice(0, 3), [-3, 0, -0.489796]))
})

test('the site keeps its weight: what PiSSA takes out is taken out of a copy', async (t) => {
  const { net, site } = oneSite(small)
  const adapter = await Adapter.attach(net, onProj({ r: 2, lora_alpha: 4, init_lora_weights: 'pissa' }))
  t.deepEqual(await numbers(site.weight), small.flat())
  const rest = adapter.attachments.get('model.proj')!.weight!
  const whole = await computed(() =>
    matmul(read(proj(adapter, 'lora_B.weight')), read(proj(adapter, 'lora_A.weight')), {
      alpha: 2,
      addend: read(rest),
    }),
  )
  t.true((await relativeError(whole, site.weight)) < 1e-6)
})

test('PiSSA by subspace iterations finds the same update as by the whole decomposition', async (t) => {
  const update = async (init_lora_weights: LoraConfig['init_lora_weights']): Promise<Tensor> => {
    const { net } = oneSite(Array.from({ length: 40 }, (_, i) => [...randomNumbers(30, i + 1)]))
    const adapter = await Adapter.attach(net, onProj({ r: 4, lora_alpha: 4, init_lora_weights }))
    return computed(() => matmul(read(proj(adapter, 'lora_B.weight')), read(proj(adapter, 'lora_A.weight'))))
  }
  t.true((await relativeError(await update('pissa_niter_100'), await update('pissa'))) < 1e-3)
})

test("DoRA's numbers by hand: rows are scaled to their magnitude", async (t) => {
  const { net, site } = oneSite([
    [3, 4],
    [0, 2],
  ])
  const adapter = await Adapter.attach(net, onProj({ r: 1, lora_alpha: 2, use_dora: true }))
  const set = (name: string, values: number[]): void => {
    const target = proj(adapter, name)
    updates.push([target, tensor(values, target.shape)])
  }
  const updates: [Tensor, Tensor][] = []
  t.deepEqual(await numbers(proj(adapter, 'lora_magnitude_vector')), [5, 2])
  set('lora_A.weight', [1, 0])
  set('lora_B.weight', [0, 1])
  await program(() => {
    for (const [target, value] of updates) assign(target, read(value))
    return []
  })()
  const x = tensor([1, 1], [1, 2])
  const forward = { precision: 'f32', training: false, hook: adapter.hook } as const
  t.true(near(await numbers(await computed(() => linear(site, read(x), forward))), [7, 2 * Math.SQRT2]))
  await adapter.merge()
  t.true(near(await numbers(site.weight), [3, 4, Math.SQRT2, Math.SQRT2]))
})

test('gaussian: A has the deviation 1/r', async (t) => {
  const { net } = oneSite(Array.from({ length: 4 }, () => [...randomNumbers(4000, 1)]))
  const adapter = await Adapter.attach(net, onProj({ r: 4, init_lora_weights: 'gaussian' }))
  const values = await numbers(proj(adapter, 'lora_A.weight'))
  const deviation = Math.sqrt(values.reduce((total, value) => total + value * value, 0) / values.length)
  t.true(Math.abs(deviation - 0.25) < 0.01)
})

test('orthogonal: A and B are both there from the start, and B A is zero', async (t) => {
  const { net } = oneSite(Array.from({ length: 12 }, () => [...randomNumbers(10, 1)]))
  const adapter = await Adapter.attach(net, onProj({ r: 4, init_lora_weights: 'orthogonal' }))
  const [a, b] = [proj(adapter, 'lora_A.weight'), proj(adapter, 'lora_B.weight')]
  t.true((await numbers(a)).some((value) => Math.abs(value) > 0.05))
  t.true((await numbers(b)).some((value) => Math.abs(value) > 0.05))
  const product = await numbers(await computed(() => matmul(read(b), read(a))))
  t.true(product.every((value) => Math.abs(value) < 1e-6))
})

test('init_lora_weights false: A and B are random, so the adapter is no identity', async (t) => {
  const { net } = oneSite(Array.from({ length: 12 }, () => [...randomNumbers(10, 1)]))
  const adapter = await Adapter.attach(net, onProj({ r: 4, init_lora_weights: false }))
  const b = await numbers(proj(adapter, 'lora_B.weight'))
  t.true(b.every((value) => value !== 0 && Math.abs(value) <= 0.5))
})

test("dropout with DoRA is PEFT's: on the adapter's input and in what the ratio adds, never on the base", async (t) => {
  const { net, site } = oneSite([
    [3, 4],
    [0, 2],
  ])
  const adapter = await Adapter.attach(net, onProj({ r: 1, use_dora: true, lora_dropout: 0.5 }))
  const x = tensor([1, 1], [1, 2])
  const seed = tensor(Uint32Array.of(1, 2), [2])
  const forward = () => ({ precision: 'f32', training: true, seed: read(seed), hook: adapter.hook }) as const
  // The ratio is 1 at the start, so nothing that was dropped shows.
  t.deepEqual(await numbers(await computed(() => linear(site, read(x), forward()))), [7, 2])
})

test('saved as it is, a PiSSA adapter names its initialisation and finds its base weight again', async (t) => {
  const variant = goldens.variants.pissa!
  const model = await goldenLlama('tiny-llama')
  const adapter = await Adapter.attach(model, lora({ r: 4, lora_alpha: 6, ...variant.options }))
  await trainFiveSteps(model, adapter, variant)
  const folder = temporaryFolder()
  await adapter.save(folder, { convert: false })
  const config = JSON.parse(await readFile(join(folder, 'adapter_config.json'), 'utf8')) as Record<string, unknown>
  t.like(config, { r: 4, init_lora_weights: 'pissa' })
  const again = await Adapter.load(await goldenLlama('tiny-llama'), folder)
  const wanted = await logits(model, variant.ids, adapter)
  t.true((await relativeError(await logits(again.model as CausalLm, variant.ids, again), wanted)) < 1e-5)
})

for (const use_rslora of [false, true])
  test(`converted on saving, a PiSSA adapter is a plain LoRA of twice the rank and the same scale: rsLoRA ${use_rslora}`, async (t) => {
    const model = await goldenLlama('tiny-llama')
    const options = { rank_pattern: { '1.*q_proj': 2 }, alpha_pattern: { '0.*q_proj': 3 } }
    const adapter = await Adapter.attach(
      model,
      lora({ r: 4, lora_alpha: 6, use_rslora, init_lora_weights: 'olora', target_modules: ['q_proj'], ...options }),
    )
    await disturb(adapter)
    const folder = temporaryFolder()
    await adapter.save(folder)
    const config = JSON.parse(await readFile(join(folder, 'adapter_config.json'), 'utf8')) as Record<string, unknown>
    t.like(config, { r: 8, init_lora_weights: true, rank_pattern: { '1.*q_proj': 4 } })
    const again = await Adapter.load(await goldenLlama('tiny-llama'), folder)
    const wanted = await logits(model, ids, adapter)
    t.true((await relativeError(await logits(again.model as CausalLm, ids, again), wanted)) < 1e-5)
  })

test('two adapters active at once give what PEFT gives', async (t) => {
  const model = await goldenLlama('tiny-llama')
  const both = await Promise.all(['peft-all-linear', 'peft-rslora'].map((name) => Adapter.load(model, golden(name))))
  const values = (await (await goldenTensors('tiny-llama.golden.safetensors')).get('ids')!.data()) as Int32Array
  const rows = [[...values.subarray(0, 17)], [...values.subarray(17)]]
  const expected = (await goldenTensors('adapters-combined.golden.safetensors')).get('both.logits')!
  t.true((await relativeError(await logits(model, rows, activeOf(both)), expected)) < 1e-4)
})

test('a PiSSA adapter and a plain one together: each keeps its own base', async (t) => {
  const model = await goldenLlama('tiny-llama')
  const attach = (options: LoraOptions) => Adapter.attach(model, lora({ r: 4, target_modules: ['q_proj'], ...options }))
  const [plain, pissa] = [await attach({}), await attach({ init_lora_weights: 'pissa' })]
  await disturb(plain)
  const alone = await logits(model, ids, plain)
  for (const order of [
    [plain, pissa],
    [pissa, plain],
  ])
    t.true((await relativeError(await logits(model, ids, activeOf(order)), alone)) < 1e-5)
  t.throws(() => activeOf([pissa, pissa]), { code: 'ERR_HEDDLE_ARGUMENT', message: /q_proj\.weight/ })
})

test('calls with different adapters and with none, interleaved, do not disturb one another', async (t) => {
  const model = await tinyModel()
  const adapters = [
    await model.attach(lora({ target_modules: ['q_proj'] }), { seed: 1 }),
    await model.attach(lora({ target_modules: 'all-linear', init_lora_weights: 'pissa', use_dora: true }), { seed: 2 }),
    await model.attach(lora({ target_modules: ['v_proj'], modules_to_save: ['lm_head'] }), { seed: 3 }),
  ]
  for (const adapter of adapters) await disturb(adapter, 0.5)
  const choices = [undefined, ...adapters, [adapters[0]!, adapters[1]!]]
  const text = async (adapter: ActiveAdapters | undefined): Promise<string> => {
    let all = ''
    for await (const part of model.generate('Still waters', { adapter, maxTokens: 8, chat: false })) all += part
    return all
  }
  const alone: string[] = []
  for (const adapter of choices) alone.push(await text(adapter))
  t.is(new Set(alone).size, choices.length, 'each says something else')
  t.deepEqual(await Promise.all(choices.map(text)), alone)
  t.deepEqual(await Promise.all(choices.toReversed().map(text)), alone.toReversed())
  await model.dispose()
})

test('options at odds with each other or with a module are refused, naming it', async (t) => {
  const model = await goldenLlama('tiny-llama')
  const refused = (options: LoraOptions, message: RegExp) =>
    t.throwsAsync((async () => Adapter.attach(model, lora({ r: 4, target_modules: ['q_proj'], ...options })))(), {
      code: 'ERR_HEDDLE_ARGUMENT',
      message,
    })
  await refused({ use_dora: true, lora_bias: true }, /lora_bias/)
  await refused({ r: 3, init_lora_weights: 'orthogonal' }, /even/)
  await refused({ r: 65, init_lora_weights: 'pissa' }, /at most 64/)
  await refused({ target_modules: ['embed_tokens'], init_lora_weights: 'olora' }, /embed_tokens.*linear/)
  await refused({ target_modules: ['embed_tokens'], lora_bias: true }, /embed_tokens/)
  await refused({ init_lora_weights: 'loftq' as 'pissa' }, /init_lora_weights/)
  await refused({ target_modules: ['model.norm'] }, /norm/)
  const shared = await Adapter.attach(model, lora({ target_modules: ['embed_tokens'] }))
  await t.throwsAsync(shared.merge(), { code: 'ERR_HEDDLE_ARGUMENT', message: /embed_tokens/ })
  const biased = await Adapter.attach(model, lora({ target_modules: ['q_proj'], lora_bias: true }))
  await t.throwsAsync(biased.merge(), { code: 'ERR_HEDDLE_ARGUMENT', message: /q_proj/ })
})
