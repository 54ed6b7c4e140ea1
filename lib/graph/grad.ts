/** Reverse-mode differentiation as a transform of the graph being traced. */
import { HeddleError } from '../errors.js'
import { shapeText } from '../tensor/dtype.js'
import type { Tensor } from '../tensor/tensor.js'
import { operatorOf } from './operator.js'
import { add, broadcastTo, constant } from './ops/elementwise.js'
import { pause } from './pause.js'
import { type Node, read, type Sym } from './sym.js'

/**
 * Gradients of a scalar with respect to values of the same trace, each in its value's shape. A value on which `loss`
 * does not depend gets zeros. Gives the event loop its turns while it works through large graphs.
 * @throws ERR_HEDDLE_GRAD when an operator on the way has no derivative
 */
export async function gradients(loss: Sym, wrt: readonly Sym[]): Promise<Sym[]> {
  if (loss.shape.length !== 0)
    throw new HeddleError('ERR_HEDDLE_GRAD', {
      place: 'gradients',
      expected: 'a scalar loss',
      got: `shape ${shapeText(loss.shape)}`,
    })
  const { trace } = loss.node
  const wasBackward = trace.backward
  trace.backward = true
  try {
    const path = dependents(trace.nodes, loss, wrt)
    const sources = new Set(wrt)
    const cotangents = new Map<Sym, Sym>([[loss, constant(1)]])
    for (let id = loss.node.id; id >= 0; id -= 1) {
      const node = trace.nodes[id]!
      if (path.has(node)) propagate(node, path, sources, cotangents)
      if (id % 16 === 0) await pause()
    }
    return wrt.map((value) => cotangents.get(value) ?? broadcastTo(constant(0), value.shape))
  } finally {
    trace.backward = wasBackward
  }
}

/** A traced function together with its gradient: gives the loss and d loss / d parameter, in the given order. */
export function valueAndGrad<A extends readonly unknown[]>(
  fn: (...args: A) => Sym | Promise<Sym>,
  parameters: readonly Tensor[],
): (...args: A) => Promise<readonly [Sym, readonly Sym[]]> {
  return async (...args) => {
    const loss = await fn(...args)
    return [loss, await gradients(loss, parameters.map(read))]
  }
}

/** Like {@link valueAndGrad}, without the value. */
export function grad<A extends readonly unknown[]>(
  fn: (...args: A) => Sym | Promise<Sym>,
  parameters: readonly Tensor[],
): (...args: A) => Promise<readonly Sym[]> {
  const both = valueAndGrad(fn, parameters)
  return async (...args) => (await both(...args))[1]
}

/** Nodes that lie between the wanted values and the loss; only those need cotangents. */
function dependents(nodes: readonly Node[], loss: Sym, wrt: readonly Sym[]): Set<Node> {
  const sources = new Set(wrt.map((value) => value.node))
  const path = new Set<Node>()
  for (const node of nodes) {
    if (node.id > loss.node.id) break
    if (sources.has(node) || node.inputs.some((input) => input && path.has(input.node))) path.add(node)
  }
  return path
}

function propagate(node: Node, path: Set<Node>, sources: ReadonlySet<Sym>, cotangents: Map<Sym, Sym>): void {
  const given = node.outputs.map((output) => cotangents.get(output))
  if (node.inputs.length === 0 || given.every((gradient) => gradient === undefined)) return
  for (const output of node.outputs) if (!sources.has(output)) cotangents.delete(output)
  const wanted = node.inputs.map((input) => input !== undefined && path.has(input.node))
  if (!wanted.includes(true)) return
  const { vjp } = operatorOf(node.op)
  if (typeof vjp !== 'function')
    throw new HeddleError('ERR_HEDDLE_GRAD', {
      place: node.scope ? `${node.scope}: ${node.op}` : node.op,
      expected: 'an operator with a derivative between the loss and the parameters',
      got: vjp.none,
    })
  const { inputs, outputs, attributes } = node
  const results = vjp({ inputs, outputs, attributes, gradients: given, wanted })
  for (const [i, gradient] of results.entries()) {
    const input = inputs[i]
    if (!gradient || !input || !wanted[i]) continue
    const earlier = cotangents.get(input)
    cotangents.set(input, earlier ? add(earlier, gradient) : gradient)
  }
}
