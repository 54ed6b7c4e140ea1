// Sequence classification: transformers' heads on encoders and decoders, the head in PEFT's folder, rows and scores.

import { readFile, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import test from 'ava'
import { lora } from '../lib/adapters/methods/lora.js'
import { openCheckpoint } from '../lib/formats/checkpoint.js'
import { openSafetensors } from '../lib/formats/safetensors.js'
import { gradients } from '../lib/graph/grad.js'
import { div, square } from '../lib/graph/ops/elementwise.js'
import { sum } from '../lib/graph/ops/reduce.js'
import { program } from '../lib/graph/program.js'
import { read } from '../lib/graph/sym.js'
import { adamw, evaluate, HeddleError, loadSequenceClassifier, sequenceClassification, train } from '../lib/index.js'
import { buildNetwork } from '../lib/models/build.js'
import { encoders } from '../lib/models/registry.js'
import { type ClassifierNetwork, decoderClassifier, encoderClassifier } from '../lib/models/sequence_classifier.js'
import { checkpointWeights } from '../lib/models/weights.js'
import type { ClassificationBatch } from '../lib/objectives/sequence_classification.js'
import { tensor } from '../lib/tensor/tensor.js'
import { golden, goldenJson, goldenLlama } from './golden.js'
import { temporaryFolder } from './support/temporary_folder.js'
import { tinyEncoderFolder, tinyModelFolder } from './tiny_model.js'

interface Case {
  readonly logits: readonly (readonly number[])[]
  readonly loss: number
  readonly gradient_norms: Readonly<Record<string, number>>
  readonly score?: readonly (readonly number[])[]
}

interface Golden {
  readonly ids: readonly (readonly number[])[]
  readonly mask: readonly (readonly number[])[]
  readonly targets: readonly number[]
  readonly models: Readonly<Record<string, Case>>
}

const expected = goldenJson<Golden>('classifiers.json')
const labels = ['no', 'maybe', 'yes']
const refusal = { instanceOf: HeddleError, code: 'ERR_HEDDLE_ARGUMENT' }

async function classifierOf(name: string): Promise<ClassifierNetwork> {
  if (name === 'llama') {
    const made = await decoderClassifier(await goldenLlama('tiny-llama'), { labels, seed: 0 })
    made.sites.get('score')!.weight = tensor(expected.models.llama!.score!.flat(), [3, 64])
    return made
  }
  const checkpoint = await openCheckpoint(golden(`classifier-${name}`))
  const source = checkpointWeights(checkpoint.tensors, checkpoint.path)
  return encoderClassifier(buildNetwork(encoders, checkpoint), { labels, seed: 0, source })
}

for (const name of ['bert', 'roberta', 'distilbert', 'llama'])
  test(`${name}: logits, loss and gradients of transformers' classifier, padding left out`, async (t) => {
    const network = await classifierOf(name)
    const objective = sequenceClassification()
    const weights = network.weights()
    const step = program(async (ids, mask, targets) => {
      const plain = { precision: 'f32', training: false } as const
      const logits = await network.logits({ ids: ids!, mask: mask! }, plain)
      const loss = div(await objective.loss(network, { ids: ids!, mask: mask!, labels: targets! }, plain), 2)
      const found = await gradients(
        loss,
        weights.map((each) => read(each.tensor)),
      )
      return { logits, loss, norms: found.map((each) => sum(square(each))) }
    })
    const i32 = (rows: readonly (readonly number[])[]) => tensor(Int32Array.from(rows.flat()), [2, 6])
    const { logits, loss, norms } = await step(
      i32(expected.ids),
      i32(expected.mask),
      tensor(Int32Array.from(expected.targets)),
    )
    const golden = expected.models[name]!
    const values = (await logits.data()) as Float32Array
    const scale = Math.max(...golden.logits.flat().map(Math.abs))
    for (const [i, should] of golden.logits.flat().entries())
      t.true(Math.abs(values[i]! - should) < 1e-5 * scale, `logit ${i}: ${values[i]}, should be ${should}`)
    t.true(Math.abs(loss.item() - golden.loss) < 1e-5 * golden.loss)
    const found = new Map(weights.map((each, i) => [each.name, Math.sqrt(norms[i]!.item())]))
    for (const [key, norm] of Object.entries(golden.gradient_norms))
      t.true(Math.abs(found.get(key)! - norm) < 1e-4 * norm + 1e-7, `${key}: ${found.get(key)}, should be ${norm}`)
  })

/** Texts of capitals and of small letters. */
async function letters(count = 48): Promise<string> {
  const path = join(temporaryFolder(), 'letters.jsonl')
  const rows = Array.from({ length: count }, (_, i) => {
    const text = `${['stitch', 'waters', 'haste', 'moon'][Math.floor(i / 2) % 4]} ${i}`
    return i % 2 === 0 ? { text: text.toUpperCase(), label: 'big' } : { text, label: 'small' }
  })
  await writeFile(path, rows.map((row) => JSON.stringify(row)).join('\n'))
  return path
}

for (const [kind, folderOf, head] of [
  ['encoder', tinyEncoderFolder, 'classifier'],
  ['decoder', tinyModelFolder, 'score'],
] as const)
  test(`${kind}: an adapter with its head learns, and PEFT's folder brings both back`, async (t) => {
    const folder = await folderOf()
    const outputFolder = temporaryFolder()
    const model = await loadSequenceClassifier(folder, { labels: ['small', 'big'] })
    const data = await letters()
    const steps = train(model, {
      objective: sequenceClassification(),
      data,
      evaluationFraction: 0.25,
      epochs: 6,
      batchSize: 8,
      maxLength: 32,
      optimizer: adamw({ lr: 1e-2 }),
      outputFolder,
    })
    let accuracy = 0
    for await (const { evaluation } of steps) accuracy = evaluation?.accuracy ?? accuracy
    t.is(accuracy, 1)
    const config = JSON.parse(await readFile(join(outputFolder, 'adapter_config.json'), 'utf8'))
    t.like(config, { task_type: 'SEQ_CLS', modules_to_save: [head] })
    const archive = await openSafetensors(join(outputFolder, 'adapter_model.safetensors'))
    t.true(archive.tensors.has(`base_model.model.${head}.weight`))
    if (kind === 'encoder')
      t.true(archive.tensors.has('base_model.model.bert.encoder.layer.0.attention.self.query.lora_A.weight'))
    archive.close()

    const texts = ['MOON 90', 'moon 91']
    const before = await model.classify(texts, { adapter: model.adapters[0] })
    t.deepEqual(
      before.map(({ label }) => label),
      ['big', 'small'],
    )
    const fresh = await loadSequenceClassifier(folder, { labels: ['small', 'big'], seed: 9 })
    const adapter = await fresh.loadAdapter(outputFolder)
    t.deepEqual(await fresh.classify(texts, { adapter }), before)
    await fresh.dispose()
    await model.dispose()
  })

test('a merged adapter counts at once, also where the plain model was asked before', async (t) => {
  const model = await loadSequenceClassifier(await tinyEncoderFolder())
  const texts = ['a', 'b c']
  const plain = await model.classify(texts)
  const adapter = await model.attach(lora({ r: 2, target_modules: ['query'], init_lora_weights: false }))
  const adapted = await model.classify(texts, { adapter })
  t.notDeepEqual(adapted, plain)
  await adapter.merge()
  for (const [i, { scores }] of (await model.classify(texts)).entries())
    for (const [label, score] of Object.entries(scores))
      t.true(Math.abs(score - adapted[i]!.scores[label]!) < 1e-5, `${label}: ${score}`)
  await model.dispose()
})

test('merge and unmerge as on every model: the plain answers come back exactly', async (t) => {
  const model = await loadSequenceClassifier(await tinyEncoderFolder())
  const texts = ['a', 'b c']
  const plain = await model.classify(texts)
  const adapter = await model.attach(lora({ r: 2, target_modules: ['query'], init_lora_weights: false }))
  await model.merge(adapter)
  t.notDeepEqual(await model.classify(texts), plain)
  model.unmerge(adapter)
  t.deepEqual(await model.classify(texts), plain)
  await model.dispose()
})

test('a saved encoder classifier opens again as one, with its labels', async (t) => {
  const model = await loadSequenceClassifier(await tinyEncoderFolder())
  t.deepEqual(model.labels, labels)
  const folder = temporaryFolder()
  await model.save(folder)
  const again = await loadSequenceClassifier(folder)
  t.deepEqual(await again.classify(['a', 'b c']), await model.classify(['a', 'b c']))
  t.deepEqual(
    again.network.weights().map(({ name }) => name),
    model.network.weights().map(({ name }) => name),
  )
  await again.dispose()
  await model.dispose()
})

test('all weights can be trained, biases and head among them', async (t) => {
  const model = await loadSequenceClassifier(await tinyEncoderFolder(), { labels: ['small', 'big'] })
  const options = { objective: sequenceClassification(), data: await letters(), maxLength: 32, full: true } as const
  const before = await evaluate(model, options.data, options)
  for await (const { loss } of train(model, { ...options, epochs: 8, optimizer: adamw({ lr: 5e-3 }) }))
    t.true(Number.isFinite(loss))
  const after = await evaluate(model, options.data, options)
  t.true(after.loss < 0.5 * before.loss, `${before.loss} → ${after.loss}`)
  await model.dispose()
})

test('scores: accuracy, F1, per class and confusion are those of the definition', async (t) => {
  const network = { labels: ['a', 'b', 'c'] } as unknown as ClassifierNetwork
  const board = sequenceClassification().scoreboard(network)
  const batch = { labels: Int32Array.of(0, 0, 0, 1, 1, 2, -100) } as ClassificationBatch
  board.add(batch, { loss: Float32Array.of(3), predicted: Int32Array.of(0, 0, 1, 1, 0, 2, 1) })
  const result = await board.result()
  t.deepEqual(result.confusion.counts, [
    [2, 1, 0],
    [1, 1, 0],
    [0, 0, 1],
  ])
  t.is(result.loss, 0.5)
  t.is(result.accuracy, 4 / 6)
  t.is(result.f1, (4 / 6 + 2 / 4 + 1) / 3)
  t.deepEqual(result.perClass.a, { precision: 2 / 3, recall: 2 / 3, f1: 4 / 6, support: 3 })
  t.is(result.examples, 6)
})

test('labels come as names or indices; rows without one are listed', async (t) => {
  const model = await loadSequenceClassifier(await tinyModelFolder(), { labels: ['no', 'yes'] })
  const path = join(temporaryFolder(), 'rows.jsonl')
  const rows = [
    { text: 'a', label: 'yes' },
    { text: 'b', label: 0 },
    { text: 'c', label: 'perhaps' },
    { text: 'd' },
    { label: 'no' },
  ]
  await writeFile(path, rows.map((row) => JSON.stringify(row)).join('\n'))
  const { tokenizer, network } = model
  const options = { tokenizer, network, maxLength: 32, evaluationFraction: 0, seed: 0 }
  const data = await sequenceClassification().open(path, options)
  t.is(data.size, 2)
  const { value } = await data.batches({ batchSize: 3, shuffle: false }).next()
  t.deepEqual([...(value as ClassificationBatch).labels], [1, 0, -100])
  await model.dispose()
})

test('a model without classes of its own needs their names', async (t) => {
  await t.throwsAsync(loadSequenceClassifier(await tinyModelFolder()), { ...refusal, message: /labels/ })
  await t.throwsAsync(loadSequenceClassifier(await tinyModelFolder(), { labels: ['one'] }), {
    ...refusal,
    message: /at least two/,
  })
})
