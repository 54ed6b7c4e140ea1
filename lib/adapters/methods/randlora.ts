/** RandLoRA (Albert et al. 2025, arXiv 2502.00987) as PEFT has it: a full-rank change from scaled random matrices. */
import { z } from 'zod'
import { parseConfig } from '../../config.js'
import { add, mul } from '../../graph/ops/elementwise.js'
import { slice } from '../../graph/ops/index.js'
import { matmul } from '../../graph/ops/matmul.js'
import { reshape } from '../../graph/ops/reduce.js'
import { read, recomputed, type Sym } from '../../graph/sym.js'
import { dropped, linearShape, linearWith, type Site } from '../../nn/site.js'
import { elementCount } from '../../tensor/dtype.js'
import { tensor } from '../../tensor/tensor.js'
import { declared, filled, normal, zero } from '../initial_values.js'
import type {
  Parametrization,
  ParametrizationType,
  SharedDeclaration,
  SiteContext,
  SitePlan,
  SiteTensors,
} from '../parametrization.js'
import { storedFields, type TargetOptions, targetFields, targeting, unsuited } from '../targeting.js'
import { kaimingUniform, standardised, TorchGenerator, uniform } from '../torch_random.js'

/** Options of {@link randlora}: PEFT's names and, but for `target_modules`, its defaults. */
export interface RandLoraOptions extends TargetOptions<'randlora_only'> {
  /** Rank of one random product; default 32. A smaller one trains more numbers: about out · in / r. */
  readonly r?: number
  /** Numerator of the scale alpha/r; default 640. The paper's s = alpha / (r √N) is an alpha that is √N smaller. */
  readonly randlora_alpha?: number
  /** Probability of dropping an element of the adapter's input while training; default 0. */
  readonly randlora_dropout?: number
  /** Key of the random matrices, from 0; default 0. */
  readonly projection_prng_key?: number
  /** Write the random matrices into the file; otherwise they are drawn again from the key. Default true. */
  readonly save_projection?: boolean
  /** Random matrices of −c, 0 and c, two thirds of them 0; default false. */
  readonly sparse?: boolean
  /** The same with all but 1/√d zero, d the smaller side of the matrices; default false. */
  readonly very_sparse?: boolean
  /** False begins with normal λ, which is not the identity; default true. */
  readonly init_weights?: boolean
  /** Kept for PEFT's sake: a module here knows by itself how its weight is stored. */
  readonly fan_in_fan_out?: boolean
}

const schema = z.strictObject({
  r: z.int().positive().default(32),
  randlora_alpha: z.number().default(640),
  randlora_dropout: z.number().min(0).lt(1).default(0),
  projection_prng_key: z.int().min(0).default(0),
  save_projection: z.boolean().default(true),
  sparse: z.boolean().default(false),
  very_sparse: z.boolean().default(false),
  init_weights: z.boolean().default(true),
  fan_in_fan_out: z.boolean().default(false),
  ...targetFields('randlora_only'),
})
type RandLoraConfig = z.infer<typeof schema>

/**
 * y = W x + s M x with s = alpha/r. With D and d the larger and the smaller side of W and N = ⌈d / r⌉, M `[D, d]` (or its
 * transpose `[d, D]` where in > out) is Q P: Q `[D, N r]` is the random basis B, flattened, and P `[r N, d]` is made of
 * the random basis A, P[k N + n, j] = λ[k, n] A[k, j] γ[n, j], with λ `[r, N]` and γ `[N, d]` trained. The order of Q's
 * columns is another than that of P's rows, in PEFT and in the authors' code: the bases are random all the same.
 * @throws ERR_HEDDLE_ARGUMENT on a field that is unknown or out of range
 */
export function randlora(options: RandLoraOptions = {}): Parametrization {
  const config = parseConfig('randlora', schema, options)
  // PEFT's RandLoRA excludes no modules: its file has to name those that are left.
  const { exclude_modules: _, ...written } = config
  return {
    name: 'randlora',
    config,
    ...targeting(config),
    plan: (site) => planAt(site, config),
    shared: (sites) => bases(sites, config),
    written: async () => ({ config: written, tensors: new Map() }),
  }
}

/** Registry entry. */
export const randloraType: ParametrizationType = {
  name: 'randlora',
  peftType: 'RANDLORA',
  isPeft: true,
  title: 'RandLoRA',
  source: 'Albert et al. 2025, arXiv 2502.00987',
  purpose: 'a change of full rank from about as many numbers as LoRA trains',
  initialChange: 'none',
  create: (config) => randlora(config as RandLoraOptions),
  restore: (stored) => randlora(storedFields(schema, stored) as RandLoraOptions),
}

/** A `[r, 1, d]` and B `[D, N, r]` for the largest sides of all modules, as PEFT draws them: A first, deviation 1. */
function bases(sites: readonly Site[], config: RandLoraConfig): Record<string, SharedDeclaration> {
  for (const site of sites) expectLinear(site)
  const { r, projection_prng_key: key, save_projection: isStored } = config
  const shapes = sites.map(linearShape)
  const sides = [0, 1].map((axis) => Math.max(...shapes.map((shape) => shape[axis as 0 | 1])))
  const [large, small] = [Math.max(...sides), Math.min(...sides)]
  const count = Math.ceil(small / r)
  const generator = new TorchGenerator(key)
  const declare = (shape: readonly number[], draw: Draw): SharedDeclaration => ({
    shape,
    isTrained: false,
    isStored,
    make: async () => tensor(await draw(generator, shape), shape),
  })
  const [a, b] = [[r, 1, small] as const, [large, count, r] as const]
  if (config.sparse || config.very_sparse) {
    const draw = ternary(config.very_sparse ? Math.sqrt(small) : 3)
    return { randlora_A: declare(a, draw), randlora_B: declare(b, draw) }
  }
  return { randlora_A: declare(a, dense), randlora_B: declare(b, denseInParts) }
}

