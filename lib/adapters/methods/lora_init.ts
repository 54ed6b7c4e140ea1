/** How LoRA's factors begin. */
import { computed } from '../../graph/computed.js'
import { div, mul, sqrt } from '../../graph/ops/elementwise.js'
import { concat, slice, transpose } from '../../graph/ops/index.js'
import { matmul } from '../../graph/ops/matmul.js'
import { randomNormal } from '../../graph/ops/random.js'
import { reshape } from '../../graph/ops/reduce.js'
import { read, type Sym } from '../../graph/sym.js'
import { qr, svd } from '../../linalg/factorise.js'
import { svdLowRank } from '../../linalg/low_rank.js'
import { seedTensor } from '../../tensor/seed.js'
import type { Tensor } from '../../tensor/tensor.js'
import { normal, uniform, zero } from '../initial_values.js'
import type { InitContext, ParameterDeclaration, PrepareContext, Prepared, SitePlan } from '../parametrization.js'
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
  if (init === 'olora') return (context) => factorised(settings, context, oloraFactors)
  if (init === 'pissa') return (context) => factorised(settings, context, pissaFactors)
  const iterations = typeof init === 'string' ? /^pissa_niter_(\d+)$/u.exec(init)?.[1] : undefined
  if (iterations === undefined) return undefined
  return (context) =>
    factorised(settings, context, (weight, { r, scale }) =>
      approximatePissa(weight, r, scale, Number(iterations), context),
    )
}

/** A of r vectors and B of r others, out of one orthonormal set, so that B A = 0 while neither is. */
async function orthogonal({ shape, r }: LoraSettings, { seed, stream }: PrepareContext): Promise<Prepared> {
  const half = r / 2
  using words = seedTensor(seed)
  const numbers = await computed((s) => randomNormal(s!, stream, [r * r + half * (shape.inner + shape.out)]), [words])
  const part = (start: number, dims: readonly [number, number]): Sym =>
    reshape(slice(read(numbers), [{ axis: 0, start, end: start + dims[0] * dims[1] }]), dims)
  const square = await computed(() => part(0, [r, r]))
  const { q, r: triangle } = await qr(square)
  const rows = (start: number): Sym => slice(read(q), [{ axis: 0, start, end: r, step: 2 }])
  const a = await computed(() => div(matmul(rows(0), part(r * r, [half, shape.inner]), { transposeA: true }), 10))
  const b = await computed(() =>
    div(matmul(part(r * r + half * shape.inner, [half, shape.out]), rows(1), { transposeA: true }), 10),
  )
  for (const used of [numbers, square, q, triangle]) used.dispose()
  const names = namesAt(shape)
  return { values: { [names.a]: a, [names.b]: b } }
}

interface Factors {
  readonly a: Tensor
  readonly b: Tensor
}

/** A and B from the weight, and the weight without their product. */
async function factorised(
  settings: LoraSettings,
  { weight }: PrepareContext,
  factorsOf: (matrix: Tensor, settings: LoraSettings) => Promise<Factors>,
): Promise<Prepared> {
  const { shape, scale } = settings
  const matrix = shape.isTransposed ? await computed(() => transpose(read(weight))) : weight
  const { a, b } = await factorsOf(matrix, settings)
  const rest = await computed(() => {
    const [left, right, addend] = [read(b), read(a), read(weight)]
    return shape.isTransposed
      ? matmul(right, left, { transposeA: true, transposeB: true, alpha: -scale, addend })
      : matmul(left, right, { alpha: -scale, addend })
  })
  if (matrix !== weight) matrix.dispose()
  const names = namesAt(shape)
  return { values: { [names.a]: a, [names.b]: b }, weight: rest }
}

/** A = √(S/s) Vᵀ, B = U √(S/s) of the r largest singular values S. */
async function pissaFactors(weight: Tensor, { r, scale }: LoraSettings): Promise<Factors> {
  const { u, s, vh } = await svd(weight)
  return splitSingular(u, s, vh, r, scale)
}

async function approximatePissa(
  weight: Tensor,
  r: number,
  scale: number,
  iterations: number,
  { seed, stream }: PrepareContext,
): Promise<Factors> {
  const { u, s, vh } = await svdLowRank(weight, { rank: r, iterations, seed, stream })
  return splitSingular(u, s, vh, r, scale)
}

async function splitSingular(u: Tensor, s: Tensor, vh: Tensor, r: number, scale: number): Promise<Factors> {
  const first = (axis: number) => [{ axis, start: 0, end: r }]
  const root = (): Sym => sqrt(div(slice(read(s), first(0)), scale))
  const a = await computed(() => mul(reshape(root(), [r, 1]), slice(read(vh), first(0))))
  const b = await computed(() => mul(slice(read(u), first(1)), root()))
  for (const used of [u, s, vh]) used.dispose()
  return { a, b }
}

/** The first r rows of R and columns of Q; not divided by the scale, as in PEFT. */
async function oloraFactors(weight: Tensor, { r }: LoraSettings): Promise<Factors> {
  const { q, r: triangle } = await qr(weight)
  const a = await computed(() => slice(read(triangle), [{ axis: 0, start: 0, end: r }]))
  const b = await computed(() => slice(read(q), [{ axis: 1, start: 0, end: r }]))
  q.dispose()
  triangle.dispose()
  return { a, b }
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
