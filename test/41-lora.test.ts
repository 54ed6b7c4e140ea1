// LoRA as PEFT does it: numbers made by PEFT itself (test/golden/make_lora_peft.py), and the closed forms of the paper.

import { cp, readFile, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import test from 'ava'
import { Adapter } from '../lib/adapters/adapter.js'
import { lora } from '../lib/adapters/methods/lora.js'
import type { LoraOptions } from '../lib/adapters/methods/lora_config.js'
import { selectSites } from '../lib/adapters/target_modules.js'
import { HeddleError } from '../lib/errors.js'
import { reshape } from '../lib/graph/ops/reduce.js'
import { program } from '../lib/graph/program.js'
import type { CausalLm } from '../lib/models/causal_lm.js'
import { type Forward, linear } from '../lib/nn/site.js'
import { type Tensor, tensor } from '../lib/tensor/tensor.js'
import { golden, goldenJson, goldenLlama, goldenTensors, relativeError } from './golden.js'
import { onGpu } from './support/backend.js'
import { temporaryFolder } from './support/temporary_folder.js'

interface PeftGolden {
  readonly adapters: Readonly<Record<string, { readonly sites: readonly string[]; readonly trainable: number }>>
}
const peft = goldenJson<PeftGolden>('peft.golden.json')
const plainLora = ['peft-all-linear', 'peft-rslora', 'peft-regex', 'peft-patterns']

async function logits(model: CausalLm, ids: Tensor, adapter?: Adapter): Promise<Tensor> {
  const forward: Forward = { precision: 'f32', training: false, hook: adapter?.hook }
  const step = program(async (i) => {
    const [b, t] = i!.shape as [number, number]
    const hidden = await model.hidden({ ids: i! }, forward)
    return reshape(linear(model.outputSite, hidden, forward), [b, t, model.vocabularySize])
  })
  return step(ids)
}

const goldenIds = async (): Promise<Tensor> => (await goldenTensors('tiny-llama.golden.safetensors')).get('ids')!

for (const name of plainLora) {
  test(`${name}: an adapter made by PEFT gives PEFT's logits to 1e-4`, async (t) => {
    const model = await goldenLlama('tiny-llama')
    const adapter = await Adapter.load(model, golden(name))
    const expected = (await goldenTensors(`${name}.golden.safetensors`)).get('logits')!
    t.true((await relativeError(await logits(model, await goldenIds(), adapter), expected)) < 1e-4)
  })

  test(`${name}: the same modules are chosen, with the same number of parameters`, async (t) => {
    const model = await goldenLlama('tiny-llama')
    const adapter = await Adapter.load(model, golden(name))
    const { sites, trainable } = peft.adapters[name]!
    t.deepEqual([...adapter.sitePaths].sort(), [...sites].sort())
    t.is(adapter.parameterCount, trainable)
  })
}

test('a fresh adapter changes nothing: B is zero', async (t) => {
  const model = await goldenLlama('tiny-llama')
  const ids = await goldenIds()
  const adapter = await Adapter.attach(model, lora({ r: 4 }))
  const change = await relativeError(await logits(model, ids, adapter), await logits(model, ids))
  // A device adds what else belongs to a sum before or after it is rounded.
  if (!onGpu) t.is(change, 0)
  else t.true(change < 1e-6)
})

test('A is uniform on ±1/√in', async (t) => {
  const model = await goldenLlama('tiny-llama')
  const adapter = await Adapter.attach(model, lora({ r: 64, target_modules: ['gate_proj'] }))
  const values = (await adapter.parameters().get('model.layers.0.mlp.gate_proj.lora_A.weight')!.data()) as Float32Array
  const bound = 1 / Math.sqrt(64)
  t.true(values.every((value) => Math.abs(value) <= bound))
  const deviation = Math.sqrt(values.reduce((total, value) => total + value * value, 0) / values.length)
  t.true(Math.abs(deviation - bound / Math.sqrt(3)) < 0.03 * bound)
})

test('the same seed gives the same adapter, another seed another', async (t) => {
  const model = await goldenLlama('tiny-llama')
  const values = async (seed: number) => {
    const adapter = await Adapter.attach(model, lora({ r: 2, target_modules: ['q_proj'] }), { seed })
    return [...(await adapter.parameters().get('model.layers.1.self_attn.q_proj.lora_A.weight')!.data())]
  }
  t.deepEqual(await values(3), await values(3))
  t.notDeepEqual(await values(3), await values(4))
})

test('merged weights are those of PEFT, and compute what the adapter computes', async (t) => {
  const model = await goldenLlama('tiny-llama')
  const ids = await goldenIds()
  const adapter = await Adapter.load(model, golden('peft-all-linear'))
  const goldens = await goldenTensors('peft-all-linear.golden.safetensors')
  await adapter.merge()
  for (const path of ['model.layers.0.self_attn.q_proj', 'model.layers.1.mlp.down_proj'])
    t.true((await relativeError(model.sites.get(path)!.weight, goldens.get(`merged.${path}.weight`)!)) < 1e-6)
  t.true((await relativeError(await logits(model, ids), goldens.get('logits')!)) < 1e-4)
})

test('unmerge puts the very same weights back', async (t) => {
  const model = await goldenLlama('tiny-llama')
  const ids = await goldenIds()
  const before = await logits(model, ids)
  const adapter = await Adapter.load(model, golden('peft-all-linear'))
  await adapter.merge()
  t.true((await relativeError(await logits(model, ids), before)) > 0.01)
  adapter.unmerge()
  t.is(await relativeError(await logits(model, ids), before), 0)
})

test('an adapter trained and written by Heddle computes in PEFT what it computes here', async (t) => {
  const model = await goldenLlama('tiny-llama')
  const adapter = await Adapter.load(model, golden('heddle-adapter'))
  const rows = goldenJson<number[][]>('heddle-adapter.ids.json')
  const ids = tensor(Int32Array.from(rows.flat()), [rows.length, rows[0]!.length])
  const expected = (await goldenTensors('heddle-adapter.golden.safetensors')).get('logits')!
  t.true((await relativeError(await logits(model, ids, adapter), expected)) < 1e-4)
  t.true((await relativeError(await logits(model, ids), expected)) > 0.1)
})

test('the folder that PEFT was given is still what Heddle writes, byte for byte', async (t) => {
  const folder = temporaryFolder()
  const adapter = await Adapter.load(await goldenLlama('tiny-llama'), golden('heddle-adapter'), {
    baseModel: 'tiny-llama',
  })
  await adapter.save(folder)
  for (const name of ['adapter_config.json', 'adapter_model.safetensors'])
    t.deepEqual(await readFile(join(folder, name)), await readFile(join(golden('heddle-adapter'), name)))
})

for (const name of ['peft-all-linear', 'peft-patterns'])
  test(`${name}: a saved folder loads again with the same logits`, async (t) => {
    const folder = temporaryFolder()
    const model = await goldenLlama('tiny-llama')
    const ids = await goldenIds()
    const adapter = await Adapter.load(model, golden(name))
    await adapter.save(folder)
    const other = await goldenLlama('tiny-llama')
    const again = await Adapter.load(other, folder)
    t.is(await relativeError(await logits(other, ids, again), await logits(model, ids, adapter)), 0)
  })

test('a saved config has the fields that PEFT reads, sorted', async (t) => {
  const folder = temporaryFolder()
  const model = await goldenLlama('tiny-llama')
  const adapter = await Adapter.attach(model, lora({ r: 4, lora_alpha: 16, use_rslora: true }), {
    baseModel: 'some/base',
  })
  await adapter.save(folder)
  const config = JSON.parse(await readFile(join(folder, 'adapter_config.json'), 'utf8')) as Record<string, unknown>
  t.deepEqual(Object.keys(config), Object.keys(config).toSorted())
  t.like(config, {
    peft_type: 'LORA',
    base_model_name_or_path: 'some/base',
    r: 4,
    lora_alpha: 16,
    use_rslora: true,
    inference_mode: true,
    target_modules: ['down_proj', 'gate_proj', 'k_proj', 'o_proj', 'q_proj', 'up_proj', 'v_proj'],
  })
})

for (const [field, value] of [
  ['use_qalora', true],
  ['target_parameters', ['experts.weight']],
  ['init_lora_weights', 'loftq'],
  ['init_lora_weights', 'pissa_niter_4'],
] as const)
  test(`an adapter that needs what plain LoRA is not is refused by the field: ${field} ${String(value)}`, async (t) => {
    const folder = temporaryFolder()
    await cp(golden('peft-regex'), folder, { recursive: true })
    const path = join(folder, 'adapter_config.json')
    const config = JSON.parse(await readFile(path, 'utf8')) as Record<string, unknown>
    await writeFile(path, JSON.stringify({ ...config, [field]: value }))
    await t.throwsAsync(Adapter.load(await goldenLlama('tiny-llama'), folder), {
      code: 'ERR_HEDDLE_FORMAT',
      message: new RegExp(field),
    })
  })

test('a pattern that is no regular expression is refused by the option', async (t) => {
  const model = await goldenLlama('tiny-llama')
  const patterns = { layers_to_transform: 0, layers_pattern: '(' }
  for (const options of [
    { target_modules: '(' },
    { target_modules: ['q_proj'], ...patterns },
    { rank_pattern: { '(': 2 } },
  ])
    await t.throwsAsync(Adapter.attach(model, lora(options)), { code: 'ERR_HEDDLE_ARGUMENT', message: /\(/ })
})

interface TargetCase {
  readonly base: string
  readonly options: LoraOptions
  readonly error?: string
  readonly sites?: readonly string[]
  readonly ranks?: Readonly<Record<string, number>>
  readonly trainable?: number
}

for (const [name, spec] of Object.entries(
  goldenJson<{ targets: Record<string, TargetCase> }>('peft.golden.json').targets,
)) {
  const { target_modules } = spec.options
  // PEFT's own default is not offered here.
  if (target_modules === undefined || target_modules === null) continue
  test(`PEFT's choice of modules: ${name}`, async (t) => {
    const model = await goldenLlama(spec.base)
    const attach = async () => Adapter.attach(model, lora({ r: 4, ...spec.options }))
    if (spec.error) return void (await t.throwsAsync(attach(), { instanceOf: HeddleError }))
    const adapter = await attach()
    t.deepEqual([...adapter.sitePaths].sort(), [...spec.sites!].sort())
    t.is(adapter.parameterCount, spec.trainable!)
  })
}

test('a folder whose tensors belong to other modules is refused', async (t) => {
  const folder = temporaryFolder()
  const model = await goldenLlama('tiny-llama')
  const adapter = await Adapter.attach(model, lora({ r: 4, target_modules: ['q_proj'] }))
  await adapter.save(folder)
  const path = join(folder, 'adapter_config.json')
  const config = JSON.parse(await readFile(path, 'utf8')) as Record<string, unknown>
  await writeFile(path, JSON.stringify({ ...config, target_modules: ['k_proj'] }))
  await t.throwsAsync(Adapter.load(model, folder), { code: 'ERR_HEDDLE_FORMAT', message: /q_proj/ })
})

test('list entries match whole names at the end of a path, not parts of them', async (t) => {
  const { sites } = await goldenLlama('tiny-llama')
  const paths = (targets: string | string[]) => selectSites(sites.values(), targets).map(({ path }) => path)
  t.deepEqual(paths(['self_attn.q_proj']), ['model.layers.0.self_attn.q_proj', 'model.layers.1.self_attn.q_proj'])
  t.deepEqual(paths(String.raw`.*\.1\.mlp\.(up|down)_proj`), [
    'model.layers.1.mlp.up_proj',
    'model.layers.1.mlp.down_proj',
  ])
  t.is(paths('ALL-LINEAR').length, 14)
  t.throws(() => paths(['proj']), { code: 'ERR_HEDDLE_ARGUMENT', message: /q_proj/ })
})

test('an unknown option is refused with the nearest name', (t) => {
  t.throws(() => lora({ lora_alfa: 3 } as object), { code: 'ERR_HEDDLE_ARGUMENT', message: /lora_alpha/ })
  t.throws(() => lora({ r: 0 }), { code: 'ERR_HEDDLE_ARGUMENT', message: /lora\.r/ })
})
