// Preference tuning: trl's losses and gradients, the reference without a second model, rows, and what is learned.

import { writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import test from 'ava'
import { Adapter } from '../lib/adapters/adapter.js'
import { collate } from '../lib/data/collate.js'
import { gradients } from '../lib/graph/grad.js'
import { div, square } from '../lib/graph/ops/elementwise.js'
import { sum } from '../lib/graph/ops/reduce.js'
import { program } from '../lib/graph/program.js'
import { read } from '../lib/graph/sym.js'
import { adamw, dpo, evaluate, HeddleError, type Objective, orpo, train } from '../lib/index.js'
import type { CausalLm } from '../lib/models/causal_lm.js'
import { batchTensors, namedInputs } from '../lib/objectives/batch_tensors.js'
import type { PreferenceEvaluation } from '../lib/objectives/dpo.js'
import type { PreferenceBatch, PreferencePair } from '../lib/objectives/preference_pairs.js'
import { golden, goldenJson, goldenLlama } from './golden.js'
import { temporaryFolder } from './support/temporary_folder.js'
import { tinyModel } from './tiny_model.js'

interface Case {
  readonly losses: readonly number[]
  readonly chosen: readonly number[]
  readonly rejected: readonly number[]
  readonly gradient_norms: Readonly<Record<string, number>>
  readonly gradient: { readonly name: string; readonly values: readonly number[] }
}

interface Golden {
  readonly beta: number
  readonly pairs: readonly Readonly<Record<'prompt' | 'chosen' | 'rejected', readonly number[]>>[]
  readonly cases: Readonly<Record<string, Case>>
}

type Preferences = Objective<CausalLm, PreferenceBatch, PreferenceEvaluation>

const { beta, pairs, cases } = goldenJson<Golden>('dpo.json')

/** The golden pairs, and `filling` rows of nothing as the last batch of an epoch has them. */
function goldenBatch(filling = 0): PreferenceBatch {
  const examples: (PreferencePair | undefined)[] = pairs.map(({ prompt, chosen, rejected }) => {
    const sequence = (answer: readonly number[]) => {
      const ids = Int32Array.from([...prompt, ...answer])
      return { ids, loss: new Uint8Array(ids.length).fill(1, prompt.length) }
    }
    return { chosen: sequence(chosen), rejected: sequence(rejected) }
  })
  examples.push(...Array.from({ length: filling }, () => undefined))
  const rows = [...examples.map((pair) => pair?.chosen), ...examples.map((pair) => pair?.rejected)]
  return { ...collate(rows, { maxLength: 32, padId: 0 }), pairs: examples }
}

const plain = { precision: 'f32', training: false } as const

const objectives: Readonly<Record<string, Preferences>> = {
  sigmoid: dpo({ beta }),
  'sigmoid smoothed': dpo({ beta, labelSmoothing: 0.1 }),
  hinge: dpo({ beta, lossType: 'hinge' }),
  ipo: dpo({ beta, lossType: 'ipo' }),
  orpo: orpo({ beta }),
}

for (const [name, objective] of Object.entries(objectives))
  test(`${name}: loss and gradients of trl's formula, padding left out`, async (t) => {
    const network = await goldenLlama('tiny-llama')
    const adapter = await Adapter.load(network, golden('peft-all-linear'))
    const expected = cases[name]!
    const parameters = adapter.parameters()
    const names = [...parameters.keys()]
    const step = program(async (...arrays) => {
      const forward = { ...plain, hook: adapter.hook }
      const loss = div(await objective.loss(network, namedInputs(objective, arrays), forward), pairs.length)
      const found = await gradients(loss, [...parameters.values()].map(read))
      const chosen = found[names.indexOf(expected.gradient.name)]!
      return { loss, norms: found.map((each) => sum(square(each))), chosen }
    })
    const { loss, norms, chosen } = await step(...batchTensors(objective, goldenBatch(1)))
    const mean = expected.losses.reduce((a, b) => a + b) / pairs.length
    t.true(Math.abs(loss.item() / mean - 1) < 1e-5, `${loss.item()}, should be ${mean}`)
    for (const [i, key] of names.entries()) {
      const [norm, should] = [Math.sqrt(norms[i]!.item()), expected.gradient_norms[key]!]
      t.true(Math.abs(norm - should) < 1e-4 * should + 1e-7, `${key}: norm ${norm}, should be ${should}`)
    }
    const values = (await chosen.data()) as Float32Array
    const scale = Math.max(...expected.gradient.values.map(Math.abs))
    for (const [i, should] of expected.gradient.values.entries())
      t.true(Math.abs(values[i]! - should) < 1e-4 * scale, `element ${i}: ${values[i]}, should be ${should}`)
  })

test('rewards, margin and accuracy are those of trl', async (t) => {
  const network = await goldenLlama('tiny-llama')
  const adapter = await Adapter.load(network, golden('peft-all-linear'))
  const objective = dpo({ beta })
  const scores = program((...arrays) =>
    objective.scores(network, namedInputs(objective, arrays), { ...plain, hook: adapter.hook }),
  )
  const batch = goldenBatch(1)
  const found = await scores(...batchTensors(objective, batch))
  const board = objective.scoreboard(network)
  board.add(
    batch,
    Object.fromEntries(Object.entries(found).map(([name, each]) => [name, Float32Array.of(each.item())])),
  )
  const result = await board.result()
  const mean = (list: readonly number[]): number => list.reduce((a, b) => a + b) / list.length
  const { chosen, rejected } = cases.sigmoid!
  t.true(Math.abs(result.rewardChosen - mean(chosen)) < 1e-4)
  t.true(Math.abs(result.rewardRejected - mean(rejected)) < 1e-4)
  t.true(Math.abs(result.rewardMargin - mean(chosen) + mean(rejected)) < 2e-4)
  t.is(result.rewardAccuracy, chosen.filter((value, i) => value > rejected[i]!).length / pairs.length)
  t.is(result.pairs, pairs.length)
})

/** Pairs that teach to answer in capitals. */
async function capitals(count = 24): Promise<string> {
  const path = join(temporaryFolder(), 'pairs.jsonl')
  const rows = Array.from({ length: count }, (_, i) => {
    const word = ['sea', 'sky', 'sun', 'ash'][i % 4]!
    return { prompt: `${i} `, chosen: word.toUpperCase(), rejected: word }
  })
  await writeFile(path, rows.map((row) => JSON.stringify(row)).join('\n'))
  return path
}

for (const objective of [dpo({ beta: 0.5 }), dpo({ beta: 0.5, precomputeReference: true }), orpo({ beta: 0.5 })])
  test(`training widens the margin: ${objective.name} ${JSON.stringify(objective.config)}`, async (t) => {
    const model = await tinyModel()
    const margins: number[] = []
    const steps = train(model, {
      objective,
      data: await capitals(),
      evaluationFraction: 0.25,
      epochs: 6,
      batchSize: 4,
      maxLength: 32,
      evalOnStart: true,
      optimizer: adamw({ lr: 1e-2 }),
      onEvaluation: ({ evaluation }) => margins.push(evaluation.rewardMargin),
    })
    for await (const { loss } of steps) t.true(Number.isFinite(loss))
    t.true(margins.at(-1)! > margins[0]! + 0.5, `${margins}`)
    await model.dispose()
  })

test('a reference computed before gives the very step of one computed along', async (t) => {
  const losses = async (precomputeReference: boolean): Promise<number[]> => {
    const model = await tinyModel()
    const found: number[] = []
    const objective = dpo({ precomputeReference })
    for await (const { loss } of train(model, { objective, data: await capitals(8), maxSteps: 3, maxLength: 32 }))
      found.push(loss)
    await model.dispose()
    return found
  }
  const [along, before] = [await losses(false), await losses(true)]
  for (const [i, loss] of along.entries()) t.true(Math.abs(loss - before[i]!) < 1e-5, `${along} and ${before}`)
})

test('without an adapter the model is its own reference: training all weights needs it computed before', async (t) => {
  const model = await tinyModel()
  const options = { data: await capitals(8), full: true, maxSteps: 1, maxLength: 32 }
  await t.throwsAsync(train(model, { ...options, objective: dpo() }).next(), {
    instanceOf: HeddleError,
    code: 'ERR_HEDDLE_ARGUMENT',
    message: /precomputeReference/,
  })
  const { value } = await train(model, { ...options, objective: dpo({ precomputeReference: true }) }).next()
  t.true(Math.abs(value!.loss - Math.log(2)) < 1e-5)
  await model.dispose()
})

test('the base model scores itself as its reference: no reward, a loss of log 2', async (t) => {
  const model = await tinyModel()
  const result = await evaluate(model, await capitals(6), { objective: dpo(), maxLength: 32 })
  t.like(result, { rewardChosen: 0, rewardRejected: 0, rewardMargin: 0, pairs: 6 })
  t.true(Math.abs(result.loss - Math.log(2)) < 1e-6)
  await model.dispose()
})

test('rows that are no pairs are listed; the answer alone counts', async (t) => {
  const model = await tinyModel()
  const path = join(temporaryFolder(), 'mixed.jsonl')
  const rows = [{ prompt: 'ab', chosen: 'cd', rejected: 'e' }, { prompt: 'ab', chosen: 'cd' }, { text: 'no' }]
  await writeFile(path, rows.map((row) => JSON.stringify(row)).join('\n'))
  const options = { tokenizer: model.tokenizer, network: model.network, maxLength: 32, evaluationFraction: 0, seed: 0 }
  const data = await dpo().open(path, options)
  t.is(data.size, 1)
  t.deepEqual(
    (data as unknown as { skipped: { line: number }[] }).skipped.map(({ line }) => line),
    [2, 3],
  )
  const { value: batch } = await data.batches({ batchSize: 1 }).next()
  const targets = (batch as PreferenceBatch).targets
  t.deepEqual([...targets.subarray(0, 5)], [-100, 1 + 99, 1 + 100, 0, -100])
  t.deepEqual([...targets.subarray(32, 36)], [-100, 1 + 101, 0, -100])
  await model.dispose()
})

test('options of dpo are checked, with the nearest name', (t) => {
  const refusal = { instanceOf: HeddleError, code: 'ERR_HEDDLE_ARGUMENT' }
  t.throws(() => dpo({ betta: 1 } as object), { ...refusal, message: /Did you mean "beta"/ })
  t.throws(() => dpo({ labelSmoothing: 0.5 }), { ...refusal, message: /labelSmoothing/ })
})
