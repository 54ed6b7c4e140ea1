// Every adapter method through the same cases: what an adapter is, whichever method it is of.
import { readdir } from 'node:fs/promises'
import { fileURLToPath } from 'node:url'
import test from 'ava'
import { Adapter } from '../lib/adapters/adapter.js'
import { asLora } from '../lib/adapters/as_lora.js'
import type { Parametrization } from '../lib/adapters/parametrization.js'
import { parametrizations } from '../lib/adapters/registry.js'
import { HeddleError } from '../lib/errors.js'
import { computed } from '../lib/graph/computed.js'
import { gradients } from '../lib/graph/grad.js'
import { add, mul } from '../lib/graph/ops/elementwise.js'
import { sum } from '../lib/graph/ops/reduce.js'
import { assign, read } from '../lib/graph/sym.js'
import type { Model } from '../lib/model.js'
import type { Network } from '../lib/nn/network.js'
import { causalLm } from '../lib/objectives/causal_lm.js'
import { type Calibration, calibrationOf } from '../lib/observers/calibration.js'
import { adamw } from '../lib/optim/adamw.js'
import { type Tensor, tensor } from '../lib/tensor/tensor.js'
import { train } from '../lib/train/train.js'
import { methodCases } from './conformance/cases/index.js'
import type { MethodCase } from './conformance/method_case.js'
import { callOn, type Subject, subjects } from './conformance/subjects.js'
import { relativeError } from './golden.js'
import { randomNumbers } from './random_numbers.js'
import { disturb, networkOf, numbers } from './support/one_site.js'
import { temporaryFolder } from './support/temporary_folder.js'
import { textFile, tinyDataset, tinyModel } from './tiny_model.js'

const typeOf = ({ method }: MethodCase) => parametrizations.find(({ name }) => name === method)!

const methodOf = (given: MethodCase, config: Readonly<Record<string, unknown>>): Parametrization =>
  (given.make ?? typeOf(given).create)(config)

const llamaTargets = ['q_proj', 'down_proj']

const onTiny = (given: MethodCase): Parametrization =>
  methodOf(given, { ...given.config, target_modules: given.targets ?? llamaTargets })

/** Data to look at, for the methods that do. */
async function calibration(model: Model): Promise<Calibration> {
  return calibrationOf(causalLm(), await tinyDataset(model), { batches: 4, batchSize: 4 }) as Calibration
}

async function attached(given: MethodCase): Promise<{ readonly model: Model; readonly adapter: Adapter }> {
  const model = await tinyModel()
  const adapter = await model.attach(onTiny(given), { seed: 3, calibration: await calibration(model) })
  return { model, adapter }
}

const attachedTo = (subject: Subject, given: MethodCase): Promise<Adapter> => {
  const targets = subject.isEncoder
    ? (given.encoderTargets ?? ['query', 'output.dense'])
    : (given.targets ?? llamaTargets)
  const config = { ...given.config, target_modules: targets, layers_to_transform: [0, 1] }
  return Adapter.attach(subject.network, methodOf(given, config), { seed: 3, calibration: subject.calibration })
}

/** Equal bit for bit. */
async function isSame(a: Tensor, b: Tensor): Promise<boolean> {
  const other = await numbers(b)
  return (await numbers(a)).every((value, i) => Object.is(value, other[i]))
}

/** How far a fresh adapter may move the output, relative to it. */
const initialLimit = { none: 0, rounding: 1e-5, small: 1e-2, any: Number.POSITIVE_INFINITY } as const

test('every registered method has cases here, and every file of cases is listed', async (t) => {
  const missing = parametrizations.filter(({ name }) => !methodCases.some(({ method }) => method === name))
  t.deepEqual(
    missing.map(({ name }) => name),
    [],
  )
  const files = await readdir(fileURLToPath(new URL('./conformance/cases', import.meta.url)))
  const listed = new Set(methodCases)
  for (const file of files.filter((name) => name.endsWith('.js') && name !== 'index.js')) {
    const { cases } = (await import(`./conformance/cases/${file}`)) as { cases: readonly MethodCase[] }
    t.true(
      cases.every((each) => listed.has(each)),
      file,
    )
  }
})

