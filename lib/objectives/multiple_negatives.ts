/**
 * Contrastive fine-tuning of encoders: each anchor is to find its positive among those of the whole batch (InfoNCE, van
 * den Oord et al. 2018, arXiv 1807.03748; Henderson et al. 2017, arXiv 1705.00652), as sentence-transformers'
 * MultipleNegativesRankingLoss.
 */
import { z } from 'zod'
import { parseConfig } from '../config.js'
import { add, greater, mul, sub } from '../graph/ops/elementwise.js'
import { slice } from '../graph/ops/index.js'
import { matmul } from '../graph/ops/matmul.js'
import { reshape, sum } from '../graph/ops/reduce.js'
import { program } from '../graph/program.js'
import type { Sym } from '../graph/sym.js'
import type { Encoder, Pooling } from '../models/encoder.js'
import { tensor } from '../tensor/tensor.js'
import { crossEntropy } from './causal_lm_loss.js'
import { type ExampleReading, openExamples } from './example_data.js'
import type { EvaluationResult, Objective, Scoreboard } from './objective.js'
import { encodedText, type TextBatch, textBatch } from './text_batches.js'
import { member, rowCosines, unitVectors } from './text_tuples.js'

/** An anchor, its positive, and a text that is like it but no positive, where the data have one. */
export interface ContrastiveTexts {
  readonly anchor: Int32Array
  readonly positive: Int32Array
  readonly negative?: Int32Array | undefined
}

/** Rows: n anchors, n positives, and n hard negatives where the data have them. */
export interface ContrastiveBatch extends TextBatch {
  readonly examples: readonly (ContrastiveTexts | undefined)[]
  /** `[n, candidates]`: 0 where an anchor is compared with a candidate, −1 where not. */
  readonly bans: Float32Array
}

/** Options of {@link multipleNegatives}. */
export interface MultipleNegativesOptions {
  /** Cosines are divided by it; default 0.05, sentence-transformers' scale of 20. */
  readonly temperature?: number
  /** How hidden states become one vector; default `mean`. Take the encoder's own, `model.settings.pooling`. */
  readonly pooling?: Pooling
}

/** What scoring a retrieval task gives: each anchor looks for its positive among those of all held-out rows. */
export interface RetrievalEvaluation extends EvaluationResult {
  /** Among the positives of the anchor's batch: it depends on the batch size. */
  readonly loss: number
  /** Share of anchors whose positive comes first. */
  readonly recallAt1: number
  readonly recallAt5: number
  readonly recallAt10: number
  /** Mean of 1 / rank of the positive. */
  readonly meanReciprocalRank: number
  readonly examples: number
}

const schema = z.strictObject({
  temperature: z.number().positive({ error: 'a number above 0' }).default(0.05),
  pooling: z.enum(['mean', 'cls', 'max']).default('mean'),
})

/**
 * Mean over anchors of −log softmax(cos(anchor, candidates) / temperature)[positive]. Rows are `{anchor, positive}`, and
 * `negative` if all have it. Candidates that are the very text of the positive are no negatives.
 * @throws ERR_HEDDLE_ARGUMENT on an option that is unknown or out of range
 */
export function multipleNegatives(
  options: MultipleNegativesOptions = {},
): Objective<Encoder, ContrastiveBatch, RetrievalEvaluation> {
  const config = parseConfig('multipleNegatives', schema, options)
  const { temperature, pooling } = config
  return {
    name: 'multiple-negatives',
    config,
    inputs: ['ids', 'mask', 'bans', 'targets'],
    arrays({ rows, length, ids, mask, bans, examples }) {
      const shape = [rows, length]
      const n = examples.length
      const targets = Int32Array.from(examples, (example, i) => (example ? i : -100))
      return {
        ids: { data: ids, shape },
        mask: { data: mask, shape },
        bans: { data: bans, shape: [n, rows - n] },
        targets: { data: targets, shape: [n] },
      }
    },
    weight: ({ examples }) => examples.filter((example) => example !== undefined).length,
    tokens: ({ tokens }) => tokens,
    async loss(network, inputs, forward) {
      const vectors = await unitVectors(network, inputs, forward, pooling)
      return rankingLoss(vectors, inputs.bans!, inputs.targets!, temperature)
    },
    async scores(network, inputs, forward) {
      const vectors = await unitVectors(network, inputs, forward, pooling)
      const n = inputs.targets!.shape[0]!
      const loss = rankingLoss(vectors, inputs.bans!, inputs.targets!, temperature)
      return { loss, anchors: member(vectors, 0, n), positives: member(vectors, 1, n) }
    },
    scoreboard: retrievalScoreboard,
    open(path, { tokenizer, network: _, maxLength, ...rest }) {
      const reading: ExampleReading<'pairs', ContrastiveTexts, ContrastiveBatch> = {
        task: 'pairs',
        maxLength,
        tokens: ({ anchor, positive, negative }: ContrastiveTexts) =>
          anchor.length + positive.length + (negative?.length ?? 0),
        collate: (examples: readonly (ContrastiveTexts | undefined)[]) => contrastiveBatch(examples, maxLength),
        async encode(pair) {
          if ('score' in pair) return { reason: 'expected "anchor" and "positive", got two sentences with a score' }
          const { anchor, positive, negative } = pair
          const texts = [anchor, positive, ...(negative === undefined ? [] : [negative])]
          const [first, second, third] = await Promise.all(texts.map((text) => encodedText(tokenizer, text, maxLength)))
          return { example: { anchor: first!, positive: second!, ...(third ? { negative: third } : {}) } }
        },
      }
      return openExamples(path, reading, rest)
    },
  }
}

