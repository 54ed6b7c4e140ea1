// Training: the numbers of PEFT and torch, accumulation, the loop's options, evaluation, and what is refused.

import { existsSync } from 'node:fs'
import { readdir, readFile } from 'node:fs/promises'
import { join } from 'node:path'
import test from 'ava'
import { Adapter } from '../lib/adapters/adapter.js'
import type { Batch } from '../lib/data/dataset.js'
import { Dataset } from '../lib/data/dataset.js'
import { HeddleError, lora, type Model } from '../lib/index.js'
import { causalLm } from '../lib/objectives/causal_lm.js'
import { adamw } from '../lib/optim/adamw.js'
import { clipByGlobalNorm } from '../lib/optim/clip.js'
import { chain } from '../lib/optim/gradient_transform.js'
import { constantSchedule, cosineSchedule, linearSchedule } from '../lib/optim/schedule.js'
import { sgd } from '../lib/optim/sgd.js'
import { trainingStep } from '../lib/optim/training_step.js'
import type { Tensor } from '../lib/tensor/tensor.js'
import { evaluate } from '../lib/train/evaluate.js'
import { History } from '../lib/train/history.js'
import { type TrainStep, train } from '../lib/train/train.js'
import { golden, goldenJson, goldenLlama, goldenTensors, relativeError } from './golden.js'
import { temporaryFolder } from './support/temporary_folder.js'
import { textFile, tinyDataset, tinyModel } from './tiny_model.js'

interface PeftTraining {
  readonly training: {
    readonly optimizer: { readonly lr: number; readonly eps: number; readonly weight_decay: number }
    readonly clip: number
    readonly losses: readonly number[]
    readonly gradient_norms: readonly number[]
  }
}

/** The batch of the golden files: labels shifted, no padding. */
async function goldenBatch(): Promise<Batch> {
  const tensors = await goldenTensors('tiny-llama.golden.safetensors')
  const ids = (await tensors.get('ids')!.data()) as Int32Array
  const targets = (await tensors.get('targets')!.data()) as Int32Array
  const [rows, length] = tensors.get('targets')!.shape as [number, number]
  const inputIds = new Int32Array(rows * length)
  for (let row = 0; row < rows; row += 1)
    inputIds.set(ids.subarray(row * (length + 1), row * (length + 1) + length), row * length)
  const tokens = targets.filter((target) => target >= 0).length
  return { rows, length, inputIds, targets, segments: new Int32Array(rows * length), tokens }
}

const values = async (tensors: Iterable<Tensor>): Promise<number[][]> =>
  Promise.all([...tensors].map(async (each) => Array.from((await each.data()) as Float32Array)))

async function collect(model: Model, options: Parameters<typeof train>[1]): Promise<TrainStep[]> {
  const steps: TrainStep[] = []
  for await (const step of train(model, options)) steps.push(step)
  return steps
}

const refusal = { instanceOf: HeddleError, code: 'ERR_HEDDLE_ARGUMENT' }

test("five AdamW steps give PEFT's losses, gradient norms and final weights", async (t) => {
  const network = await goldenLlama('tiny-llama')
  const adapter = await Adapter.load(network, golden('peft-all-linear'))
  const { optimizer, clip, losses, gradient_norms: norms } = goldenJson<PeftTraining>('peft.golden.json').training
  const { lr, eps, weight_decay: weightDecay } = optimizer
  const parameters = adapter.parameters()
  const step = await trainingStep({
    network,
    objective: causalLm(),
    hook: adapter.hook,
    parameters: [...parameters.values()],
    optimizer: chain(clipByGlobalNorm(clip), adamw({ lr, eps, weightDecay })),
  })
  const batch = await goldenBatch()
  for (const [i, norm] of norms.entries()) {
    const { loss, gradientNorm } = await step.run({ batches: [batch], step: i + 1, learningRate: lr })
    t.true(Math.abs(loss / losses[i]! - 1) < 1e-4, `loss ${loss} at step ${i + 1}, PEFT has ${losses[i]}`)
    t.true(Math.abs(gradientNorm / norm - 1) < 1e-3, `norm ${gradientNorm} at step ${i + 1}, PEFT has ${norm}`)
  }
  const expected = await goldenTensors('peft-all-linear.training.safetensors')
  for (const [name, parameter] of parameters) {
    const error = await relativeError(parameter, expected.get(`final.base_model.model.${name}`)!)
    t.true(error < 1e-3, `${name} is ${error} off`)
  }
  step.dispose()
})

