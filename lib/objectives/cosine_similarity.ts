/** Regression of cosines: two texts are to be as alike as people say (Reimers & Gurevych 2019, arXiv 1908.10084). */
import { z } from 'zod'
import { parseConfig } from '../config.js'
import { mul, square, sub } from '../graph/ops/elementwise.js'
import { sum } from '../graph/ops/reduce.js'
import type { Sym } from '../graph/sym.js'
import type { Encoder, Pooling } from '../models/encoder.js'
import type { Forward } from '../nn/site.js'
import { type ExampleReading, openExamples } from './example_data.js'
import type { EvaluationResult, Objective, Scoreboard, Syms } from './objective.js'
import { encodedText, type TextBatch, textBatch } from './text_batches.js'
import { member, rowCosines, unitVectors } from './text_tuples.js'

/** Two texts and how alike they are. */
export interface ScoredPair {
  readonly first: Int32Array
  readonly second: Int32Array
  readonly score: number
}

/** Rows: n first texts, then n second ones. */
export interface ScoredPairBatch extends TextBatch {
  readonly pairs: readonly (ScoredPair | undefined)[]
}

/** Options of {@link cosineSimilarity}. */
export interface CosineSimilarityOptions {
  /** How hidden states become one vector; default `mean`. Take the encoder's own, `model.settings.pooling`. */
  readonly pooling?: Pooling
}

/** What scoring pairs gives. */
export interface SimilarityEvaluation extends EvaluationResult {
  /** Mean of (cosine − score)². */
  readonly loss: number
  /** Correlation of the ranks of cosines and scores. */
  readonly spearman: number
  /** Correlation of cosines and scores. */
  readonly pearson: number
  readonly examples: number
}

const schema = z.strictObject({ pooling: z.enum(['mean', 'cls', 'max']).default('mean') })

/**
 * Mean of (cos(u, v) − score)². Rows are `{sentence1, sentence2, score}` with scores from −1 to 1; divide others first.
 * @throws ERR_HEDDLE_ARGUMENT on an option that is unknown
 */
export function cosineSimilarity(
  options: CosineSimilarityOptions = {},
): Objective<Encoder, ScoredPairBatch, SimilarityEvaluation> {
  const config = parseConfig('cosineSimilarity', schema, options)
  const cosines = async (network: Encoder, inputs: Syms, forward: Forward): Promise<Sym> => {
    const vectors = await unitVectors(network, inputs, forward, config.pooling)
    const n = inputs.scores!.shape[0]!
    return rowCosines(member(vectors, 0, n), member(vectors, 1, n))
  }
  const loss = (found: Sym, { scores, isPair }: Syms): Sym => sum(mul(square(sub(found, scores!)), isPair!))
  return {
    name: 'cosine-similarity',
    config,
    inputs: ['ids', 'mask', 'scores', 'isPair'],
    arrays({ rows, length, ids, mask, pairs }) {
      const shape = [rows, length]
      return {
        ids: { data: ids, shape },
        mask: { data: mask, shape },
        scores: { data: Float32Array.from(pairs, (pair) => pair?.score ?? 0), shape: [pairs.length] },
        isPair: { data: Float32Array.from(pairs, (pair) => (pair ? 1 : 0)), shape: [pairs.length] },
      }
    },
    weight: ({ pairs }) => pairs.filter((pair) => pair !== undefined).length,
    tokens: ({ tokens }) => tokens,
    loss: async (network, inputs, forward) => loss(await cosines(network, inputs, forward), inputs),
    async scores(network, inputs, forward) {
      const found = await cosines(network, inputs, forward)
      return { loss: loss(found, inputs), cosines: found }
    },
    scoreboard: similarityScoreboard,
    open(path, { tokenizer, network: _, maxLength, ...rest }) {
      const encode = (text: string): Promise<Int32Array> => encodedText(tokenizer, text, maxLength)
      const reading: ExampleReading<'pairs', ScoredPair, ScoredPairBatch> = {
        task: 'pairs',
        maxLength,
        tokens: ({ first, second }: ScoredPair) => first.length + second.length,
        collate(pairs: readonly (ScoredPair | undefined)[]): ScoredPairBatch {
          const rows = [...pairs.map((pair) => pair?.first), ...pairs.map((pair) => pair?.second)]
          return { ...textBatch(rows, maxLength), pairs }
        },
        async encode(pair) {
          if (!('score' in pair)) return { reason: 'expected two sentences with a "score", got a pair without one' }
          const { anchor, positive, score } = pair
          if (!(score >= -1 && score <= 1)) return { reason: `expected a score from -1 to 1, got ${score}` }
          return { example: { first: await encode(anchor), second: await encode(positive), score } }
        },
      }
      return openExamples(path, reading, rest)
    },
  }
}

function similarityScoreboard(): Scoreboard<ScoredPairBatch, SimilarityEvaluation> {
  const found: number[] = []
  const wanted: number[] = []
  let total = 0
  return {
    add({ pairs }, outputs) {
      total += outputs.loss![0]!
      for (const [i, pair] of pairs.entries()) {
        if (!pair) continue
        found.push(outputs.cosines![i]!)
        wanted.push(pair.score)
      }
    },
    result: () => ({
      loss: total / Math.max(1, found.length),
      spearman: correlation(ranks(found), ranks(wanted)),
      pearson: correlation(found, wanted),
      examples: found.length,
    }),
  }
}

/** Pearson's correlation; 0 where one of the lists is constant. */
export function correlation(a: readonly number[], b: readonly number[]): number {
  const mean = (list: readonly number[]): number => list.reduce((x, y) => x + y, 0) / list.length
  const [ma, mb] = [mean(a), mean(b)]
  let [ab, aa, bb] = [0, 0, 0]
  for (const [i, x] of a.entries()) {
    const [da, db] = [x - ma, b[i]! - mb]
    ab += da * db
    aa += da * da
    bb += db * db
  }
  return aa === 0 || bb === 0 ? 0 : ab / Math.sqrt(aa * bb)
}

/** Ranks from 1; equal values share the mean of theirs. */
export function ranks(values: readonly number[]): number[] {
  const order = [...values.keys()].sort((i, j) => values[i]! - values[j]!)
  const result = new Array<number>(values.length)
  for (let start = 0; start < order.length; ) {
    let end = start
    while (end < order.length && values[order[end]!] === values[order[start]!]) end += 1
    for (let at = start; at < end; at += 1) result[order[at]!] = (start + 1 + end) / 2
    start = end
  }
  return result
}
