// A real model, SmolLM2-135M-Instruct as GGUF (Q4_1), against transformers (test/golden/make_smollm2.py).
import test from 'ava'
import { Session } from '../lib/generate/session.js'
import { gatherRows } from '../lib/graph/ops/index.js'
import { program } from '../lib/graph/program.js'
import { read } from '../lib/graph/sym.js'
import { type ChatMessage, loadModel, type Model, type Tensor, tensor, zeros } from '../lib/index.js'
import { linear } from '../lib/nn/site.js'
import { causalLmLoss } from '../lib/objectives/causal_lm_loss.js'
import { goldenJson, goldenTensors, relativeError } from './golden.js'
import { fetchModel } from './models/fetch.js'
import { nextToken } from './support/next_token.js'

interface Greedy {
  readonly messages: readonly ChatMessage[]
  readonly prompt_ids: readonly number[]
  readonly ids: readonly number[]
}

const { greedy } = goldenJson<{ greedy: readonly Greedy[] }>('smollm2.json')
const top = 20
const vocabulary = 49152

let model: Model
let goldens: Map<string, Tensor>

test.before('load SmolLM2', async () => {
  model = await loadModel(await fetchModel('smollm2'))
  goldens = await goldenTensors('smollm2.safetensors')
})

test.after.always('dispose', () => model?.dispose())

const numbers = async (name: string) => (await goldens.get(name)!.data()) as Float32Array | Int32Array

/** Logits `[n, vocabulary]` at every position of a golden prompt. */
async function logitsOf(prompt: string, precision: 'f32' | 'bf16' = 'f32'): Promise<Tensor> {
  const forward = { precision, training: false }
  const ids = (await numbers(`${prompt}.ids`)) as Int32Array
  const run = program(async (row) =>
    linear(model.network.outputSite, await model.network.hidden({ ids: row! }, forward), forward),
  )
  const logits = await run(tensor(ids, [1, ids.length]))
  run.dispose()
  return logits
}

/** The rows of `logits` that the golden file has in full. */
async function fullRows(logits: Tensor, prompt: string): Promise<Tensor> {
  return program((table) => gatherRows(table!, read(goldens.get(`${prompt}.positions`)!)))(logits)
}

/** max |a - b| / max |b| */
function worst(found: ArrayLike<number>, expected: Float32Array | Int32Array): number {
  const scale = Math.max(...expected.map(Math.abs))
  return Math.max(...Array.from(expected, (value, i) => Math.abs(found[i]! - value))) / scale
}

for (const prompt of ['text', 'chat']) {
  test(`${prompt}: all 49152 logits agree with transformers to 1e-4`, async (t) => {
    const error = await relativeError(await fullRows(await logitsOf(prompt), prompt), goldens.get(`${prompt}.logits`)!)
    t.log(`f32 ${error.toExponential(1)}`)
    t.true(error < 1e-4)
  })

  test(`${prompt}: the 20 highest logits of every position, and the log of the sum, agree to 1e-4`, async (t) => {
    const logits = (await (await logitsOf(prompt)).data()) as Float32Array
    const ids = await numbers(`${prompt}.top_ids`)
    const best = Float32Array.from(ids, (id, i) => logits[Math.floor(i / top) * vocabulary + id]!)
    const sums = Float32Array.from({ length: ids.length / top }, (_, row) => {
      const values = logits.subarray(row * vocabulary, (row + 1) * vocabulary)
      const peak = best[row * top]!
      return peak + Math.log(values.reduce((total, value) => total + Math.exp(value - peak), 0))
    })
    t.true(worst(best, (await numbers(`${prompt}.top_logits`)) as Float32Array) < 1e-4)
    t.true(worst(sums, (await numbers(`${prompt}.logsumexp`)) as Float32Array) < 1e-4)
  })

  test(`${prompt}: with bf16 products the logits stay within 3e-2`, async (t) => {
    const logits = await fullRows(await logitsOf(prompt, 'bf16'), prompt)
    const error = await relativeError(logits, goldens.get(`${prompt}.logits`)!)
    t.log(`bf16 ${error.toExponential(1)}`)
    t.true(error < 3e-2)
  })
}

test('the loss of a text agrees with transformers to 1e-4', async (t) => {
  const ids = (await numbers('text.ids')) as Int32Array
  const [topIds, topLogits, sums] = await Promise.all(
    ['text.top_ids', 'text.top_logits', 'text.logsumexp'].map((name) => numbers(name)),
  )
  // The golden file knows a target's logit where the target is among the 20 best.
  const targets = new Int32Array(ids.length).fill(-100)
  let expected = 0
  for (let position = 0; position + 1 < ids.length; position += 1) {
    const next = ids[position + 1]!
    const rank = topIds!.subarray(position * top, (position + 1) * top).indexOf(next)
    if (rank < 0) continue
    targets[position] = next
    expected += sums![position]! - topLogits![position * top + rank]!
  }
  t.true(targets.filter((target) => target >= 0).length > 20)
  const loss = program(async (row, target, segments) => {
    const inputs = { ids: row!, targets: target!, segments: segments! }
    return causalLmLoss(model.network, inputs, { precision: 'f32', training: false })
  })
  const shape = [1, ids.length]
  const found = (await loss(tensor(ids, shape), tensor(targets, shape), zeros(shape, 'i32'))).item()
  t.true(Math.abs(found - expected) < 1e-4 * expected, `${found} vs ${expected}`)
})

test('greedy decoding with the cache takes the same 24 tokens as transformers without one', async (t) => {
  const session = await Session.create(model.network, { precision: 'f32' }, 64)
  for (const { prompt_ids, ids } of greedy) {
    session.truncate(0)
    const found: number[] = []
    for (let fed = Int32Array.from(prompt_ids); found.length < ids.length; fed = Int32Array.of(found.at(-1)!))
      found.push(await nextToken(session, fed))
    t.deepEqual(found, ids)
  }
  session.dispose()
})

test('generate() renders the chat, streams the answer and stops at the end of the turn', async (t) => {
  const pieces: string[] = []
  for await (const piece of model.generate(greedy[0]!.messages, { maxTokens: 24 })) pieces.push(piece)
  t.is(pieces.join(''), 'The capital of France is Paris.')
  t.true(pieces.length > 3)
})