/** Σ −log softmax(cosines / temperature)[target] over anchors, `f32 []`, from unit vectors of a batch's rows. */
function rankingLoss(vectors: Sym, bans: Sym, targets: Sym, temperature: number): Sym {
  const n = targets.shape[0]!
  const candidates = slice(vectors, [{ axis: 0, start: n, end: vectors.shape[0]! }])
  const cosines = matmul(member(vectors, 0, n), candidates, { transposeB: true })
  return sum(crossEntropy(add(mul(1 / temperature, cosines), mul(1e9, bans)), targets))
}

/** Lays examples out; hard negatives take part if every example of the batch has one. */
export function contrastiveBatch(
  examples: readonly (ContrastiveTexts | undefined)[],
  maxLength: number,
): ContrastiveBatch {
  const hasNegatives = examples.every((example) => example === undefined || example.negative !== undefined)
  const candidates = [
    ...examples.map((example) => example?.positive),
    ...(hasNegatives ? examples.map((example) => example?.negative) : []),
  ]
  const batch = textBatch([...examples.map((example) => example?.anchor), ...candidates], maxLength)
  const texts = candidates.map((ids) => ids?.join(' '))
  const bans = Float32Array.from({ length: examples.length * candidates.length }, (_, at) => {
    const [row, column] = [Math.floor(at / candidates.length), at % candidates.length]
    const isOwn = column === row
    return !isOwn && (texts[column] === undefined || texts[column] === texts[row]) ? -1 : 0
  })
  return { ...batch, examples, bans }
}

/** Rows of cosines that are compared at a time. */
const chunkRows = 256

function retrievalScoreboard(): Scoreboard<ContrastiveBatch, RetrievalEvaluation> {
  const vectors: Record<'anchors' | 'positives', Float32Array[]> = { anchors: [], positives: [] }
  let total = 0
  let examples = 0
  return {
    add(batch, outputs) {
      total += outputs.loss![0]!
      const real = batch.examples.filter((example) => example !== undefined).length
      examples += real
      for (const name of ['anchors', 'positives'] as const) {
        const all = outputs[name] as Float32Array
        vectors[name].push(all.subarray(0, (all.length / batch.examples.length) * real))
      }
    },
    async result() {
      const ranks = await positiveRanks(joined(vectors.anchors), joined(vectors.positives), examples)
      const share = (most: number): number => ranks.filter((rank) => rank < most).length / Math.max(1, examples)
      return {
        loss: total / Math.max(1, examples),
        recallAt1: share(1),
        recallAt5: share(5),
        recallAt10: share(10),
        meanReciprocalRank: ranks.reduce((sumSoFar, rank) => sumSoFar + 1 / (rank + 1), 0) / Math.max(1, examples),
        examples,
      }
    },
  }
}

/** For each of n anchors: how many positives are closer than its own, from unit vectors `[n, h]`. */
async function positiveRanks(anchors: Float32Array, positives: Float32Array, n: number): Promise<Float32Array> {
  const h = anchors.length / Math.max(1, n)
  const closer = program((some, own, all) =>
    // Rounding must not let a text be closer than itself.
    sum(greater(sub(matmul(some!, all!, { transposeB: true }), 1e-6), reshape(rowCosines(some!, own!), [-1, 1])), {
      axes: [1],
    }),
  )
  using all = tensor(positives, [n, h])
  const ranks = new Float32Array(n)
  try {
    for (let start = 0; start < n; start += chunkRows) {
      const end = Math.min(n, start + chunkRows)
      using some = tensor(anchors.slice(start * h, end * h), [end - start, h])
      using own = tensor(positives.slice(start * h, end * h), [end - start, h])
      using found = await closer(some, own, all)
      ranks.set((await found.data()) as Float32Array, start)
    }
    return ranks
  } finally {
    closer.dispose()
  }
}

function joined(parts: readonly Float32Array[]): Float32Array {
  const whole = new Float32Array(parts.reduce((total, { length }) => total + length, 0))
  let at = 0
  for (const part of parts) {
    whole.set(part, at)
    at += part.length
  }
  return whole
}