for (const accumulation of [2, 3])
  test(`${accumulation} accumulated batches train as one batch of their rows`, async (t) => {
    const run = async (batchSize: number, batches: number): Promise<number[][]> => {
      const model = await tinyModel()
      const adapter = await model.attach(lora({ r: 4 }), { seed: 3 })
      const data = await tinyDataset(model)
      const step = await trainingStep({
        network: model.network,
        objective: causalLm(),
        hook: adapter.hook,
        parameters: [...adapter.parameters().values()],
        optimizer: adamw(),
        accumulation: batches,
      })
      const all = data.batches({ batchSize, seed: 5 })
      for (let index = 1; index <= 2; index += 1) {
        const given: Batch[] = []
        while (given.length < batches) given.push((await all.next()).value as Batch)
        await step.run({ batches: given, step: index, learningRate: 1e-2 })
      }
      step.dispose()
      const result = await values(adapter.parameters().values())
      await model.dispose()
      return result
    }
    const [split, whole] = [await run(2, accumulation), await run(2 * accumulation, 1)]
    for (const [i, part] of whole.entries())
      for (const [j, value] of part.entries()) t.true(Math.abs(split[i]![j]! - value) < 2e-5)
  })

test('training lowers the loss of what it is trained on', async (t) => {
  const model = await tinyModel()
  const adapter = await model.attach(lora({ r: 8, lora_alpha: 16 }))
  const data = await tinyDataset(model)
  const before = await evaluate(model, data, { adapter })
  await collect(model, { data, epochs: 2, optimizer: adamw({ lr: 2e-2 }) })
  const after = await evaluate(model, data, { adapter })
  t.true(after.loss < 0.8 * before.loss, `${before.loss} → ${after.loss}`)
  await model.dispose()
})

test('steps are numbered, their number is known, and the learning rate warms up and decays', async (t) => {
  const model = await tinyModel()
  await model.attach(lora({ r: 2 }))
  const data = await tinyDataset(model)
  const steps = await collect(model, { data, maxSteps: 6, warmupSteps: 2, optimizer: adamw({ lr: 1e-3 }) })
  t.deepEqual(
    steps.map(({ index, total }) => [index, total]),
    [1, 2, 3, 4, 5, 6].map((index) => [index, 6]),
  )
  const rates = steps.map(({ learningRate }) => learningRate)
  t.deepEqual(rates.slice(0, 3), [0.5e-3, 1e-3, 1e-3])
  t.true(rates[3]! > rates[4]! && rates[4]! > rates[5]! && rates[5]! > 0)
  t.true(steps.every(({ tokens, seconds, gradientNorm }) => tokens > 0 && seconds > 0 && gradientNorm > 0))
  await model.dispose()
})

test('an epoch sees every batch once, also when its last step has fewer of them', async (t) => {
  const model = await tinyModel()
  await model.attach(lora({ r: 2 }))
  const data = await tinyDataset(model)
  const batches = data.batchCount(2)
  const steps = await collect(model, { data, epochs: 2, batchSize: 2, accumulation: 4 })
  t.is(steps.length, 2 * Math.ceil(batches / 4))
  t.deepEqual([...new Set(steps.map(({ epoch }) => epoch))], [1, 2])
  // Sequences share a token with their neighbour: the inputs are all tokens but one each.
  t.is(
    steps.reduce((total, { tokens }) => total + tokens, 0),
    2 * (data.tokens - data.size),
  )
  await model.dispose()
})

test('the same seed gives the same numbers, dropout included; another seed others', async (t) => {
  const run = async (seed: number): Promise<number[]> => {
    const model = await tinyModel()
    const method = lora({ r: 4, lora_dropout: 0.3 })
    const steps = await collect(model, { data: await tinyDataset(model), method, maxSteps: 4, seed })
    await model.dispose()
    return steps.map(({ loss }) => loss)
  }
  const [first, again, other] = [await run(1), await run(1), await run(2)]
  t.deepEqual(again, first)
  t.notDeepEqual(other, first)
})

