/** Pairs of a chosen and a rejected answer to the same prompt: rows, batches, and the log-probabilities of both answers. */
import { type Batch, collate, type Sequence } from '../data/collate.js'
import type { PreferenceExample } from '../data/shapes.js'
import { HeddleError } from '../errors.js'
import { greaterEqual, maximum, neg } from '../graph/ops/elementwise.js'
import { slice } from '../graph/ops/index.js'
import { reshape, sum } from '../graph/ops/reduce.js'
import type { Sym } from '../graph/sym.js'
import type { CausalLm } from '../models/causal_lm.js'
import type { Forward } from '../nn/site.js'
import type { ChatMessage, Tokenizer } from '../tokenize/tokenizer.js'
import { targetLosses } from './causal_lm_loss.js'
import { type Encoded, type ExampleData, type ExampleReading, openExamples } from './example_data.js'
import type { BatchArray, OpenOptions, Syms } from './objective.js'

/** One pair, tokenized; in each sequence the answer is what counts. */
export interface PreferencePair {
  readonly chosen: Sequence
  readonly rejected: Sequence
  /** log p of both answers under the reference, where it was computed before. */
  reference?: readonly [number, number]
}

/** Some pairs: the chosen answers' rows, then the rejected ones'. */
export interface PreferenceBatch extends Batch {
  readonly pairs: readonly (PreferencePair | undefined)[]
}

/** Inputs of a traced loss on pairs. */
export const pairInputs = ['ids', 'targets', 'segments', 'isPair'] as const

/** The arrays of {@link pairInputs}: ids, targets and segments `i32 [2n, t]`, isPair `f32 [n]`. */
export function pairArrays(batch: PreferenceBatch): Readonly<Record<(typeof pairInputs)[number], BatchArray>> {
  const { rows, length, inputIds, targets, segments, pairs } = batch
  const shape = [rows, length]
  return {
    ids: { data: inputIds, shape },
    targets: { data: targets, shape },
    segments: { data: segments, shape },
    isPair: { data: Float32Array.from(pairs, (pair) => (pair ? 1 : 0)), shape: [pairs.length] },
  }
}

/** Pairs of a batch that are no filling. */
export const pairCount = ({ pairs }: PreferenceBatch): number => pairs.filter((pair) => pair !== undefined).length

/** Tokens of both answers and their prompts. */
export const pairTokens = ({ segments }: PreferenceBatch): number =>
  segments.reduce((count, id) => count + (id >= 0 ? 1 : 0), 0)

/** Log-probabilities of the answers of each pair, `f32 [n]`, and their lengths in tokens. */
export interface AnswerScores {
  readonly chosen: Sym
  readonly rejected: Sym
  readonly chosenLength: Sym
  readonly rejectedLength: Sym
}

/** Traces Σ log p(token) over each answer. */
export async function answerScores(network: CausalLm, inputs: Syms, forward: Forward): Promise<AnswerScores> {
  const { ids, targets, segments } = inputs
  const shape = ids!.shape
  const hidden = await network.hidden({ ids: ids!, segments: segments! }, forward)
  const all = sum(neg(reshape(targetLosses(network, hidden, targets!, forward), shape)), { axes: [1] })
  const lengths = maximum(1, sum(greaterEqual(targets!, 0), { axes: [1] }))
  const [chosen, rejected] = halves(all)
  const [chosenLength, rejectedLength] = halves(lengths)
  return { chosen, rejected, chosenLength, rejectedLength }
}

/** The first and the second half of `[2n]`. */
export function halves(all: Sym): readonly [Sym, Sym] {
  const n = all.shape[0]! / 2
  return [slice(all, [{ axis: 0, start: 0, end: n }]), slice(all, [{ axis: 0, start: n, end: 2 * n }])]
}

/** Reads preferences: answers as texts, or as lists of messages, which go through the chat template. */
export function openPairs(
  path: string,
  { tokenizer, maxLength, ...options }: OpenOptions<CausalLm>,
): Promise<ExampleData<PreferencePair, PreferenceBatch>> {
  const padId = tokenizer.padTokenId ?? tokenizer.eosTokenIds[0] ?? 0
  const reading: ExampleReading<'preference', PreferencePair, PreferenceBatch> = {
    task: 'preference',
    maxLength,
    tokens: ({ chosen, rejected }) => chosen.ids.length + rejected.ids.length - 2,
    collate(pairs) {
      const rows = [...pairs.map((pair) => pair?.chosen), ...pairs.map((pair) => pair?.rejected)]
      return { ...collate(rows, { maxLength, padId }), pairs }
    },
    encode: (example) => pairOf(example, tokenizer, maxLength),
  }
  return openExamples(path, reading, options)
}

async function pairOf(
  example: PreferenceExample,
  tokenizer: Tokenizer,
  maxLength: number,
): Promise<Encoded<PreferencePair>> {
  try {
    const pair = {
      chosen: cut(await encoded(example, example.chosen, tokenizer)),
      rejected: cut(await encoded(example, example.rejected, tokenizer)),
    }
    return pair.chosen.loss.includes(1) && pair.rejected.loss.includes(1)
      ? { example: pair }
      : { reason: `no answer within the first ${maxLength} tokens` }
  } catch (error) {
    if (error instanceof HeddleError) return { reason: error.message }
    throw error
  }

  function cut({ ids, loss }: Sequence): Sequence {
    const end = Math.min(loss.lastIndexOf(1) + 1, maxLength + 1)
    return { ids: ids.subarray(0, end), loss: loss.subarray(0, end) }
  }
}

/** The prompt and one of its answers, of which the answer counts. */
async function encoded(
  { prompt }: PreferenceExample,
  answer: string | readonly ChatMessage[],
  tokenizer: Tokenizer,
): Promise<Sequence> {
  if (typeof prompt === 'string') return completed(tokenizer, prompt, answer as string)
  const { ids, loss } = await tokenizer.encodeChat([...prompt, ...(answer as readonly ChatMessage[])])
  return { ids, loss: lastTurn(loss) }
}

async function completed(tokenizer: Tokenizer, prompt: string, answer: string): Promise<Sequence> {
  const before = await tokenizer.encode(prompt)
  const after = await tokenizer.encode(answer, { addSpecialTokens: false })
  const ids = Int32Array.of(...before, ...after, ...tokenizer.eosTokenIds.slice(0, 1))
  return { ids, loss: new Uint8Array(ids.length).fill(1, before.length) }
}

/** Only the last of the assistant's turns is the answer; those before it are the prompt's. */
function lastTurn(loss: Uint8Array): Uint8Array {
  const start = loss.lastIndexOf(0, loss.lastIndexOf(1)) + 1
  return loss.map((value, index) => (index < start ? 0 : value))
}
