/** Differentiation as a transform of the graph being traced: reverse mode, and what follows from it. */
import { HeddleError } from '../errors.js'
import { sameShape, shapeText } from '../tensor/dtype.js'
import { Tensor } from '../tensor/tensor.js'
import { gradientType, operatorOf, typeText } from './operator.js'
import { add, broadcastTo, constant } from './ops/elementwise.js'
import { identity } from './ops/identity.js'
import { pause } from './pause.js'
import { type Node, read, type Sym, type Trace } from './sym.js'

/** A function of symbolic values, traced within a program. */
export type Traced<A extends readonly unknown[]> = (...args: A) => Sym | Promise<Sym>

/**
 * Gradients of a scalar with respect to values of the same trace, each in its value's shape: f64 for f64 values, else
 * f32. A value on which `loss` does not depend gets zeros. Gradients are values like any other and can be differentiated
 * again.
 * @throws ERR_HEDDLE_GRAD when an operator on the way has no derivative
 */
export async function gradients(loss: Sym, wrt: readonly Sym[]): Promise<Sym[]> {
  if (loss.shape.length !== 0)
    throw new HeddleError('ERR_HEDDLE_GRAD', {
      place: 'gradients',
      expected: 'a scalar loss',
      got: `shape ${shapeText(loss.shape)}`,
    })
  return vjp([loss], [constant(1, gradientType(loss))], wrt)
}

/**
 * Vector-Jacobian products: Σⱼ cotangentⱼ · ∂outputⱼ / ∂value for each value of `wrt`, in its shape. Gives the event
 * loop its turns while it works through large graphs.
 * @param cotangents one per output, in its shape
 * @throws ERR_HEDDLE_GRAD when an operator on the way has no derivative; ERR_HEDDLE_SHAPE
 */
export async function vjp(outputs: readonly Sym[], cotangents: readonly Sym[], wrt: readonly Sym[]): Promise<Sym[]> {
  expectLike('vjp', outputs, cotangents)
  const trace = outputs[0]?.node.trace
  if (!trace) return wrt.map(zerosLike)
  const wasBackward = trace.backward
  trace.backward = true
  try {
    const sweep = backwards({ trace, outputs, cotangents, wrt, from: 0 })
    let step = sweep.next()
    for (; !step.done; step = sweep.next()) await pause()
    return step.value.map((gradient, i) => gradient ?? zerosLike(wrt[i]!))
  } finally {
    trace.backward = wasBackward
  }
}

/** A traced function together with its gradient: gives the loss and d loss / d parameter, in the given order. */
export function valueAndGrad<A extends readonly unknown[]>(
  fn: Traced<A>,
  parameters: readonly Tensor[],
): (...args: A) => Promise<readonly [Sym, readonly Sym[]]> {
  return async (...args) => {
    const loss = await fn(...args)
    return [loss, await gradients(loss, parameters.map(read))]
  }
}

/** Like {@link valueAndGrad}, without the value. */
export function grad<A extends readonly unknown[]>(
  fn: Traced<A>,
  parameters: readonly Tensor[],
): (...args: A) => Promise<readonly Sym[]> {
  const both = valueAndGrad(fn, parameters)
  return async (...args) => (await both(...args))[1]
}

/**
 * Hessian-vector product (Pearlmutter 1994): Σⱼ ∂²loss / ∂parameterᵢ ∂parameterⱼ · vectorⱼ for each parameter, in its
 * shape. Costs about two gradients; the Hessian is never formed.
 * @param fn gives a scalar
 * @param vectors one per parameter, in its shape
 * @throws ERR_HEDDLE_GRAD, ERR_HEDDLE_SHAPE
 */
export function hvp<A extends readonly unknown[]>(
  fn: Traced<A>,
  parameters: readonly Tensor[],
  vectors: readonly (Tensor | Sym)[],
): (...args: A) => Promise<readonly Sym[]> {
  const gradientOf = grad(fn, parameters)
  return async (...args) => vjp(await gradientOf(...args), vectors.map(symOf), parameters.map(read))
}

/**
 * Jacobian-vector product: the value of `fn`, of any shape, and its derivative when every parameter moves along its
 * tangent. It is the derivative of a vector-Jacobian product, which is linear in its cotangent, by that cotangent.
 * @param tangents one per parameter, in its shape
 * @throws ERR_HEDDLE_GRAD, ERR_HEDDLE_SHAPE
 */
export function jvp<A extends readonly unknown[]>(
  fn: Traced<A>,
  parameters: readonly Tensor[],
  tangents: readonly (Tensor | Sym)[],
): (...args: A) => Promise<readonly [value: Sym, tangent: Sym]> {
  return async (...args) => {
    const value = await fn(...args)
    const cotangent = zerosLike(value)
    const pulled = await vjp([value], [cotangent], parameters.map(read))
    const [tangent] = await vjp(pulled, tangents.map(symOf), [cotangent])
    return [value, tangent!]
  }
}

/**
 * The cotangents of all inputs of a function that is written out in the current trace: what the operator `*_vjp` of a
 * composite operator decomposes into.
 */
export function pullbackOf(
  fn: (inputs: readonly (Sym | undefined)[]) => readonly (Sym | undefined)[],
  inputs: readonly (Sym | undefined)[],
  cotangents: readonly (Sym | undefined)[],
): (Sym | undefined)[] {
  const found = pullback(
    fn,
    inputs,
    cotangents,
    inputs.map(() => true),
  )
  return inputs.map((input, i) => found[i] ?? (input && zerosLike(input)))
}

