/** LQ-LoRA's configuration, in the reference's names. */
import { z } from 'zod'
import type { NormalFloatConfig } from '../../quant/normal_float.js'
import { type TargetOptions, targetFields } from '../targeting.js'

/** A configuration of `lqLora`: num_bits, num_bits_0, num_bits_1, block_size_0, block_size_1. */
export type LqLoraCandidate = readonly [2 | 3 | 4 | 8, 2 | 3 | 4 | 8, 'bf16' | 'fp16' | 'fp32', number, number]

/** Options of `lqLora`. */
export interface LqLoraOptions extends TargetOptions<'lq_lora_only'> {
  /** Rank; default 64. */
  readonly num_ranks?: number
  /** Numerator of the scale lora_alpha / num_ranks; default 16. */
  readonly lora_alpha?: number
  /** Probability of dropping an element of the LoRA's input while training; default 0. */
  readonly lora_dropout?: number
  /** Bits of a code; default 4. This and the next four are those of every module, where there is no budget. */
  readonly num_bits?: 2 | 3 | 4 | 8
  /** Bits of a quantised scale; default 8. */
  readonly num_bits_0?: 2 | 3 | 4 | 8
  /** Type of the scales of scales; default `fp32`. */
  readonly num_bits_1?: 'bf16' | 'fp16' | 'fp32'
  /** Weights per scale; default 64. */
  readonly block_size_0?: number
  /** Scales per scale of scales; default 256. */
  readonly block_size_1?: number
  /** Mean bits per weight of the modules: each gets the one of {@link candidates} that makes the sum of squared errors least. */
  readonly budget?: number
  /** What a module may get under a budget; default: 2, 3, 4 and 8 bits in blocks of 16, 32 and 64, scales of 8 bits. */
  readonly candidates?: readonly LqLoraCandidate[]
  /** What the modules have got, by path; found where there is a budget. */
  readonly configurations?: Readonly<Record<string, LqLoraCandidate>>
  /** Weighs errors by the squared gradients of a calibration; default false. */
  readonly data_aware?: boolean
  /** Most iterations of the decomposition; default 100. */
  readonly num_iterations?: number
  /** Singular vectors by a random sketch (default), or exactly. */
  readonly randomized?: boolean
  /** Further vectors of the sketch; default 10. */
  readonly num_oversampling?: number
}

const bits = z.union([z.literal(2), z.literal(3), z.literal(4), z.literal(8)])
const floatType = z.enum(['bf16', 'fp16', 'fp32'])
const size = z.int().positive()
const candidate = z.tuple([bits, bits, floatType, size, size]).readonly()

export const lqLoraSchema = z.strictObject({
  num_ranks: z.int().positive().default(64),
  lora_alpha: z.number().positive().default(16),
  lora_dropout: z.number().min(0).lt(1).default(0),
  num_bits: bits.default(4),
  num_bits_0: bits.default(8),
  num_bits_1: floatType.default('fp32'),
  block_size_0: size.default(64),
  block_size_1: size.default(256),
  budget: z.number().positive().optional(),
  candidates: z.array(candidate).min(1).optional(),
  configurations: z.record(z.string(), candidate).optional(),
  data_aware: z.boolean().default(false),
  num_iterations: z.int().positive().default(100),
  randomized: z.boolean().default(true),
  num_oversampling: z.int().min(0).default(10),
  ...targetFields('lq_lora_only'),
})

/** {@link LqLoraOptions} with the defaults filled in. */
export type LqLoraConfig = z.infer<typeof lqLoraSchema>

/** A candidate by the names of its parts. */
export const configOf = ([
  num_bits,
  num_bits_0,
  num_bits_1,
  block_size_0,
  block_size_1,
]: LqLoraCandidate): NormalFloatConfig => ({
  num_bits,
  num_bits_0,
  num_bits_1,
  block_size_0,
  block_size_1,
})

/** 2, 3, 4 and 8 bits in blocks of 16, 32 and 64 with scales of 8 bits: from 2.13 to 8.5 bits a weight. */
export const defaultCandidates: readonly LqLoraCandidate[] = ([2, 3, 4, 8] as const).flatMap((num_bits) =>
  [16, 32, 64].map((block) => [num_bits, 8, 'bf16', block, 256] as const),
)
