// Recomputing modules in the backward pass: the same numbers from less memory, planned before the run.
import test, { type ExecutionContext } from 'ava'
import { lora } from '../lib/adapters/methods/lora.js'
import type { RecomputePolicy } from '../lib/graph/compile.js'
import { gradients } from '../lib/graph/grad.js'
import { mul, tanh } from '../lib/graph/ops/elementwise.js'
import { matmul } from '../lib/graph/ops/matmul.js'
import { sum } from '../lib/graph/ops/reduce.js'
import { program } from '../lib/graph/program.js'
import { read, within } from '../lib/graph/sym.js'
import { llama } from '../lib/models/llama.js'
import { type Tensor, tensor, zeros } from '../lib/tensor/tensor.js'
import { train } from '../lib/train/train.js'
import { goldenLlama } from './golden.js'
import { randomNumbers } from './random_numbers.js'
import { loraStep, syntheticBatch } from './support/lora_step.js'
import { tinyDataset, tinyModel } from './tiny_model.js'

const width = 64
const weights = Array.from({ length: 6 }, (_, i) => tensor(randomNumbers(width * width, i + 1), [width, width]))

/** Σ of six layers `block.i` of two products each, differentiated by every weight. */
const deep = (recompute: boolean | RecomputePolicy) =>
  program(
    async (x) => {
      let y = x!
      for (const [i, weight] of weights.entries())
        y = within(`block.${i}`, () => tanh(matmul(tanh(matmul(y, read(weight))), read(weight))))
      const loss = sum(mul(y, y))
      return [loss, ...(await gradients(loss, weights.map(read)))]
    },
    { recompute },
  )
const input = tensor(randomNumbers(256 * width, 9), [256, width])

async function sameResults(t: ExecutionContext, a: readonly Tensor[], b: readonly Tensor[]): Promise<void> {
  t.is(a.length, b.length)
  for (const [i, tensor] of a.entries()) t.deepEqual(await tensor.data(), await b[i]!.data(), `result ${i}`)
}

test('recomputed blocks give the same bits from less memory, and the plan says what they cost', async (t) => {
  const [kept, recomputed] = [deep(true), deep({ scopes: 'block.*' })]
  await sameResults(t, await kept(input), await recomputed(input))
  const [before, after] = [await kept.plan([input]), await recomputed.plan([input])]
  t.deepEqual(before.recomputed, [])
  t.is(before.recomputedFlops, 0)
  t.deepEqual(
    after.recomputed,
    weights.map((_, i) => `block.${i}`),
  )
  t.true(after.peakBytes < 0.75 * before.peakBytes, `${after.peakBytes} against ${before.peakBytes}`)
  t.is(after.flops - after.recomputedFlops, before.flops)
  const product = 2 * 256 * width * width
  t.true(after.recomputedFlops >= 6 * product && after.recomputedFlops < 13 * product, `${after.recomputedFlops}`)
})

test('a pattern picks blocks: glob or regular expression', async (t) => {
  const picked = async (scopes: NonNullable<RecomputePolicy['scopes']>) =>
    (await deep({ scopes }).plan([input])).recomputed
  t.deepEqual(await picked('block.2'), ['block.2'])
  t.deepEqual(await picked(/^block\.[13]$/), ['block.1', 'block.3'])
  t.deepEqual(await picked(['block.0', /5$/]), ['block.0', 'block.5'])
  t.deepEqual(await picked('**'), ['block'])
  t.deepEqual(await picked('layers.*'), [])
})

test('a memory budget recomputes no more than it needs', async (t) => {
  const whole = await deep(true).plan([input])
  const least = await deep({ scopes: 'block.*' }).plan([input])
  const memoryBytes = Math.ceil((whole.peakBytes + least.peakBytes) / 2)
  const budgeted = deep({ memoryBytes })
  const plan = await budgeted.plan([input])
  t.true(plan.peakBytes <= memoryBytes)
  t.true(plan.recomputed.length > 0 && plan.recomputed.length < weights.length, `${plan.recomputed}`)
  await sameResults(t, await deep(true)(input), await budgeted(input))
  t.deepEqual((await deep({ memoryBytes: whole.peakBytes }).plan([input])).recomputed, [])
})

test('a budget that cannot be met is refused before the run, with the least that can', async (t) => {
  const error = await t.throwsAsync(deep({ memoryBytes: 1000 }).plan([input]), { code: 'ERR_HEDDLE_OOM' })
  const least = Number(/at least (\d+) bytes/.exec(error!.message)![1])
  t.true((await deep({ memoryBytes: least }).plan([input])).peakBytes <= least)
})

test('what no gradient reads is not recomputed', async (t) => {
  const forward = program((x) => within('block.0', () => tanh(matmul(x!, read(weights[0]!)))), {
    recompute: { scopes: 'block.*' },
  })
  const plan = await forward.plan([input])
  t.deepEqual([plan.recomputed, plan.recomputedFlops], [[], 0])
})

test('a model trained with its layers recomputed, dropout and all, is the same bit for bit', async (t) => {
  const network = await goldenLlama('tiny-llama')
  const [kept, recomputed] = [await loraStep(network), await loraStep(network, { scopes: 'model.layers.*' })]
  const batches = [syntheticBatch(2, 16, network.vocabularySize)]
  t.deepEqual((await recomputed.step.plan(batches[0]!)).recomputed, ['model.layers.0', 'model.layers.1'])
  for (const step of [1, 2]) {
    const request = { batches, step, learningRate: 1e-2, seed: 3 }
    t.deepEqual(await kept.step.run(request), await recomputed.step.run(request))
  }
  await sameResults(t, kept.parameters, recomputed.parameters)
})

test('train() passes the policy on: an impossible budget ends the run before its first step', async (t) => {
  const model = await tinyModel()
  const options = { data: await tinyDataset(model), method: lora({ r: 2 }), maxSteps: 1 }
  const run = async (recompute: RecomputePolicy) => {
    for await (const _ of train(model, { ...options, recompute })) break
  }
  await t.throwsAsync(run({ memoryBytes: 1 }), { code: 'ERR_HEDDLE_OOM' })
  await t.throwsAsync(run({ scopes: '' }), { code: 'ERR_HEDDLE_ARGUMENT', message: /recompute/ })
})

test('SmolLM2-135M at 4 × 256 tokens: the plan shrinks to a quarter', async (t) => {
  const config = {
    hidden_size: 576,
    num_hidden_layers: 30,
    num_attention_heads: 9,
    num_key_value_heads: 3,
    intermediate_size: 1536,
    vocab_size: 512,
    tie_word_embeddings: true,
    max_position_embeddings: 2048,
    rope_theta: 100000,
  }
  // One tensor per shape: only the plan is asked for.
  const byShape = new Map<string, Tensor>()
  const network = llama(config, {
    has: () => false,
    take(_, shape) {
      const known = byShape.get(`${shape}`) ?? zeros(shape)
      byShape.set(`${shape}`, known)
      return known
    },
  })
  const plans = []
  for (const recompute of [undefined, { scopes: 'model.layers.*' }]) {
    const { step } = await loraStep(network, recompute)
    plans.push(await step.plan(syntheticBatch(4, 256, config.vocab_size)))
    step.dispose()
  }
  const [whole, least] = plans as [(typeof plans)[0], (typeof plans)[0]]
  t.true(least.peakBytes < whole.peakBytes / 4, `${least.peakBytes} against ${whole.peakBytes}`)
  t.true(least.recomputedFlops < 0.5 * whole.flops)
})
