/** How LoRA's factors begin. */
import { computed } from '../../graph/computed.js'
import { div, mul, sqrt } from '../../graph/ops/elementwise.js'
import { concat, slice, transpose } from '../../graph/ops/index.js'
import { matmul } from '../../graph/ops/matmul.js'
import { randomNormal } from '../../graph/ops/random.js'
import { reshape } from '../../graph/ops/reduce.js'
import { read, type Sym } from '../../graph/sym.js'
import { qr, type Svd, svd } from '../../linalg/factorise.js'
import { svdLowRank } from '../../linalg/low_rank.js'
import { seedTensor } from '../../tensor/seed.js'
import { normal, uniform, zero } from '../initial_values.js'
import type {
  Factors,
  InitContext,
  ParameterDeclaration,
  PrepareContext,
  Prepared,
  SitePlan,
} from '../parametrization.js'
import { firstOf } from '../spectrum.js'
import { type LoraSettings, magnitudeName, namesAt, rowNorm } from './lora_site.js'

/** The parameters of a site in the order in which they are initialised: DoRA's magnitude needs A and B. */
export function declarations(settings: LoraSettings): Record<string, ParameterDeclaration> {
  const { shape, r, init, hasBias, isDora } = settings
  const names = namesAt(shape)
  const declare = (dims: readonly number[], value: Initial): ParameterDeclaration => ({
    shape: dims,
    init: (context) => value(dims, context),
  })
  const [a, b] = initialFactors(settings)
  return {
    [names.a]: declare(shape.aShape(r), a),
    [names.b]: declare(shape.bShape(r), b),
    ...(hasBias ? { [names.bias]: declare([shape.out], init === false ? ofFanIn(r / shape.groups) : zero) } : {}),
    ...(isDora ? { [magnitudeName]: declare(shape.magnitudeShape, magnitude(settings)) } : {}),
  }
}

type Initial = (dims: readonly number[], context: InitContext) => Sym

/** PyTorch's default for a linear module. */
const ofFanIn = (fanIn: number): Initial => uniform(1 / Math.sqrt(fanIn))

function initialFactors({ shape, r, init }: LoraSettings): readonly [Initial, Initial] {
  if (shape.kind === 'embedding') return [init === false ? normal(1) : zero, normal(1)]
  const a = init === 'gaussian' ? normal(1 / r) : ofFanIn(shape.inner)
  return [a, init === false ? ofFanIn(r / shape.groups) : zero]
}

/** ‖W + s B A‖, row by row, so that DoRA begins as the identity. */
const magnitude =
  ({ shape, r, scale }: LoraSettings): Initial =>
  (dims, { weight, values }) => {
    const names = namesAt(shape)
    const [a, b] = [reshape(values[names.a]!, [r, shape.inner]), reshape(values[names.b]!, [shape.out, r])]
    return reshape(rowNorm(shape, weight(), a, b, scale, 'f32'), dims)
  }

/** The initialisations that factorise a matrix. */
export function preparation(settings: LoraSettings): SitePlan['prepare'] {
  const { init } = settings
  if (init === 'orthogonal') return (context) => orthogonal(settings, context)
  if (init === 'olora') return (context) => factorised(settings, context, (weight) => oloraFactors(weight, settings))
  if (init === 'pissa')
    return (context) => factorised(settings, context, (weight) => splitSingular(svd(weight), settings))
  const iterations = typeof init === 'string' ? /^pissa_niter_(\d+)$/u.exec(init)?.[1] : undefined
  if (iterations === undefined) return undefined
  return (context) => {
    const { seed, stream } = context
    const sketch = { rank: settings.r, iterations: Number(iterations), seed, stream }
    return factorised(settings, context, (weight) => splitSingular(svdLowRank(weight, sketch), settings))
  }
}

/** A of r vectors and B of r others, out of one orthonormal set, so that B A = 0 while neither is. */
async function orthogonal({ shape, r }: LoraSettings, { seed, stream }: PrepareContext): Promise<Prepared> {
  const half = r / 2
  const names = namesAt(shape)
  using words = seedTensor(seed)
  const values = await computed(
    (s) => {
      const numbers = randomNormal(s!, stream, [r * r + half * (shape.inner + shape.out)])
      const part = (start: number, dims: readonly [number, number]): Sym =>
        reshape(slice(numbers, [{ axis: 0, start, end: start + dims[0] * dims[1] }]), dims)
      const { q } = qr(part(0, [r, r]))
      const rows = (start: number): Sym => slice(q, [{ axis: 0, start, end: r, step: 2 }])
      const [left, right] = [part(r * r, [half, shape.inner]), part(r * r + half * shape.inner, [half, shape.out])]
      return {
        [names.a]: div(matmul(rows(0), left, { transposeA: true }), 10),
        [names.b]: div(matmul(right, rows(1), { transposeA: true }), 10),
      }
    },
    [words],
  )
  return { values }
}

/** A and B from the weight, and the weight without their product. */
async function factorised(
  settings: LoraSettings,
  { weight }: PrepareContext,
  factorsOf: (matrix: Sym) => Factors,
): Promise<Prepared> {
  const { shape, scale } = settings
  const { a, b, rest } = await computed(() => {
    const own = read(weight)
    const factors = factorsOf(shape.isTransposed ? transpose(own) : own)
    const rest = shape.isTransposed
      ? matmul(factors.a, factors.b, { transposeA: true, transposeB: true, alpha: -scale, addend: own })
      : matmul(factors.b, factors.a, { alpha: -scale, addend: own })
    return { ...factors, rest }
  })
  const names = namesAt(shape)
  return { values: { [names.a]: a, [names.b]: b }, weight: rest }
}

/** A = √(S/s) Vᵀ, B = U √(S/s) of the r largest singular values S. */
function splitSingular(all: Svd<Sym>, { r, scale }: LoraSettings): Factors {
  const { u, s, vh } = firstOf(all, r)
  const root = sqrt(div(s, scale))
  return { a: mul(reshape(root, [r, 1]), vh), b: mul(u, root) }
}

/** The first r rows of R and columns of Q; not divided by the scale, as in PEFT. */
function oloraFactors(weight: Sym, { r }: LoraSettings): Factors {
  const { q, r: triangle } = qr(weight)
  const first = (axis: number) => [{ axis, start: 0, end: r }]
  return { a: slice(triangle, first(0)), b: slice(q, first(1)) }
}

/** Trained and initial factors one beside the other, the initial ones taken off. */
export function stacked(
  values: Readonly<Record<string, Sym>>,
  initial: Readonly<Record<string, Sym>>,
): Record<string, Sym> {
  const [a, b] = ['lora_A.weight', 'lora_B.weight']
  return {
    [a!]: concat([values[a!]!, initial[a!]!], 0),
    [b!]: concat([values[b!]!, mul(initial[b!]!, -1)], 1),
  }
}