for (const given of methodCases) {
  const title = given.variant ? `${given.method} (${given.variant})` : given.method
  const initialChange = given.initialChange ?? typeOf(given)?.initialChange ?? 'none'

  test.serial(`${title}: ${given.parameterCount} trainable numbers on a tiny Llama`, async (t) => {
    const { model, adapter } = await attached(given)
    t.is(adapter.parameterCount, given.parameterCount)
    await model.dispose()
  })

  for (const { config, shape, parameters } of given.counts)
    test.serial(`${title}: ${parameters} trainable numbers at [${shape}] with ${JSON.stringify(config)}`, (t) => {
      const weight = { shape, size: shape[0] * shape[1], dtype: 'f32' }
      const site = { path: 'model.layers.0.proj', kind: 'linear', weight } as never
      const method = methodOf(given, { ...config, target_modules: ['proj'] })
      const shared = Object.values(method.shared?.([site]) ?? {}).filter(({ isTrained }) => isTrained)
      const all = [...Object.values(method.plan(site).parameters), ...shared]
      t.is(
        all.reduce((total, each) => total + each.shape.reduce((size, n) => size * n, 1), 0),
        parameters,
      )
    })

  test.serial(`${title}: a saved folder gives the same numbers on a fresh base`, async (t) => {
    const { model, adapter } = await attached(given)
    await disturb(adapter, given.noise)
    const folder = temporaryFolder()
    await adapter.save(folder)
    const other = await tinyModel()
    const again = await other.loadAdapter(folder)
    const [wanted, got] = [await callOn(model.network, adapter), await callOn(other.network, again)]
    t.true((await relativeError(got, wanted)) < 1e-5)
    await Promise.all([model.dispose(), other.dispose()])
  })

  if (!given.hasConstants)
    test.serial(`${title}: gradients are those of finite differences`, async (t) => {
      const { model, adapter } = await attached(given)
      await disturb(adapter, given.noise)
      const { slope, difference } = await alongRandomDirection(model.network, adapter)
      t.true(Math.abs(slope - difference) < 0.02 * Math.abs(slope) + 1e-3, `${slope} and ${difference}`)
      await model.dispose()
    })

  test.serial(`${title}: 30 steps lower the loss`, async (t) => {
    const losses = await trained(given, { maxSteps: 30 })
    const mean = (list: readonly number[]): number => list.reduce((total, each) => total + each, 0) / list.length
    t.true(mean(losses.slice(-5)) < mean(losses.slice(0, 5)) - 0.02, losses.join(' '))
  })

  test.serial(`${title}: a run that was stopped goes on bit for bit`, async (t) => {
    const whole = temporaryFolder()
    const losses = await trained(given, { maxSteps: 8, outputFolder: whole })
    const parts = temporaryFolder()
    const first = await trained(given, { maxSteps: 8, outputFolder: parts, stopAfter: 3 })
    const rest = await trained(given, { maxSteps: 8, outputFolder: parts, resume: true })
    t.deepEqual([...first, ...rest], losses)
  })

  for (const { config, message } of given.refused)
    test.serial(`${title}: ${JSON.stringify(config)} is refused`, async (t) => {
      const model = await tinyModel()
      const error = await t.throwsAsync(
        async () =>
          model.attach(methodOf(given, { target_modules: given.targets ?? llamaTargets, ...config }), {
            calibration: await calibration(model),
          }),
        { instanceOf: HeddleError },
      )
      t.regex(`${error!.message}`, message)
      await model.dispose()
    })

  test.serial(`${title}: a module of a kind that it cannot change is refused by name`, async (t) => {
    const weight = tensor([1, 2, 3, 4], [4])
    const network = networkOf([{ path: 'model.layers.0.norm', kind: 'norm', weight }])
    const method = methodOf(given, { ...given.config, target_modules: given.unsuited ?? ['norm'] })
    const error = await t.throwsAsync(async () => Adapter.attach(network, method, {}), { instanceOf: HeddleError })
    t.regex(error!.message, /norm|calibration/)
  })

  for (const { name, load } of subjects) {
    test.serial(`${title} on ${name}: a fresh adapter changes: ${initialChange}`, async (t) => {
      const subject = await load()
      const adapter = await attachedTo(subject, given)
      const [plain, fresh] = [await subject.call(), await subject.call(adapter)]
      const limit = initialLimit[initialChange]
      t.true(limit === 0 ? await isSame(fresh, plain) : (await relativeError(fresh, plain)) <= limit)
      adapter.dispose()
    })

    if (given.neverMerges)
      test.serial(`${title} on ${name}: cannot be merged, and says why`, async (t) => {
        const adapter = await attachedTo(await load(), given)
        const error = await t.throwsAsync(adapter.merge(), { instanceOf: HeddleError })
        t.regex(error!.message, given.neverMerges!)
        adapter.dispose()
      })
    else
      test.serial(`${title} on ${name}: merged weights compute the same, and unmerge is exact`, async (t) => {
        const subject = await load()
        const adapter = await attachedTo(subject, given)
        await disturb(adapter, given.noise)
        const [plain, wanted] = [await subject.call(), await subject.call(adapter)]
        t.true((await relativeError(wanted, plain)) > 1e-4, 'the adapter does something')
        await adapter.merge()
        t.true((await relativeError(await subject.call(), wanted)) < 1e-5)
        adapter.unmerge()
        t.true(await isSame(await subject.call(), plain))
        adapter.dispose()
      })
  }

  test.serial(`${title}: as a plain LoRA it computes the same, where its change is of low rank`, async (t) => {
    const { model, adapter } = await attached(given)
    await disturb(adapter, given.noise)
    if ([...adapter.attachments.values()].some(({ plan }) => !plan?.factors)) {
      await t.throwsAsync(asLora(adapter), { message: /low-rank factors/ })
    } else {
      const plain = await asLora(adapter)
      t.true((await relativeError(await callOn(model.network, plain), await callOn(model.network, adapter))) < 1e-5)
      plain.dispose()
    }
    await model.dispose()
  })
}