test('without an adapter a fresh LoRA is attached and trained', async (t) => {
  const model = await tinyModel()
  await collect(model, { data: await tinyDataset(model), maxSteps: 1 })
  t.is(model.adapters.length, 1)
  t.is(model.adapters[0]!.method.config.r, 16)
  await model.dispose()
})

test('full training changes the weights themselves, the tied output with them', async (t) => {
  const model = await tinyModel()
  const data = await tinyDataset(model)
  const before = await evaluate(model, data)
  await collect(model, { data, full: true, epochs: 2, optimizer: adamw({ lr: 1e-2 }) })
  const after = await evaluate(model, data)
  t.true(after.loss < 0.8 * before.loss, `${before.loss} → ${after.loss}`)
  t.is(model.network.outputSite.weight, model.network.sites.get('model.embed_tokens')!.weight)
  await model.dispose()
})

test('held-out data are scored when due and after the last step', async (t) => {
  const model = await tinyModel()
  const data = await tinyDataset(model, 32, 0.2)
  const steps = await collect(model, { data, maxSteps: 5, evaluateEvery: 2 })
  t.deepEqual(
    steps.map(({ evaluation }) => evaluation !== undefined),
    [false, true, false, true, true],
  )
  const last = steps.at(-1)!.evaluation!
  const again = await evaluate(model, data.evaluation!, { adapter: model.adapters[0], batchSize: 4 })
  t.is(again.loss, last.loss)
  t.is(last.perplexity, Math.exp(last.loss))
  await model.dispose()
})

test('evaluation does not depend on the batch size', async (t) => {
  const model = await tinyModel()
  const data = await tinyDataset(model)
  const [one, many] = [await evaluate(model, data, { batchSize: 1 }), await evaluate(model, data, { batchSize: 16 })]
  t.is(one.tokens, many.tokens)
  t.true(Math.abs(one.loss - many.loss) < 1e-5)
  await model.dispose()
})

test('an output folder gets the adapter as a PEFT folder', async (t) => {
  const model = await tinyModel()
  const outputFolder = join(temporaryFolder(), 'out')
  await collect(model, { data: await tinyDataset(model), maxSteps: 2, outputFolder })
  const loaded = await model.loadAdapter(outputFolder)
  t.deepEqual(await values(loaded.parameters().values()), await values(model.adapters[0]!.parameters().values()))
  await model.dispose()
})

test('a run that is left early frees what it holds and can be followed by another', async (t) => {
  const model = await tinyModel()
  const data = await tinyDataset(model)
  for await (const { index } of train(model, { data, maxSteps: 4 })) if (index === 2) break
  t.is((await collect(model, { data, maxSteps: 2 })).length, 2)
  await model.dispose()
})

test('a signal stops the run after its step and leaves a checkpoint of it', async (t) => {
  const model = await tinyModel()
  const outputFolder = temporaryFolder()
  const abort = new AbortController()
  const seen: number[] = []
  const data = await tinyDataset(model)
  await t.throwsAsync(
    async () => {
      for await (const { index } of train(model, { data, maxSteps: 9, outputFolder, signal: abort.signal })) {
        seen.push(index)
        if (index === 3) abort.abort()
      }
    },
    { instanceOf: HeddleError, code: 'ERR_HEDDLE_ABORTED' },
  )
  t.deepEqual(seen, [1, 2, 3])
  t.deepEqual(await readdir(join(outputFolder, 'checkpoints')), ['step-00000003'])
  t.false(existsSync(join(outputFolder, 'adapter_config.json')))
  await model.dispose()
})

test('a signal during an evaluation stops after the step that it belongs to', async (t) => {
  const model = await tinyModel()
  const data = await tinyDataset(model, 32, 0.5)
  const abort = new AbortController()
  const steps: TrainStep[] = []
  const all = train(model, { data, maxSteps: 5, evaluateEvery: 1, signal: abort.signal })
  steps.push((await all.next()).value as TrainStep)
  const second = all.next()
  setImmediate(() => abort.abort())
  steps.push((await second).value as TrainStep)
  t.truthy(steps[0]!.evaluation)
  await t.throwsAsync(all.next(), { code: 'ERR_HEDDLE_ABORTED' })
  await model.dispose()
})

