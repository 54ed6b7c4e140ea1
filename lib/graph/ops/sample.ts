/** Drawing the next token from logits. */
import { defineOperator } from '../operator.js'
import type { Sym } from '../sym.js'

/** Run-time inputs of {@link sampleToken}. */
export interface SampleOptions {
  /** `u32 [2]` */
  readonly seed: Sym
  /** `i32 []`: index of the token in its text; picks the random number. */
  readonly step: Sym
  /** `f32 []`: ≤ 0 takes the most likely token. */
  readonly temperature: Sym
  /** `i32 []`: keep only the k most likely; ≤ 0 keeps all. */
  readonly topK: Sym
  /** `f32 []`: keep the smallest set with at least this probability; ≥ 1 keeps all. */
  readonly topP: Sym
}

const apply = defineOperator({
  name: 'sample_token',
  types: ([logits]) => [
    { shape: logits!.shape.slice(0, 1), dtype: 'i32' },
    { shape: logits!.shape.slice(0, 1), dtype: 'f32' },
  ],
  optionalOutputs: [1],
  vjp: { none: 'a drawn index has no derivative' },
})

/** Token `i32 [b]` and its log-probability `f32 [b]` under the unmodified `logits [b, v]`. */
export function sampleToken(
  logits: Sym,
  options: SampleOptions,
): { readonly token: Sym; readonly logProbability: Sym } {
  const { seed, step, temperature, topK, topP } = options
  const [token, logProbability] = apply([logits, seed, step, temperature, topK, topP])
  return { token: token!, logProbability: logProbability! }
}
