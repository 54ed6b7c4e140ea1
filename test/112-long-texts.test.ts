// Rotations by the length of the text (dynamic NTK, longrope): as transformers, alone and in batches, with caches.
import test from 'ava'
import { openCheckpoint } from '../lib/formats/checkpoint.js'
import { Session } from '../lib/generate/session.js'
import { SessionPool } from '../lib/generate/session_pool.js'
import { slice } from '../lib/graph/ops/index.js'
import { reshape } from '../lib/graph/ops/reduce.js'
import { program } from '../lib/graph/program.js'
import { buildNetwork } from '../lib/models/build.js'
import type { CausalLm } from '../lib/models/causal_lm.js'
import { decoders } from '../lib/models/registry.js'
import { rotaryOf } from '../lib/models/rope_scaling.js'
import { type Tensor, tensor } from '../lib/tensor/tensor.js'
import { golden, goldenTensors, relativeError } from './golden.js'
import { greedySettings } from './support/next_token.js'

const plain = { precision: 'f32', training: false } as const
const names = ['llama-dynamic', 'phi3-longrope']

const load = async (name: string): Promise<CausalLm> =>
  buildNetwork(decoders, await openCheckpoint(golden(`models/${name}`)))

const goldensOf = (name: string) => goldenTensors(`models/${name}/golden.safetensors`)
const numbers = async (values: Tensor): Promise<number[]> => Array.from(await values.data(), Number)

const logits = (model: CausalLm) =>
  program(async (ids, segments) =>
    reshape(model.logits(await model.hidden({ ids: ids!, segments }, plain), plain), [
      ...ids!.shape,
      model.vocabularySize,
    ]),
  )

/** The most likely token, and its log-probability. */
const greedy = async (session: Session, tokens: readonly number[]) => {
  const [drawn] = await session.next([{ tokens: Int32Array.from(tokens), settings: greedySettings }], { top: 1 })
  return drawn!
}

for (const name of names) {
  test(`${name}: texts up to the limit turn as they were trained`, async (t) => {
    const goldens = await goldensOf(name)
    const ids = await numbers(goldens.get('ids')!)
    const first = tensor(Int32Array.from([...ids.slice(0, 12), ...ids.slice(24, 36)]), [2, 12])
    const error = await relativeError(await logits(await load(name))(first), goldens.get('short')!)
    t.true(error < 1e-5, `${error}`)
  })

  test(`${name}: in a batch, each text turns by its own length, padding left out`, async (t) => {
    const goldens = await goldensOf(name)
    const ids = (await goldens.get('ids')!.data()) as Int32Array
    const segments = Int32Array.from(ids, (_, i) => (i >= 24 + 12 ? -1 : 0))
    const found = await logits(await load(name))(goldens.get('ids')!, tensor(segments, [2, 24]))
    const part = program((all, row) => {
      const [from, to] = row!.shape as [number, number]
      return slice(all!, [
        { axis: 0, start: from - 1, end: from },
        { axis: 1, start: 0, end: to },
      ])
    })
    const shapeOf = (row: number, tokens: number) => tensor(new Float32Array((row + 1) * tokens), [row + 1, tokens])
    const long = await part(found, shapeOf(0, 24))
    t.true((await relativeError(long, await part(goldens.get('logits')!, shapeOf(0, 24)))) < 1e-5)
    const short = await part(found, shapeOf(1, 12))
    t.true((await relativeError(short, await part(goldens.get('short')!, shapeOf(1, 12)))) < 1e-5)
  })

  test(`${name}: generation across the limit is that of transformers, cache included`, async (t) => {
    const goldens = await goldensOf(name)
    const model = await load(name)
    const session = await Session.create(model, { precision: 'f32' }, 32)
    const generated = await numbers(goldens.get('generated')!)
    const scores = await numbers(goldens.get('generated_logits')!)
    let tokens = (await numbers(goldens.get('ids')!)).slice(0, 10)
    for (const [step, expected] of generated.entries()) {
      const { token, logProbability } = await greedy(session, tokens)
      t.is(token, expected, `token ${step}`)
      const row = scores.slice(step * model.vocabularySize, (step + 1) * model.vocabularySize)
      const should = row[token]! - Math.log(row.reduce((sum, x) => sum + Math.exp(x), 0))
      t.true(Math.abs(logProbability! - should) < 1e-4, `token ${step}: ${logProbability}, should be ${should}`)
      tokens = [token]
    }
    session.dispose()
  })

  test(`${name}: an answer does not depend on what was asked before`, async (t) => {
    const model = await load(name)
    const pool = new SessionPool(model, 'f32', 2 ** 20)
    const ids = (await numbers((await goldensOf(name)).get('ids')!)).slice(0, 24)
    const answer = async (from: SessionPool, count: number) => {
      const prompt = Int32Array.from(ids.slice(0, count))
      const lease = await from.take({ prompt, batch: 1, tokens: 30, adapter: undefined })
      const known = lease.session.tokens.length
      const { logProbability } = await greedy(lease.session, ids.slice(known, count))
      from.release(lease)
      return logProbability!
    }
    for (const count of [20, 12, 24, 21, 14]) {
      const fresh = new SessionPool(model, 'f32', 2 ** 20)
      t.is(await answer(pool, count), await answer(fresh, count), `${count} tokens`)
      fresh.close()
    }
    pool.close()
  })
}

test('dynamic scaling is for texts longer than those of the training: the model takes factor times as many tokens', async (t) => {
  t.is((await load('llama-dynamic')).maxPositions, 64)
  t.is((await load('phi3-longrope')).maxPositions, 64)
})

test('longrope: the scale is the given one, else of the stretch', (t) => {
  const scaling = { rope_type: 'longrope', short_factor: [1, 1], long_factor: [2, 4] }
  const base = { rope_theta: 1e4, max_position_embeddings: 64, original_max_position_embeddings: 16 }
  t.is(rotaryOf(4, { ...base, rope_scaling: scaling }).scale, Math.sqrt(1 + Math.log(4) / Math.log(16)))
  t.is(rotaryOf(4, { ...base, rope_scaling: { ...scaling, attention_factor: 1.5 } }).scale, 1.5)
  t.throws(() => rotaryOf(8, { ...base, rope_scaling: scaling }), { message: /rope_scaling/ })
})