/** The slope of a fixed function of the logits along a random direction of the parameters, and its central difference. */
async function alongRandomDirection(network: Network, adapter: Adapter) {
  const trained = [...adapter.parameters().values()]
  const direction = trained.map(({ size, shape }, i) => tensor(Float32Array.from(randomNumbers(size, 71 + i)), shape))
  const weigh = tensor(Float32Array.from(randomNumbers(4096, 7)), [4096])
  using slope = await callOn(network, adapter, async (output) => {
    const found = await gradients(sum(mul(output, read(weigh))), trained.map(read))
    return found.map((each, i) => sum(mul(each, read(direction[i]!)))).reduce((a, b) => add(a, b))
  })
  const move = (size: number) =>
    computed(() => {
      for (const [i, each] of trained.entries()) assign(each, add(read(each), mul(read(direction[i]!), size)))
      return []
    })
  const value = async (): Promise<number> => {
    using result = await callOn(network, adapter, async (output) => sum(mul(output, read(weigh))))
    return result.item()
  }
  const h = 2e-3
  await move(h)
  const above = await value()
  await move(-2 * h)
  const below = await value()
  return { slope: slope.item(), difference: (above - below) / (2 * h) }
}

interface TrainedOptions {
  readonly maxSteps: number
  readonly outputFolder?: string
  readonly stopAfter?: number
  readonly resume?: boolean
}

/** Losses of a run of the method on the tiny model. */
async function trained(given: MethodCase, { stopAfter, ...options }: TrainedOptions): Promise<number[]> {
  const model = await tinyModel()
  const abort = new AbortController()
  const losses: number[] = []
  const data = await textFile()
  try {
    const optimizer = adamw({ lr: given.learningRate ?? 1e-2, weightDecay: 0.01 })
    const shared = { data, maxLength: 32, batchSize: 4, optimizer, signal: abort.signal }
    for await (const { loss, index } of train(model, { ...shared, method: onTiny(given), ...options })) {
      losses.push(loss)
      if (index === stopAfter) abort.abort()
    }
  } catch (error) {
    if (!abort.signal.aborted) throw error
  }
  await model.dispose()
  return losses
}

test.after.always(async () => {
  for (const { load } of subjects) await (await load()).dispose()
})
