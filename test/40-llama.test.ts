// The Llama network against transformers, on tiny random models (test/golden/make_tiny_llama.py).
import test from 'ava'
import { gradients } from '../lib/graph/grad.js'
import { div } from '../lib/graph/ops/elementwise.js'
import { concat, gatherRows } from '../lib/graph/ops/index.js'
import { reshape } from '../lib/graph/ops/reduce.js'
import { program } from '../lib/graph/program.js'
import { read } from '../lib/graph/sym.js'
import type { CausalLm } from '../lib/models/causal_lm.js'
import { llama } from '../lib/models/llama.js'
import { rotaryOf } from '../lib/models/rope_scaling.js'
import { checkpointWeights } from '../lib/models/weights.js'
import { type Forward, linear } from '../lib/nn/site.js'
import { causalLmLoss, crossEntropy } from '../lib/objectives/causal_lm_loss.js'
import { type Tensor, tensor, zeros } from '../lib/tensor/tensor.js'
import { goldenJson, goldenLlama, goldenTensors, relativeError } from './golden.js'

const plain: Forward = { precision: 'f32', training: false }

const logitsOf = (model: CausalLm, forward = plain) =>
  program(async (ids) => {
    const [b, t] = ids!.shape as [number, number]
    const hidden = await model.hidden({ ids: ids! }, forward)
    return reshape(linear(model.outputSite, hidden, forward), [b, t, model.vocabularySize])
  })

/** Targets are the next ids; the last position and the golden's masked ones take no loss. */
async function lossInputs(goldens: Map<string, Tensor>): Promise<[Tensor, Tensor, Tensor, number]> {
  const ids = goldens.get('ids')!
  const [b, t] = ids.shape as [number, number]
  const labels = (await (goldens.get('labels') ?? ids).data()) as Int32Array
  const targets = Int32Array.from(labels, (_, i) => ((i + 1) % t === 0 ? -100 : labels[i + 1]!))
  return [ids, tensor(targets, [b, t]), zeros([b, t], 'i32'), targets.filter((target) => target >= 0).length]
}

for (const name of ['tiny-llama', 'tiny-llama-untied', 'tiny-llama-llama3']) {
  test(`${name}: logits agree with transformers to 1e-5`, async (t) => {
    const goldens = await goldenTensors(`${name}.golden.safetensors`)
    const logits = await logitsOf(await goldenLlama(name))(goldens.get('ids')!)
    t.true((await relativeError(logits, goldens.get('logits')!)) < 1e-5)
  })

  test(`${name}: mean loss agrees with transformers`, async (t) => {
    const goldens = await goldenTensors(`${name}.golden.safetensors`)
    const model = await goldenLlama(name)
    const [ids, targets, segments, count] = await lossInputs(goldens)
    const loss = program(async (i, n, s) => causalLmLoss(model, { ids: i!, targets: n!, segments: s! }, plain))
    const total = (await loss(ids, targets, segments)).item()
    const { loss: expected } = goldenJson<{ loss: number }>(`${name}.golden.json`)
    t.true(Math.abs(total / count - expected) < 1e-5 * expected, `${total / count} vs ${expected}`)
  })
}

for (const name of ['tiny-llama', 'tiny-llama-untied'])
  test(`${name}: gradients of all parameters agree with torch to 1e-4`, async (t) => {
    const goldens = await goldenTensors(`${name}.golden.safetensors`)
    const expected = await goldenTensors(`${name}.gradients.safetensors`)
    const model = await goldenLlama(name)
    const weights = model.weights()
    const [ids, targets, segments, count] = await lossInputs(goldens)
    const step = program(async (i, n, s) => {
      const loss = div(await causalLmLoss(model, { ids: i!, targets: n!, segments: s! }, plain), count)
      return gradients(
        loss,
        weights.map(({ tensor: weight }) => read(weight)),
      )
    })
    const found = await step(ids, targets, segments)
    t.is(weights.length, expected.size)
    for (const [i, { name: key }] of weights.entries())
      t.true((await relativeError(found[i]!, expected.get(key)!)) < 1e-4, key)
  })

