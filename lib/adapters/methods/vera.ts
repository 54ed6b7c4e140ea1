/** VeRA (Kopiczko et al. 2023, arXiv 2310.11454) as PEFT has it: two vectors per module beside shared random matrices. */
import { z } from 'zod'
import { parseConfig } from '../../config.js'
import { mul } from '../../graph/ops/elementwise.js'
import { slice } from '../../graph/ops/index.js'
import { reshape } from '../../graph/ops/reduce.js'
import { read } from '../../graph/sym.js'
import type { Site } from '../../nn/site.js'
import { tensor } from '../../tensor/tensor.js'
import { declared, filled, normal } from '../initial_values.js'
import {
  changedLinear,
  changedWeight,
  factorsOf,
  type LowRankChange,
  type MatrixShape,
  matrixShape,
} from '../low_rank_change.js'
import type {
  Parametrization,
  ParametrizationType,
  SharedDeclaration,
  SitePlan,
  SiteTensors,
} from '../parametrization.js'
import { storedFields, type TargetOptions, targetFields, targeting } from '../targeting.js'
import { kaimingUniform, TorchGenerator } from '../torch_random.js'

/** Options of {@link vera}: PEFT's names and, but for `target_modules`, its defaults. */
export interface VeraOptions extends TargetOptions<'vera_only'> {
  /** Rank of the shared matrices; default 256. */
  readonly r?: number
  /** Key of the random matrices, from 0; default 0. */
  readonly projection_prng_key?: number
  /** Write the random matrices into the file; otherwise they are drawn again from the key. Default true. */
  readonly save_projection?: boolean
  /** Probability of dropping an element of the adapter's input while training; default 0. */
  readonly vera_dropout?: number
  /** What λ_d begins with; default 0.1. */
  readonly d_initial?: number
  /** False begins with λ_b = 1 and normal λ_d, which is not the identity; default true. */
  readonly init_weights?: boolean
  /** Kept for PEFT's sake: a module here knows by itself how its weight is stored. */
  readonly fan_in_fan_out?: boolean
}

const schema = z.strictObject({
  r: z.int().positive().default(256),
  projection_prng_key: z.int().min(0).default(0),
  save_projection: z.boolean().default(true),
  vera_dropout: z.number().min(0).lt(1).default(0),
  d_initial: z.number().default(0.1),
  init_weights: z.boolean().default(true),
  fan_in_fan_out: z.boolean().default(false),
  ...targetFields('vera_only'),
})
type VeraConfig = z.infer<typeof schema>

/**
 * y = W x + λ_b ⊙ B (λ_d ⊙ A dropout(x)) with λ_b `[out]` and λ_d `[r]` trained. A `[r, in]` and B `[out, r]` are the
 * corners of random matrices as large as the largest module needs, drawn once and frozen.
 * @throws ERR_HEDDLE_ARGUMENT on a field that is unknown or out of range
 */
export function vera(options: VeraOptions = {}): Parametrization {
  const config = parseConfig('vera', schema, options)
  // PEFT's VeRA excludes no modules: its file has to name those that are left.
  const { exclude_modules: _, ...written } = config
  return {
    name: 'vera',
    config,
    ...targeting(config),
    plan: (site) => planAt(site, config),
    shared: (sites) => bases(sites, config),
    written: async () => ({ config: written, tensors: new Map() }),
  }
}

/** Registry entry. */
export const veraType: ParametrizationType = {
  name: 'vera',
  peftType: 'VERA',
  isPeft: true,
  title: 'VeRA',
  source: 'Kopiczko et al. 2023, arXiv 2310.11454',
  purpose: 'about a tenth of the parameters of LoRA: two vectors per module, random matrices shared by all',
  initialChange: 'none',
  create: (config) => vera(config as VeraOptions),
  restore: (stored) => vera(storedFields(schema, stored) as VeraOptions),
}

/** A and B as PEFT draws them: A first, both uniform on ±√(6 / columns). */
function bases(sites: readonly Site[], config: VeraConfig): Record<string, SharedDeclaration> {
  const { r, projection_prng_key: key, save_projection: isStored } = config
  const shapesOf = sites.map((site) => matrixShape('vera', site))
  const largest = (side: 'out' | 'inner'): number => Math.max(...shapesOf.map((shape) => shape[side]))
  const shapes = { vera_A: [r, largest('inner')], vera_B: [largest('out'), r] } as const
  const generator = new TorchGenerator(key)
  const declare = (shape: readonly [number, number]): SharedDeclaration => ({
    shape,
    isTrained: false,
    isStored,
    make: async () => tensor(await kaimingUniform(generator, shape, { slope: 0, dtype: 'f32' }), shape),
  })
  return { vera_A: declare(shapes.vera_A), vera_B: declare(shapes.vera_B) }
}

function planAt(site: Site, config: VeraConfig): SitePlan {
  const shape = matrixShape('vera', site)
  const { r, init_weights: isDefault, d_initial: initial, vera_dropout: dropout } = config
  const change = (attached: SiteTensors): LowRankChange => changeAt(shape, attached)
  return {
    parameters: {
      vera_lambda_b: declared([shape.out], filled(isDefault ? 0 : 1)),
      vera_lambda_d: declared([r], isDefault ? filled(initial) : normal(1)),
    },
    forward: (context) => changedLinear(context, shape, [change(context)], { dropout }),
    merged: (context) => ({ weight: changedWeight(context.weight, [change(context)], shape) }),
    factors: (attached) => factorsOf(change(attached)),
  }
}

/**
 * Both vectors belong to B, which is small: B' = λ_b ⊙ B ⊙ λ_d. A stays frozen, and the backward pass keeps A x `[n, r]`
 * instead of B (λ_d ⊙ A x) `[n, out]`.
 */
function changeAt({ out, inner }: MatrixShape, { parameters, buffers }: SiteTensors): LowRankChange {
  const [a, b] = [read(buffers.vera_A!), read(buffers.vera_B!)]
  const [lambdaB, lambdaD] = [read(parameters.vera_lambda_b!), read(parameters.vera_lambda_d!)]
  return {
    right: slice(a, [{ axis: 1, start: 0, end: inner }]),
    left: mul(mul(slice(b, [{ axis: 0, start: 0, end: out }]), reshape(lambdaB, [out, 1])), lambdaD),
  }
}
