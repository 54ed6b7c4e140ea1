// Contrastive fine-tuning of encoders: the reference's losses and gradients, retrieval and correlation scores, learning.

import { writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import test from 'ava'
import { openCheckpoint } from '../lib/formats/checkpoint.js'
import { gradients } from '../lib/graph/grad.js'
import { div, square } from '../lib/graph/ops/elementwise.js'
import { sum } from '../lib/graph/ops/reduce.js'
import { program } from '../lib/graph/program.js'
import { read } from '../lib/graph/sym.js'
import {
  adamw,
  cosineSimilarity,
  evaluate,
  HeddleError,
  loadEncoder,
  multipleNegatives,
  type Objective,
  train,
} from '../lib/index.js'
import { buildNetwork } from '../lib/models/build.js'
import type { Encoder } from '../lib/models/encoder.js'
import { encoders } from '../lib/models/registry.js'
import { batchTensors, namedInputs } from '../lib/objectives/batch_tensors.js'
import { correlation, ranks } from '../lib/objectives/cosine_similarity.js'
import { contrastiveBatch } from '../lib/objectives/multiple_negatives.js'
import { textBatch } from '../lib/objectives/text_batches.js'
import { golden, goldenJson } from './golden.js'
import { temporaryFolder } from './support/temporary_folder.js'
import { tinyEncoderFolder } from './tiny_model.js'

interface Case {
  readonly loss: number
  readonly gradient_norms: Readonly<Record<string, number>>
}

const expected = goldenJson<{
  readonly texts: readonly (readonly (readonly number[])[])[]
  readonly scores: readonly number[]
  readonly pairs: Case
  readonly triples: Case
  readonly cosine: Case & { readonly cosines: readonly number[] }
}>('embeddings.json')

const refusal = { instanceOf: HeddleError, code: 'ERR_HEDDLE_ARGUMENT' }

async function encoder(): Promise<Encoder> {
  const checkpoint = await openCheckpoint(golden('classifier-bert'))
  return buildNetwork(encoders, checkpoint)
}

const [anchors, positives, negatives] = expected.texts.map((list) => list.map((ids) => Int32Array.from(ids)))

/** The golden texts with a row of filling, as the last batch of an epoch has it. */
const contrastive = (withNegatives: boolean) =>
  contrastiveBatch(
    [
      ...anchors!.map((anchor, i) => ({
        anchor,
        positive: positives![i]!,
        ...(withNegatives ? { negative: negatives![i]! } : {}),
      })),
      undefined,
    ],
    32,
  )

const scored = () => {
  const pairs = anchors!.map((first, i) => ({ first, second: positives![i]!, score: expected.scores[i]! }))
  const rows = [...anchors!, undefined, ...positives!, undefined]
  return { ...textBatch(rows, 32), pairs: [...pairs, undefined] }
}

interface Reference {
  readonly objective: Objective<Encoder>
  readonly batch: unknown
  readonly golden: Case
}

const references: Readonly<Record<string, Reference>> = {
  'in-batch negatives': { objective: multipleNegatives(), batch: contrastive(false), golden: expected.pairs },
  'hard negatives': {
    objective: multipleNegatives({ temperature: 0.2 }),
    batch: contrastive(true),
    golden: expected.triples,
  },
  'cosine similarity': { objective: cosineSimilarity(), batch: scored(), golden: expected.cosine },
}

for (const [name, { objective, batch, golden: should }] of Object.entries(references))
  test(`${name}: loss and gradients of sentence-transformers' formula, padding left out`, async (t) => {
    const network = await encoder()
    const weights = network.weights()
    const step = program(async (...arrays) => {
      const inputs = namedInputs(objective, arrays)
      const total = await objective.loss(network, inputs, { precision: 'f32', training: false })
      const loss = div(total, anchors!.length)
      const found = await gradients(
        loss,
        weights.map(({ tensor }) => read(tensor)),
      )
      return { loss, norms: found.map((each) => sum(square(each))) }
    })
    const { loss, norms } = await step(...batchTensors(objective, batch))
    t.true(Math.abs(loss.item() - should.loss) < 2e-5 * should.loss, `${loss.item()}, should be ${should.loss}`)
    const found = new Map(weights.map((each, i) => [each.name, Math.sqrt(norms[i]!.item())]))
    const largest = Math.max(...Object.values(should.gradient_norms))
    for (const [key, norm] of Object.entries(should.gradient_norms))
      t.true(Math.abs(found.get(key)! - norm) < 2e-4 * norm + 1e-5 * largest, `${key}: ${found.get(key)}, not ${norm}`)
  })

test('a candidate that is the text of the positive is no negative', (t) => {
  const [a, b] = [Int32Array.of(1, 2), Int32Array.of(3)]
  const { bans } = contrastiveBatch(
    [{ anchor: a, positive: b }, { anchor: b, positive: b }, { anchor: b, positive: a }, undefined],
    32,
  )
  t.deepEqual([...bans.subarray(0, 12)].map(Math.abs), [0, 1, 0, 1, 1, 0, 0, 1, 0, 0, 0, 1])
})

test('recall and reciprocal rank count the positives that are closer than the own one', async (t) => {
  const board = multipleNegatives().scoreboard(undefined as never)
  const example = { anchor: Int32Array.of(1), positive: Int32Array.of(1) }
  // Anchors at 0°, 90° and 0°; positives at 0°, 60° and 90°.
  const [c, s] = [Math.cos(Math.PI / 3), Math.sin(Math.PI / 3)]
  board.add({ examples: [example, example, example, undefined] } as never, {
    loss: Float32Array.of(6),
    anchors: Float32Array.of(1, 0, 0, 1, 1, 0, 9, 9),
    positives: Float32Array.of(1, 0, c, s, 0, 1, 9, 9),
  })
  t.deepEqual(await board.result(), {
    loss: 2,
    recallAt1: 1 / 3,
    recallAt5: 1,
    recallAt10: 1,
    meanReciprocalRank: (1 + 1 / 2 + 1 / 3) / 3,
    examples: 3,
  })
})

test('Spearman ranks, ties sharing the mean of theirs', (t) => {
  t.deepEqual(ranks([0.5, -1, 0.5, 2]), [2.5, 1, 2.5, 4])
  t.is(correlation(ranks([1, 2, 3]), ranks([10, 100, 1000])), 1)
  t.is(correlation([1, 2, 3], [3, 2, 1]), -1)
  t.is(correlation([1, 1, 1], [1, 2, 3]), 0)
})

const words = [
  'stitch',
  'waters',
  'haste',
  'moon',
  'whale',
  'captain',
  'harpoon',
  'storm',
  'island',
  'mast',
  'rope',
  'sail',
]

async function rowsFile(rows: readonly object[]): Promise<string> {
  const path = join(temporaryFolder(), 'rows.jsonl')
  await writeFile(path, rows.map((row) => JSON.stringify(row)).join('\n'))
  return path
}

test('contrastive training lets anchors find their positives', async (t) => {
  const model = await loadEncoder(await tinyEncoderFolder())
  const data = await rowsFile(words.map((word) => ({ anchor: word, positive: word.toUpperCase() })))
  const objective = multipleNegatives({ pooling: model.settings.pooling })
  const options = { objective, data, evaluationData: data, maxLength: 32, batchSize: 12 } as const
  const found: number[] = []
  const steps = train(model, {
    ...options,
    epochs: 60,
    evaluateEvery: 60,
    evalOnStart: true,
    optimizer: adamw({ lr: 1e-2 }),
    onEvaluation: ({ evaluation }) => found.push(evaluation.meanReciprocalRank),
  })
  for await (const { loss } of steps) t.true(Number.isFinite(loss))
  t.true(found[1]! > found[0]! + 0.2, `${found}`)
  t.is(model.adapters[0]!.taskType, 'FEATURE_EXTRACTION')
  await model.dispose()
})

test('cosine training brings cosines into the order of the scores', async (t) => {
  const model = await loadEncoder(await tinyEncoderFolder())
  const data = await rowsFile(
    words.map((word, i) => ({ sentence1: word, sentence2: `${words[(i + 1) % 12]}`, score: i / 12 })),
  )
  const options = { objective: cosineSimilarity(), data, maxLength: 32, batchSize: 6 } as const
  const before = await evaluate(model, data, options)
  const steps = train(model, { ...options, epochs: 30, optimizer: adamw({ lr: 1e-2 }) })
  for await (const { loss } of steps) t.true(Number.isFinite(loss))
  const after = await evaluate(model, data, { ...options, adapter: model.adapters[0] })
  t.true(after.spearman > Math.max(0.8, before.spearman), `${before.spearman} → ${after.spearman}`)
  t.true(after.loss < 0.5 * before.loss)
  await model.dispose()
})

test('rows that do not fit are listed with what is missing; options are checked', async (t) => {
  const model = await loadEncoder(await tinyEncoderFolder())
  const { tokenizer, network } = model
  const options = { tokenizer, network, maxLength: 32, evaluationFraction: 0, seed: 0 }
  const wrong = await rowsFile([{ sentence1: 'a', sentence2: 'b', score: 5 }])
  await t.throwsAsync(cosineSimilarity().open(wrong, options), { instanceOf: HeddleError, message: /from -1 to 1/ })
  await t.throwsAsync(multipleNegatives().open(wrong, options), { instanceOf: HeddleError, message: /"anchor"/ })
  t.throws(() => multipleNegatives({ temprature: 1 } as object), { ...refusal, message: /Did you mean "temperature"/ })
  await model.dispose()
})