function pullback(
  fn: (inputs: readonly (Sym | undefined)[]) => readonly (Sym | undefined)[],
  inputs: readonly (Sym | undefined)[],
  given: readonly (Sym | undefined)[],
  wanted: readonly boolean[],
): (Sym | undefined)[] {
  // One value may be several inputs, each with a cotangent of its own.
  const own = inputs.map((input, i) => (input && wanted[i] ? identity(input) : input))
  const wrt = own.filter((input, i): input is Sym => input !== undefined && wanted[i]!)
  const { trace } = wrt[0]!.node
  const from = trace.nodes.length
  const outputs: Sym[] = []
  const cotangents: Sym[] = []
  for (const [i, output] of fn(own).entries()) {
    const cotangent = given[i]
    if (!output || !cotangent) continue
    outputs.push(output)
    cotangents.push(cotangent)
  }
  const sweep = backwards({ trace, outputs, cotangents, wrt, from })
  let step = sweep.next()
  while (!step.done) step = sweep.next()
  const byInput = new Map(step.value.map((gradient, i) => [wrt[i], gradient]))
  return own.map((input) => byInput.get(input))
}

interface Sweep {
  readonly trace: Trace
  readonly outputs: readonly Sym[]
  readonly cotangents: readonly Sym[]
  readonly wrt: readonly Sym[]
  /** Id of the first node that derivatives pass through. */
  readonly from: number
}

/** One reverse sweep; rests now and then so that the caller may pause. */
function* backwards({ trace, outputs, cotangents, wrt, from }: Sweep): Generator<void, (Sym | undefined)[]> {
  const last = Math.max(-1, ...outputs.map(({ node }) => node.id))
  const path = dependents(trace.nodes, wrt, from, last)
  const sources = new Set(wrt)
  const sums = new Map<Sym, Sym>()
  for (const [i, output] of outputs.entries()) accumulate(sums, output, cotangents[i]!)
  for (let id = last; id >= from; id -= 1) {
    const node = trace.nodes[id]!
    if (path.has(node)) propagate(node, path, sources, sums)
    if (id % 16 === 0) yield
  }
  return wrt.map((value) => sums.get(value))
}

/** Nodes that lie between the wanted values and the outputs; only those need cotangents. */
function dependents(nodes: readonly Node[], wrt: readonly Sym[], from: number, last: number): Set<Node> {
  const path = new Set(wrt.map((value) => value.node))
  for (let id = from; id <= last; id += 1)
    if (nodes[id]!.inputs.some((input) => input && path.has(input.node))) path.add(nodes[id]!)
  return path
}

function propagate(node: Node, path: ReadonlySet<Node>, sources: ReadonlySet<Sym>, sums: Map<Sym, Sym>): void {
  const given = node.outputs.map((output) => sums.get(output))
  if (node.inputs.length === 0 || given.every((gradient) => gradient === undefined)) return
  for (const output of node.outputs) if (!sources.has(output)) sums.delete(output)
  const wanted = node.inputs.map((input) => input !== undefined && path.has(input.node))
  if (!wanted.includes(true)) return
  for (const [i, gradient] of inputCotangents(node, given, wanted).entries()) {
    const input = node.inputs[i]
    if (gradient && input && wanted[i]) accumulate(sums, input, gradient)
  }
}

/** By the operator's own rule where it has one for these cotangents, else through what it decomposes into. */
function inputCotangents(
  node: Node,
  given: readonly (Sym | undefined)[],
  wanted: readonly boolean[],
): readonly (Sym | undefined)[] {
  const { inputs, outputs, attributes } = node
  const { vjp: rule, decompose } = operatorOf(node.op)
  const beyondFirst = given.slice(1).some((gradient) => gradient !== undefined)
  if (decompose && (rule === 'decomposition' || (typeof rule === 'function' && beyondFirst)))
    return pullback((own) => decompose(own, attributes), inputs, given, wanted)
  if (typeof rule === 'function') return rule({ inputs, outputs, attributes, gradients: given, wanted })
  throw new HeddleError('ERR_HEDDLE_GRAD', {
    place: node.scope ? `${node.scope}: ${node.op}` : node.op,
    expected: 'an operator with a derivative between the loss and the parameters',
    got: rule === 'decomposition' ? 'one that decomposes into nothing' : rule.none,
  })
}

function accumulate(sums: Map<Sym, Sym>, value: Sym, gradient: Sym): void {
  const earlier = sums.get(value)
  sums.set(value, earlier ? add(earlier, gradient) : gradient)
}

const zerosLike = (value: Sym): Sym => broadcastTo(identity(constant(0, gradientType(value))), value.shape)

const symOf = (value: Tensor | Sym): Sym => (value instanceof Tensor ? read(value) : value)

function expectLike(place: string, outputs: readonly Sym[], cotangents: readonly Sym[]): void {
  if (outputs.length !== cotangents.length)
    throw new HeddleError('ERR_HEDDLE_SHAPE', {
      place,
      expected: `${outputs.length} cotangents, one per output`,
      got: `${cotangents.length}`,
    })
  for (const [i, output] of outputs.entries())
    if (!sameShape(output.shape, cotangents[i]!.shape) || cotangents[i]!.dtype !== gradientType(output))
      throw new HeddleError('ERR_HEDDLE_SHAPE', {
        place,
        expected: `cotangent ${i} ${gradientType(output)} ${shapeText(output.shape)}`,
        got: typeText(cotangents[i]),
      })
}
