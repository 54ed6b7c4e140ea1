/** Drawing the next token from logits. */
import { defineOperator, misuse } from '../operator.js'
import type { Sym } from '../sym.js'

/** What a row of `settings` holds, in this order. */
export const settingNames = [
  'temperature',
  'topK',
  'topP',
  'minP',
  'repetitionPenalty',
  'presencePenalty',
  'frequencyPenalty',
] as const

/** Run-time inputs of {@link sampleToken}, in the order in which they take effect. */
export interface SampleOptions {
  /** `u32 [b, 4]`: low and high half of the seed, index of the token in its text, number of the text. */
  readonly draws: Sym
  /** `f32 [b, 7]`: see {@link settingNames}; a temperature of 0 takes the most likely token. */
  readonly settings: Sym
  /** `f32 [v]` or `[b, v]`, added to the logits. */
  readonly bias?: Sym | undefined
  /** `i32 [b, h]`: tokens of the texts so far, -1 where there is none; what penalties look at. */
  readonly history?: Sym | undefined
  /** `i32 [b]`: how many of them are the prompt's, which presence and frequency penalties leave out. */
  readonly promptLength?: Sym | undefined
  /** `u32 [b, ceil(v / 32)]`: one bit per token that may be drawn. */
  readonly mask?: Sym | undefined
  /** How many of the most likely tokens are wanted with their log-probabilities; default 1. */
  readonly top?: number
}

/** Outputs of {@link sampleToken}; log-probabilities are those of the logits as they came. */
export interface SampledToken {
  /** `i32 [b]` */
  readonly token: Sym
  /** `f32 [b]` */
  readonly logProbability: Sym
  /** `i32 [b, top]`, the most likely first. */
  readonly topTokens: Sym
  /** `f32 [b, top]` */
  readonly topLogProbabilities: Sym
}

const apply = defineOperator({
  name: 'sample_token',
  attributes: { top: 'i64' },
  types: ([logits], { top }) => {
    const [b, v] = logits!.shape as [number, number]
    if (logits!.rank !== 2 || v < 1 || (top as number) > v)
      misuse('sample_token', `logits [b, v] with v of at least ${top}`, `[${logits!.shape}]`)
    return [
      { shape: [b], dtype: 'i32' },
      { shape: [b], dtype: 'f32' },
      { shape: [b, top as number], dtype: 'i32' },
      { shape: [b, top as number], dtype: 'f32' },
    ]
  },
  optionalOutputs: [1, 2, 3],
  vjp: { none: 'a drawn index has no derivative' },
})

/** One token per row of `logits [b, v]`. @throws ERR_HEDDLE_SHAPE */
export function sampleToken(logits: Sym, options: SampleOptions): SampledToken {
  const { draws, settings, bias, mask, history, promptLength, top = 1 } = options
  const inputs = [logits, draws, settings, bias, mask, history, promptLength]
  const [token, logProbability, topTokens, topLogProbabilities] = apply(inputs, { top })
  return {
    token: token!,
    logProbability: logProbability!,
    topTokens: topTokens!,
    topLogProbabilities: topLogProbabilities!,
  }
}