test('misuse is refused with the option, before anything runs', async (t) => {
  const model = await tinyModel()
  const data = await textFile()
  const next = (options: object) => train(model, { data, ...options }).next()
  await t.throwsAsync(next({ epochss: 2 }), { ...refusal, message: /Did you mean "epochs"/ })
  await t.throwsAsync(next({ batchSize: 0 }), { ...refusal, message: /batchSize/ })
  await t.throwsAsync(next({ epochs: 1, maxSteps: 1 }), { ...refusal, message: /epochs or maxSteps/ })
  await t.throwsAsync(next({ maxLength: 5000 }), { ...refusal, message: /at most 256 tokens/ })
  await t.throwsAsync(next({ resume: true }), { ...refusal, message: /outputFolder/ })
  await t.throwsAsync(next({ data: 3 }), { ...refusal, message: /data/ })
  await model.attach(lora())
  await model.attach(lora())
  await t.throwsAsync(next({}), { ...refusal, message: /has 2/ })
  await model.dispose()
})

test('the event loop turns while a model trains', async (t) => {
  const model = await tinyModel()
  const data = await Dataset.open(await textFile(), model.tokenizer, { maxLength: 64 })
  let turns = 0
  const timer = setInterval(() => {
    turns += 1
  }, 1)
  await collect(model, { data, maxSteps: 5 })
  clearInterval(timer)
  t.true(turns > 5)
  await model.dispose()
})

test('schedules: warm-up reaches 1, the first step after it is whole, the last is not zero', (t) => {
  for (const make of [constantSchedule, cosineSchedule, linearSchedule]) {
    const factor = make(4)
    t.deepEqual(
      [1, 2, 3, 4, 5].map((step) => factor(step, 20)),
      [0.25, 0.5, 0.75, 1, 1],
    )
    t.true(factor(20, 20) > 0)
    t.is(make()(1, 1), 1)
  }
  t.is(linearSchedule()(11, 20), 0.5)
  t.true(Math.abs(cosineSchedule()(11, 20) - 0.5) < 1e-12)
})

test('a run stops after so many evaluations without improvement, and ends with the best parameters', async (t) => {
  const model = await tinyModel()
  const outputFolder = join(temporaryFolder(), 'out')
  const data = await tinyDataset(model, 32, 0.3)
  // At this rate nothing moves, and no evaluation is better than the first.
  const steps = await collect(model, {
    data,
    maxSteps: 20,
    evaluateEvery: 1,
    optimizer: sgd({ lr: 1 }),
    parameterGroups: [{ params: 'lora_[AB]', lr: 1e-30 }],
    earlyStoppingPatience: 3,
    loadBestModelAtEnd: true,
    saveTotalLimit: 1,
    outputFolder,
  })
  t.is(steps.length, 4)
  const names = (await readdir(join(outputFolder, 'checkpoints'))).sort()
  t.deepEqual(names, ['step-00000001', 'step-00000004'])
  await model.dispose()
})

test('the parameters of the best evaluation are the result, not the last ones', async (t) => {
  const model = await tinyModel()
  const outputFolder = join(temporaryFolder(), 'out')
  const data = await tinyDataset(model, 32, 0.3)
  const evaluations: number[] = []
  // Told that a high loss is good, the run takes its first step for the best of all.
  await collect(model, {
    data,
    maxSteps: 6,
    evaluateEvery: 1,
    optimizer: adamw({ lr: 1e-2 }),
    loadBestModelAtEnd: true,
    greaterIsBetter: true,
    outputFolder,
    onEvaluation: ({ evaluation }) => evaluations.push(evaluation.loss),
  })
  const best = Math.max(...evaluations)
  t.true(best > evaluations.at(-1)!, `${evaluations}`)
  const result = await evaluate(model, data.evaluation!, { adapter: model.adapters[0], batchSize: 4 })
  t.is(result.loss, best)
  const loaded = await model.loadAdapter(outputFolder)
  t.deepEqual(await values(loaded.parameters().values()), await values(model.adapters[0]!.parameters().values()))
  await model.dispose()
})

