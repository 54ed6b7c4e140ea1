// Methods that learn from data before they are attached: what they find is theirs, attaching can be watched and stopped.
import { spawn } from 'node:child_process'
import { readFile, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { text } from 'node:stream/consumers'
import { fileURLToPath } from 'node:url'
import test from 'ava'
import { Adapter } from '../lib/adapters/adapter.js'
import { eva } from '../lib/adapters/methods/eva.js'
import { lamda } from '../lib/adapters/methods/lamda.js'
import { lora } from '../lib/adapters/methods/lora.js'
import { lqLora } from '../lib/adapters/methods/lq_lora.js'
import type { AttachProgress, Parametrization } from '../lib/adapters/parametrization.js'
import { parametrizations } from '../lib/adapters/registry.js'
import { HeddleError } from '../lib/errors.js'
import { computed } from '../lib/graph/computed.js'
import { mul } from '../lib/graph/ops/elementwise.js'
import { read } from '../lib/graph/sym.js'
import type { Model } from '../lib/model.js'
import { causalLm } from '../lib/objectives/causal_lm.js'
import { type Calibration, calibrationOf } from '../lib/observers/calibration.js'
import { zeros } from '../lib/tensor/tensor.js'
import { train } from '../lib/train/train.js'
import { methodCases } from './conformance/cases/index.js'
import { callOn } from './conformance/subjects.js'
import { liveBytes } from './support/live_tensors.js'
import { networkOf, numbers } from './support/one_site.js'
import { temporaryFolder } from './support/temporary_folder.js'
import { textFile, tinyDataset, tinyModel, tinyModelFolder } from './tiny_model.js'

const calibrated = async (model: Model, batches = 4): Promise<Calibration> =>
  calibrationOf(causalLm(), await tinyDataset(model), { batches, batchSize: 4 }) as Calibration

const outputOf = async (model: Model, adapter: Adapter): Promise<number[]> =>
  numbers(await callOn(model.network, adapter))

/** The methods that look at data or at the whole network before they are attached. */
const resolving = methodCases.flatMap(({ method, variant, make, config, targets = ['q_proj', 'down_proj'] }) => {
  const create = make ?? parametrizations.find(({ name }) => name === method)!.create
  const title = variant ? `${method} (${variant})` : method
  const makeMethod = (): Parametrization => create({ ...config, target_modules: targets })
  return makeMethod().resolve ? [{ title, makeMethod }] : []
})

test('these methods look before they are attached', (t) => {
  const names = new Set(resolving.map(({ title }) => title.replace(/ .*/, '')))
  t.deepEqual([...names].sort(), ['compacter', 'diffora', 'eva', 'lamda', 'lora_sb', 'lq_lora', 's2ft', 'svfit'])
})

for (const { title, makeMethod } of resolving)
  test(`${title}: what was found can be attached again, to another model too, and outlives the first adapter`, async (t) => {
    const [first, second] = [await tinyModel(), await tinyModel()]
    const adapter = await first.attach(makeMethod(), { seed: 3, calibration: await calibrated(first) })
    const wanted = await outputOf(first, adapter)
    const found = adapter.method
    const [other, same] = [await second.attach(found, { seed: 3 }), await first.attach(found, { seed: 3 })]
    t.deepEqual(await outputOf(second, other), wanted)
    adapter.dispose()
    t.deepEqual(await outputOf(first, same), wanted)
    await first.dispose()
    t.deepEqual(await outputOf(second, other), wanted)
    await second.dispose()
  })

test('a quantised weight that data decided is attached to no other weight, and no other module', async (t) => {
  const [first, second] = [await tinyModel(), await tinyModel()]
  const method = lqLora({
    num_ranks: 4,
    num_iterations: 2,
    data_aware: true,
    block_size_1: 16,
    target_modules: ['q_proj'],
  })
  const { method: found } = await first.attach(method, { calibration: await calibrated(first) })
  const site = second.network.sites.get('model.layers.1.self_attn.q_proj')!
  site.weight = await computed(() => mul(read(site.weight), 1.01))
  await t.throwsAsync(second.attach(found), {
    message: /^lq_lora: model\.layers\.1\.self_attn\.q_proj: expected the weight that the data was shown with/,
  })
  t.is(second.adapters.length, 0)
})

test('a method that was made for wider modules is refused', async (t) => {
  const model = await tinyModel()
  const path = 'model.layers.0.self_attn.q_proj'
  const { method } = await model.attach(eva({ r: 4, target_modules: [path], eva_config: { rho: 1 } }), {
    calibration: await calibrated(model),
  })
  await t.throwsAsync(Adapter.attach(networkOf([{ path, kind: 'linear', weight: zeros([8, 8]) }]), method), {
    code: 'ERR_HEDDLE_SHAPE',
    message: /q_proj\.lora_A\.weight: expected \[4, 8\], got \[4, 64\]. Was the method made for another model/,
  })
})

const kinds: Readonly<Record<string, AttachProgress['unit']>> = {
  eva: 'modules',
  lora_sb: 'batches',
  lq_lora: 'batches',
  svfit: 'modules',
  lamda: 'modules',
  s2ft: 'batches',
  diffora: 'steps',
}

for (const { title, makeMethod } of resolving.filter(
  ({ title }) => title !== 's2ft' && !title.startsWith('compacter'),
)) {
  test(`${title}: says how far it is`, async (t) => {
    const model = await tinyModel()
    const seen: AttachProgress[] = []
    const onProgress = (progress: AttachProgress): void => {
      seen.push(progress)
    }
    const method = makeMethod()
    await model.attach(method, { calibration: await calibrated(model), onProgress })
    // What EVA attaches is a LoRA.
    t.true(seen.every((each) => [method.name, 'lora'].includes(each.method) && each.done <= each.total))
    const [first, last] = [seen[0]!, seen.at(-1)!]
    t.is(first.unit, kinds[method.name]!)
    t.is(last.done, last.total)
    await model.dispose()
  })

  test.serial(`${title}: an abort leaves nothing attached and no memory`, async (t) => {
    const model = await tinyModel()
    const calibration = await calibrated(model)
    const stopped = async (): Promise<void> => {
      const abort = new AbortController()
      const onProgress = (): void => abort.abort()
      const error = await t.throwsAsync(model.attach(makeMethod(), { calibration, signal: abort.signal, onProgress }), {
        instanceOf: HeddleError,
      })
      t.is(error!.code, 'ERR_HEDDLE_ABORTED')
    }
    // Weights of the checkpoint are read when they are first used.
    await stopped()
    const before = liveBytes()
    for (let i = 0; i < 3; i += 1) await stopped()
    t.is(model.adapters.length, 0)
    t.is(liveBytes(), before)
    await model.dispose()
  })
}

test('a signal that is set refuses at once, whatever the method', async (t) => {
  const model = await tinyModel()
  for (const method of [lora({ r: 4, target_modules: ['q_proj'] }), lamda({ r: 4, target_modules: ['q_proj'] })])
    await t.throwsAsync(model.attach(method, { signal: AbortSignal.abort() }), { code: 'ERR_HEDDLE_ABORTED' })
  t.is(model.adapters.length, 0)
})

const never = { rho: 1, tau: 1, max_batches: 5 }

test('EVA says that components have not converged after max_batches, which is not in the folder', async (t) => {
  const model = await tinyModel()
  const warnings: string[] = []
  const method = eva({ r: 4, target_modules: ['q_proj', 'down_proj'], eva_config: never })
  const adapter = await model.attach(method, {
    calibration: await calibrated(model, 2),
    onWarning: (message) => warnings.push(message),
  })
  t.is(warnings.length, 1)
  t.regex(warnings[0]!, /^eva: 4 of 4 modules have components that had not converged after 5 batches/)
  const folder = temporaryFolder()
  await adapter.save(folder)
  const { eva_config: written } = JSON.parse(await readFile(join(folder, 'adapter_config.json'), 'utf8'))
  t.deepEqual(Object.keys(written), [
    'rho',
    'tau',
    'use_label_mask',
    'label_mask_value',
    'whiten',
    'adjust_scaling_factors',
  ])
  t.throws(() => eva({ eva_config: { max_batches: 0 } }), { message: /max_batches: expected more than 0/ })
})

test.serial('a warning that nobody listens to is a warning of the process', async (t) => {
  const model = await tinyModel()
  const heard = new Promise<Error>((resolve) => process.once('warning', resolve))
  const method = eva({ r: 4, target_modules: ['q_proj'], eva_config: never })
  await model.attach(method, { calibration: await calibrated(model, 2) })
  t.regex((await heard).message, /eva: 2 of 2 modules/)
})

test('train shows the method its data, says how far that is, and stops it', async (t) => {
  const model = await tinyModel()
  const data = await tinyDataset(model)
  const method = (): Parametrization => eva({ r: 4, target_modules: ['q_proj'], eva_config: never })
  const seen: number[] = []
  const warnings: string[] = []
  const callbacks = {
    onAttachProgress: ({ done }: AttachProgress) => seen.push(done),
    onWarning: (message: string) => warnings.push(message),
  }
  for await (const _ of train(model, { method: method(), data, maxSteps: 1, ...callbacks })) void _
  t.is(seen.length >= 5, true)
  t.is(warnings.length, 1)
  const abort = new AbortController()
  const stopping = { onAttachProgress: () => abort.abort(), signal: abort.signal }
  const run = train(model, { method: method(), data, maxSteps: 1, ...stopping })
  await t.throwsAsync(run.next(), { code: 'ERR_HEDDLE_ABORTED' })
  t.is(model.adapters.length, 1)
})

test('heddle train attaches such a method with a bar, from its config file', async (t) => {
  const [model, data, output] = [await tinyModelFolder(), await textFile(), temporaryFolder()]
  const file = join(temporaryFolder(), 'run.yaml')
  await writeFile(
    file,
    `model: ${model}\ndata: ${data}\noutput: ${output}
adapter: { method: eva, r: 4, target_modules: [q_proj, down_proj], eva_config: { tau: 1, max_batches: 5 } }
training: { maxSteps: 2, batchSize: 4, maxLength: 32 }\n`,
  )
  const script = fileURLToPath(new URL('../lib/cli/heddle.js', import.meta.url))
  const child = spawn(process.execPath, [script, 'train', '--config', file, '--json'])
  const exit = new Promise<number | null>((resolve) => child.once('exit', resolve))
  const [stdout, stderr, code] = await Promise.all([text(child.stdout), text(child.stderr), exit])
  t.is(code, 0, stderr)
  t.regex(stderr, /Attaching eva, modules/)
  t.regex(stdout, /"event":"warning","message":"eva: \d of 4 modules have components that had not converged/)
  const config = JSON.parse(await readFile(join(output, 'adapter_config.json'), 'utf8'))
  t.is(config.init_lora_weights, 'eva')
})
