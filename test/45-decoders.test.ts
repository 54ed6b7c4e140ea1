// Every decoder architecture against transformers, on tiny random checkpoints (test/golden/make_models.py).
import { readdirSync } from 'node:fs'
import test from 'ava'
import { Adapter } from '../lib/adapters/adapter.js'
import { openCheckpoint } from '../lib/formats/checkpoint.js'
import { gradients } from '../lib/graph/grad.js'
import { div } from '../lib/graph/ops/elementwise.js'
import { concat, slice } from '../lib/graph/ops/index.js'
import { reshape } from '../lib/graph/ops/reduce.js'
import { program } from '../lib/graph/program.js'
import { read } from '../lib/graph/sym.js'
import { buildNetwork } from '../lib/models/build.js'
import type { CausalLm } from '../lib/models/causal_lm.js'
import { decoders } from '../lib/models/registry.js'
import type { Forward } from '../lib/nn/site.js'
import { causalLmLoss } from '../lib/objectives/causal_lm_loss.js'
import { type Tensor, tensor, zeros } from '../lib/tensor/tensor.js'
import { golden, goldenJson, goldenTensors, probes, relativeError } from './golden.js'

const plain: Forward = { precision: 'f32', training: false }
const names = readdirSync(golden('models')).filter((name) =>
  decoders.some(
    ({ modelType }) => modelType === goldenJson<{ model_type: string }>(`models/${name}/config.json`).model_type,
  ),
)

const load = async (name: string): Promise<CausalLm> =>
  buildNetwork(decoders, await openCheckpoint(golden(`models/${name}`)))

const logitsOf = (model: CausalLm, forward = plain) =>
  program(async (ids) => {
    const hidden = await model.hidden({ ids: ids! }, forward)
    return reshape(model.logits(hidden, forward), [...ids!.shape, model.vocabularySize])
  })

test('there is a golden model of every architecture', (t) => {
  const found = new Set(
    names.map((name) => goldenJson<{ model_type: string }>(`models/${name}/config.json`).model_type),
  )
  t.deepEqual([...found].sort(), decoders.map(({ modelType }) => modelType).sort())
})

for (const name of names) {
  test(`${name}: logits agree with transformers to 1e-5`, async (t) => {
    const goldens = await goldenTensors(`models/${name}/golden.safetensors`)
    const error = await relativeError(await logitsOf(await load(name))(goldens.get('ids')!), goldens.get('logits')!)
    t.log(error)
    t.true(error < 1e-5, `${error}`)
  })

  test(`${name}: the cached form gives the same logits, however the text is cut into calls`, async (t) => {
    const goldens = await goldenTensors(`models/${name}/golden.safetensors`)
    const model = await load(name)
    const row = ((await goldens.get('ids')!.data()) as Int32Array).subarray(0, 24)
    const cache = await model.createCache(1, 32)
    const lengths = tensor(Int32Array.of(24))
    const step = program(async (part, position) =>
      model.logits(
        await model.hidden({ ids: part!, position: position!, lengths: read(lengths), cache }, plain),
        plain,
      ),
    )
    const parts: Tensor[] = []
    for (const [start, end] of [
      [0, 9],
      [9, 10],
      [10, 23],
      [23, 24],
    ] as const)
      parts.push(await step(tensor(row.slice(start, end), [1, end - start]), tensor(Int32Array.of(start))))
    const joined = await program((...pieces) => concat(pieces))(...parts)
    t.true((await relativeError(joined, await logitsOf(model)(tensor(row.slice(), [1, 24])))) < 1e-5)
  })

  test(`${name}: PEFT's adapter on all linear modules finds its sites and gives PEFT's logits`, async (t) => {
    const goldens = await goldenTensors(`models/${name}/golden.safetensors`)
    const model = await load(name)
    const adapter = await Adapter.load(model, golden(`models/${name}/adapter`))
    const found = await logitsOf(model, { ...plain, hook: adapter.hook })(goldens.get('ids')!)
    t.true((await relativeError(found, goldens.get('adapted')!)) < 1e-5)
    await adapter.merge()
    t.true((await relativeError(await logitsOf(model)(goldens.get('ids')!), goldens.get('adapted')!)) < 1e-5)
  })

  test(`${name}: gradients of all parameters agree with torch`, async (t) => {
    const goldens = await goldenTensors(`models/${name}/golden.safetensors`)
    const expected = goldenJson<Record<string, [number, number]>>(`models/${name}/gradients.json`)
    const model = await load(name)
    const weights = model.weights()
    t.deepEqual(weights.map((weight) => weight.name).sort(), Object.keys(expected).sort())
    const ids = (await goldens.get('ids')!.data()) as Int32Array
    const targets = Int32Array.from(ids, (_, i) => ((i + 1) % 24 === 0 ? -100 : ids[i + 1]!))
    const step = program(async (i, n, s) => {
      const loss = div(await causalLmLoss(model, { ids: i!, targets: n!, segments: s! }, plain), 2 * 23)
      return gradients(
        loss,
        weights.map(({ tensor: weight }) => read(weight)),
      )
    })
    const found = await step(goldens.get('ids')!, tensor(targets, [2, 24]), zeros([2, 24], 'i32'))
    for (const [i, { name: key }] of weights.entries()) {
      const [norm, probe] = probes((await found[i]!.data()) as Float32Array)
      const [expectedNorm, expectedProbe] = expected[key]!
      const bound = 1e-4 * expectedNorm + 1e-7
      t.true(Math.abs(norm - expectedNorm) < bound && Math.abs(probe - expectedProbe) < bound, key)
    }
  })
}

test('learned positions: with positions of its own, a packed text has the logits that it has alone', async (t) => {
  const model = await load('gpt2')
  const run = program(async (ids, segments, positions) =>
    model.logits(await model.hidden({ ids: ids!, segments: segments!, positions: positions! }, plain), plain),
  )
  const row = (numbers: readonly number[]) => tensor(Int32Array.from(numbers), [1, numbers.length])
  const packed = await run(row([5, 6, 7, 8, 9, 10]), row([0, 0, 1, 1, 1, 1]), row([0, 1, 0, 1, 2, 3]))
  const alone = await logitsOf(model)(row([7, 8, 9, 10]))
  const second = await program((x) => slice(x!, [{ axis: 0, start: 2, end: 6 }]))(packed)
  t.true((await relativeError(second, alone)) < 1e-6)
})