test('the cached form gives the same logits, however the text is cut into calls', async (t) => {
  const goldens = await goldenTensors('tiny-llama.golden.safetensors')
  const model = await goldenLlama('tiny-llama')
  const ids = (await goldens.get('ids')!.data()) as Int32Array
  const row = ids.subarray(0, 17)
  const cache = await model.createCache(1, 32)
  const step = program(async (part, position) => {
    const hidden = await model.hidden({ ids: part!, position: position!, cache }, plain)
    return linear(model.outputSite, hidden, plain)
  })
  const parts: Tensor[] = []
  for (const [start, end] of [
    [0, 9],
    [9, 10],
    [10, 16],
    [16, 17],
  ] as const)
    parts.push(await step(tensor(row.subarray(start, end), [1, end - start]), tensor(Int32Array.of(start))))
  const joined = await program((...pieces) => concat(pieces))(...parts)
  const whole = await logitsOf(model)(tensor(row, [1, 17]))
  t.true((await relativeError(joined, whole)) < 1e-5)
})

test('segments: a packed row gives each document the hidden states it has alone, up to rotary positions', async (t) => {
  const model = await goldenLlama('tiny-llama')
  const ids = tensor(Int32Array.of(5, 6, 7, 8, 9, 10, 11, 12), [1, 8])
  const hidden = program(async (i, s) => model.hidden({ ids: i!, segments: s! }, plain))
  const packed = await hidden(ids, tensor(Int32Array.of(0, 0, 0, 0, 1, 1, 1, 1), [1, 8]))
  const alone = await hidden(tensor(Int32Array.of(9, 10, 11, 12), [1, 4]), zeros([1, 4], 'i32'))
  const second = await program((x) => gatherRows(x!, read(tensor(Int32Array.of(4, 5, 6, 7)))))(packed)
  t.true((await relativeError(second, alone)) < 1e-4)
})

test('crossEntropy over logits equals the loss fused with the projection', async (t) => {
  const goldens = await goldenTensors('tiny-llama.golden.safetensors')
  const model = await goldenLlama('tiny-llama')
  const [ids, targets] = await lossInputs(goldens)
  const both = program(async (i, n) => {
    const hidden = await model.hidden({ ids: i! }, plain)
    const direct = crossEntropy(linear(model.outputSite, hidden, plain), reshape(n!, [-1]))
    const { linearCrossEntropy } = await import('../lib/graph/ops/loss.js')
    return { direct, fused: linearCrossEntropy(hidden, read(model.outputSite.weight), reshape(n!, [-1])) }
  })
  const { direct, fused } = await both(ids, targets)
  t.true((await relativeError(direct, fused)) < 1e-5)
})

test('inverse frequencies are theta^(-2i/d)', (t) => {
  const { rope_inverse_frequencies: expected } = goldenJson<{ rope_inverse_frequencies: number[] }>(
    'tiny-llama.golden.json',
  )
  const { frequencies: found } = rotaryOf(16, { rope_theta: 10000 })
  for (const [i, value] of expected.entries()) t.true(Math.abs(found[i]! - value) < 1e-6 * value)
})

test('an unknown rope scaling is refused by name', (t) => {
  const scaling = { rope_type: 'longrope', factor: 2 }
  t.throws(() => rotaryOf(16, { rope_theta: 1e4, rope_scaling: scaling }), {
    code: 'ERR_HEDDLE_FORMAT',
    message: /rope_scaling.*longrope/,
  })
})

test('a config without a needed field is refused, naming it', (t) => {
  const config = { ...goldenJson<object>('tiny-llama/config.json'), hidden_size: undefined }
  t.throws(() => llama(config, checkpointWeights(new Map(), 'nowhere')), {
    code: 'ERR_HEDDLE_FORMAT',
    message: /hidden_size/,
  })
})
