// Optimizers, parameter groups and schedules: the numbers of torch and transformers.

import test from 'ava'
import { add } from '../lib/graph/ops/elementwise.js'
import { program } from '../lib/graph/program.js'
import { assign, read } from '../lib/graph/sym.js'
import {
  adafactor,
  adamw,
  chain,
  clipByGlobalNorm,
  type GradientTransform,
  HeddleError,
  lion,
  loraPlusGroups,
  namedSchedule,
  type ScheduleName,
  type SchedulerOptions,
  sgd,
  withParameterGroups,
} from '../lib/index.js'
import { tensor } from '../lib/tensor/tensor.js'
import { goldenJson } from './golden.js'

type Numbers = Readonly<Record<'matrix' | 'vector', readonly number[]>>

interface Golden {
  readonly start: Numbers
  readonly gradients: readonly Numbers[]
  readonly optimizers: Readonly<Record<string, Numbers>>
  readonly schedules: {
    readonly total: number
    readonly warmup: number
    readonly factors: Readonly<Record<string, readonly number[]>>
  }
}

const golden = goldenJson<Golden>('optim.json')
const shapes = { matrix: [3, 4], vector: [5] } as const
const names = ['matrix', 'vector'] as const

/** The parameters after a step for each of the golden gradients. */
async function trainedBy(rule: GradientTransform): Promise<Numbers> {
  const parameters = names.map((name) => tensor(golden.start[name], shapes[name]))
  const state = await rule.init(parameters)
  const step = program(async (learningRate, index, ...gradients) => {
    const values = parameters.map(read)
    const updates = await state.update(gradients, { step: index!, learningRate: learningRate!, parameters: values })
    for (const [i, parameter] of parameters.entries()) assign(parameter, add(values[i]!, updates[i]!))
    return []
  })
  for (const [index, gradients] of golden.gradients.entries())
    await step(
      tensor([rule.learningRate ?? 1], []),
      tensor([index + 1], []),
      ...names.map((name) => tensor(gradients[name], shapes[name])),
    )
  const [matrix, vector] = await Promise.all(parameters.map(async (each) => [...((await each.data()) as Float32Array)]))
  return { matrix: matrix!, vector: vector! }
}

const rules: Readonly<Record<string, GradientTransform>> = {
  sgd: sgd({ lr: 0.1 }),
  'sgd momentum': sgd({ lr: 0.1, momentum: 0.9, dampening: 0.1, weightDecay: 0.01 }),
  'sgd nesterov': sgd({ lr: 0.1, momentum: 0.9, nesterov: true }),
  adamw: adamw({ lr: 0.1, weightDecay: 0.1 }),
  lion: lion({ lr: 0.1, weightDecay: 0.1 }),
  adafactor: adafactor({ lr: 0.1, weightDecay: 0.1 }),
  groups: withParameterGroups(
    adamw({ lr: 0.1, weightDecay: 0.1 }),
    [{ params: '^mat', lr: 0.3, weightDecay: 0.5 }],
    names,
  ),
}

for (const [name, rule] of Object.entries(rules))
  test(`${name}: five steps give the reference's parameters`, async (t) => {
    const [found, expected] = [await trainedBy(rule), golden.optimizers[name]!]
    // Adam's 1 − β₂ᵗ is computed in f32: 3e-5 of a step's length at the first.
    for (const part of names)
      for (const [i, value] of expected[part].entries())
        t.true(Math.abs(found[part][i]! - value) < 1e-5, `${part}[${i}] is ${found[part][i]}, should be ${value}`)
  })

const kwargs: Partial<Record<ScheduleName, SchedulerOptions>> = {
  cosine_with_restarts: { numCycles: 3 },
  cosine_with_min_lr: { minLrRate: 0.1 },
  polynomial: { power: 2, minLrRate: 0.1 },
  warmup_stable_decay: { minLrRate: 0.1, numDecaySteps: 10 },
}

for (const [name, factors] of Object.entries(golden.schedules.factors))
  test(`${name}: transformers' factors`, (t) => {
    const { total, warmup } = golden.schedules
    const factor = namedSchedule(name as ScheduleName, warmup, total, kwargs[name as ScheduleName])
    for (let step = 1; step <= total; step += 1) {
      // The warm-up of warmup_stable_decay starts at minLrRate there; here every warm-up starts at 0.
      if (name === 'warmup_stable_decay' && step <= warmup) continue
      const expected = factors[step <= warmup ? step : step - 1]!
      t.true(Math.abs(factor(step, total) - expected) < 1e-12, `step ${step}: ${factor(step, total)}, not ${expected}`)
    }
  })

test('the first group whose pattern is found counts, and each keeps its own state', async (t) => {
  const rule = withParameterGroups(
    sgd({ lr: 1, momentum: 0.9 }),
    [
      { params: 'm', lr: 0.5 },
      { params: '.', lr: 2 },
    ],
    names,
  )
  const state = await rule.init(names.map((name) => tensor(golden.start[name], shapes[name])))
  t.deepEqual(Object.keys(state.tensors), ['0.b.0', '1.b.0'])
  t.deepEqual(
    Object.values(state.tensors).map(({ shape }) => shape),
    [[3, 4], [5]],
  )
})

test('LoRA+ lets B learn faster than A', async (t) => {
  const paths = ['q.lora_A.weight', 'q.lora_B.weight']
  const rule = withParameterGroups(sgd({ lr: 0.1 }), loraPlusGroups(0.1, 16), paths)
  const parameters = paths.map(() => tensor([0]))
  const state = await rule.init(parameters)
  const update = program((learningRate, step) =>
    state.update(
      parameters.map(() => add(read(parameters[0]!), 1)),
      { step: step!, learningRate: learningRate!, parameters: parameters.map(read) },
    ),
  )
  const updates = await update(tensor([0.1], []), tensor([1], []))
  t.deepEqual(
    updates.map((each) => each.item().toFixed(4)),
    ['-0.1000', '-1.6000'],
  )
})

test('a chain hands a changed decay to the rule that has one', (t) => {
  const rule = chain(clipByGlobalNorm(1), adamw({ weightDecay: 0.1 })).withWeightDecay!(0)
  t.like(rule.config, { clip: { maxNorm: 1 }, adamw: { weightDecay: 0 } })
})

test('groups that match nothing, or ask for what the rule has not, are refused with their pattern', (t) => {
  const refusal = { instanceOf: HeddleError, code: 'ERR_HEDDLE_ARGUMENT' }
  const groups = (rule: GradientTransform, group: object) => () =>
    withParameterGroups(rule, [{ params: 'nowhere', ...group }], names)
  t.throws(groups(adamw(), {}), { ...refusal, message: /nowhere.*without match/ })
  t.throws(groups(clipByGlobalNorm(1), { params: 'm', weightDecay: 0 }), { ...refusal, message: /weight decay/ })
  t.throws(groups(clipByGlobalNorm(1), { params: 'm', lr: 1 }), { ...refusal, message: /learning rate/ })
  t.throws(groups(adamw(), { params: '(' }), { ...refusal, message: /regular expression/ })
})