type Draw = (generator: TorchGenerator, shape: readonly number[]) => Promise<Float32Array>

const leaky = { slope: Math.sqrt(5), dtype: 'bf16' } as const
const dense: Draw = async (generator, shape) => standardised(await kaimingUniform(generator, shape, leaky), 'bf16')

/** B's N matrices are drawn one after the other, and then lie side by side. */
const denseInParts: Draw = async (generator, [rows, count, r]) => {
  const all = new Float32Array(rows! * count! * r!)
  for (let n = 0; n < count!; n += 1) {
    const part = await kaimingUniform(generator, [rows!, 1, r!], leaky)
    for (let row = 0; row < rows!; row += 1) all.set(part.subarray(row * r!, (row + 1) * r!), (row * count! + n) * r!)
  }
  return standardised(all, 'bf16')
}

/** Li et al. 2006: −1 and 1 with probability 1/(2 q) each. */
const ternary =
  (q: number): Draw =>
  async (generator, shape) => {
    const size = elementCount(shape)
    const drawn = await uniform(generator, size, { from: 0, to: 1, dtype: 'f32' })
    const [low, high] = [Math.fround(1 / (2 * q)), Math.fround(1 - 1 / (2 * q))]
    return standardised(
      drawn.map((value) => (value < low ? -1 : Number(value > high))),
      'f32',
    )
  }

/** Sizes at a module. */
interface RandLoraShape {
  readonly out: number
  readonly inner: number
  /** D and d */
  readonly large: number
  readonly small: number
  readonly r: number
  /** N */
  readonly count: number
  readonly scale: number
}

function planAt(site: Site, config: RandLoraConfig): SitePlan {
  expectLinear(site)
  const { r, randlora_alpha: alpha, init_weights: isDefault } = config
  const [out, inner] = linearShape(site)
  const [large, small] = [Math.max(out, inner), Math.min(out, inner)]
  const shape: RandLoraShape = { out, inner, large, small, r, count: Math.ceil(small / r), scale: alpha / r }
  const sizes = { lambda: [r, shape.count], gamma: [shape.count, small] } as const
  return {
    parameters: {
      randlora_lambda: declared(sizes.lambda, isDefault ? zero : normal(1)),
      randlora_gamma: declared(sizes.gamma, filled(1 / (isDefault ? Math.max(...sizes.gamma) : large))),
    },
    forward: (context) => forward(shape, config.randlora_dropout, context),
    merged: ({ weight, ...attached }) => ({ weight: changed(site, shape, attached, weight) }),
  }
}

/**
 * Training on many rows makes W + s M and multiplies by it alone; it is made again in the backward pass, which so keeps
 * nothing but the module's input. Few rows, and dropout, go through P and Q one after the other.
 */
function forward(shape: RandLoraShape, p: number, context: SiteContext): Sym {
  const { site, x, base, forward: pass, stream } = context
  const rows = elementCount(x.shape.slice(0, -1))
  const isDropping = pass.training && p > 0
  const canReplace = !isDropping && !site.structure && pass.precision !== 'stored'
  if (pass.training && canReplace && isCheaperDense(rows, shape))
    return recomputed(() => linearWith(site, changed(site, shape, context, read(site.weight)), x, pass))
  return add(base(), through(shape, context, dropped(x, p, pass, stream)))
}

/**
 * Multiplications of a step on T rows beside the module's own: with W + s M, T D d for the gradient of the matrix and
 * 3 D d² for Q P, twice, and the gradient of P; with P and Q apart, 2 T d (D + d) for both directions and T d² for the
 * gradient of P.
 */
const isCheaperDense = (rows: number, { large, small }: RandLoraShape): boolean =>
  rows * large + 3 * large * small < rows * (2 * large + 3 * small)

/** s M x. */
function through(shape: RandLoraShape, context: SiteContext, x: Sym): Sym {
  const { p, q } = factors(shape, context)
  const options = { precision: context.forward.precision }
  const isTall = shape.inner <= shape.out
  const inner = isTall ? matmul(x, p, { ...options, transposeB: true }) : matmul(x, q, options)
  return matmul(inner, isTall ? q : p, { ...options, transposeB: isTall, alpha: shape.scale })
}

/** W + s M as the weight is stored. */
function changed(site: Site, shape: RandLoraShape, attached: SiteTensors, weight: Sym): Sym {
  const { p, q } = factors(shape, attached)
  const options = { alpha: shape.scale, addend: weight }
  const isStoredTall = shape.inner <= shape.out !== (site.transposed === true)
  return isStoredTall ? matmul(q, p, options) : matmul(p, q, { ...options, transposeA: true, transposeB: true })
}

/** P `[r N, d]` and Q `[D, N r]`. */
function factors(
  { large, small, r, count }: RandLoraShape,
  { parameters, buffers }: SiteTensors,
): { readonly p: Sym; readonly q: Sym } {
  const a = slice(read(buffers.randlora_A!), [{ axis: 2, start: 0, end: small }])
  const b = slice(read(buffers.randlora_B!), [
    { axis: 0, start: 0, end: large },
    { axis: 1, start: 0, end: count },
  ])
  const lambda = reshape(read(parameters.randlora_lambda!), [r, count, 1])
  const scaled = mul(mul(lambda, a), read(parameters.randlora_gamma!))
  return { p: reshape(scaled, [r * count, small]), q: reshape(b, [large, count * r]) }
}

function expectLinear(site: Site): void {
  if (site.kind !== 'linear') throw unsuited('randlora', site, 'a linear module', `a ${site.kind} module`)
}