test('metrics.jsonl has a line for each step: loss, rate, gradient norm, speed, memory, evaluation, samples', async (t) => {
  const model = await tinyModel()
  const outputFolder = join(temporaryFolder(), 'out')
  const options = { data: await tinyDataset(model, 32, 0.3), maxSteps: 2, evaluateEvery: 2, outputFolder }
  const steps = await collect(model, { ...options, evalOnStart: true, samplePrompts: ['A st'], sampleMaxTokens: 4 })
  const lines = (await readFile(join(outputFolder, 'metrics.jsonl'), 'utf8'))
    .trim()
    .split('\n')
    .map((line) => JSON.parse(line))
  t.is(lines.length, 3)
  t.is(lines[0].after, 0)
  t.true(lines[0].evaluation.loss > 0)
  t.deepEqual(
    lines.slice(1).map(({ step }) => step),
    JSON.parse(JSON.stringify(steps)),
  )
  const { residentBytes, plannedBytes, tokensPerSecond, evaluation, samples } = steps[1]!
  for (const number of [residentBytes, plannedBytes, tokensPerSecond]) t.true(number > 0)
  t.true(plannedBytes < residentBytes)
  t.true(evaluation!.perplexity > 1)
  t.is(samples![0]!.prompt, 'A st')
  t.deepEqual((await History.open(outputFolder, { resume: true })).samples.at(-1), { step: 2, samples })
  await model.dispose()
})

test('accuracy per token is 1 for a text that was learned by heart', async (t) => {
  const model = await tinyModel()
  const data = await Dataset.open(await textFile('abcdefgh '.repeat(30)), model.tokenizer, { maxLength: 32 })
  await collect(model, { data, epochs: 12, batchSize: 2, optimizer: adamw({ lr: 1e-2 }) })
  const objective = causalLm({ accuracy: true })
  const before = await evaluate(model, data, { objective })
  const after = await evaluate(model, data, { objective, adapter: model.adapters[0] })
  t.true(before.accuracy! < 0.5 && after.accuracy! > 0.9, `${before.accuracy} → ${after.accuracy}`)
  const plain = await evaluate(model, data, { adapter: model.adapters[0] })
  t.is(plain.loss, after.loss)
  await model.dispose()
})

test('LoRA+ trains B faster; groups and schedules of a run are checked with the nearest name', async (t) => {
  const run = async (loraplusLrRatio?: number): Promise<number[][]> => {
    const model = await tinyModel()
    const options = { maxSteps: 1, optimizer: sgd({ lr: 1 }), clip: 0, loraplusLrRatio }
    await collect(model, { data: await tinyDataset(model), ...options })
    const found = await values(model.adapters[0]!.parameters().values())
    await model.dispose()
    return found
  }
  const [plain, plus] = [await run(), await run(4)]
  // B starts at zero, so that after one step of plain descent it is the rate times its gradient.
  const index = plain.findIndex((_, i) => i % 2 === 1)
  for (const [i, value] of plain[index]!.entries())
    t.true(Math.abs(plus[index]![i]! - 4 * value) <= 1e-5 * Math.abs(4 * value) + 1e-9)
  t.deepEqual(plus[index - 1], plain[index - 1])

  const model = await tinyModel()
  const data = await textFile()
  const next = (options: object) => train(model, { data, ...options } as Parameters<typeof train>[1]).next()
  await t.throwsAsync(next({ earlyStopingPatience: 2 }), {
    ...refusal,
    message: /Did you mean "earlyStoppingPatience"/,
  })
  await t.throwsAsync(next({ schedule: 'cosin' }), { ...refusal, message: /"cosine"/ })
  await t.throwsAsync(next({ earlyStoppingPatience: 2 }), { ...refusal, message: /held-out/ })
  await t.throwsAsync(next({ loadBestModelAtEnd: true }), { ...refusal, message: /outputFolder/ })
  await t.throwsAsync(next({ parameterGroups: [{ params: 'nowhere' }] }), { ...refusal, message: /nowhere/ })
  await t.throwsAsync(
    next({ evaluationFraction: 0.3, earlyStoppingPatience: 1, metricForBestModel: 'acuracy', maxSteps: 1 }),
    { ...refusal, message: /one of loss, perplexity, tokens/ },
  )
  await model.dispose()
})
