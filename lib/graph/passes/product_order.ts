/**
 * Chains of products in the cheaper order: (a b) c as a (b c) where that takes fewer operations. It is what gradients of a
 * weight that was made of factors ask for: with W' = W + L R and R frozen, dL = (gᵀ x) Rᵀ = gᵀ (x Rᵀ) needs no gradient of
 * the size of W'.
 */
import { absent, addValue, consumers, type Graph, mutates, results, type Step } from '../graph.js'
import { pause } from '../pause.js'

/** What is left of the multiplications where turning is worth it: other operands have to be packed then. */
const mostLeft = 0.8

/** A matrix or its transpose. */
interface Operand {
  readonly value: number
  readonly isTransposed: boolean
}

/** A product of two matrices, without an addend. */
interface Product {
  readonly step: Step
  readonly left: Operand
  readonly right: Operand
}

/** @returns whether anything was changed; equal products may then stand there twice */
export async function orderProducts(graph: Graph): Promise<boolean> {
  // Products would move to the other side of what writes into a tensor that they read.
  if (graph.steps.some(mutates)) return false
  const readers = consumers(graph)
  await pause()
  const leaving = new Set(results(graph))
  const before = new Map<Step, Step>()
  const removed = new Set<Step>()
  for (const [index, step] of graph.steps.entries()) {
    if (index % 16 === 0) await pause()
    const product = productOf(graph, step)
    if (!product || step.inputs.length > 2 || leaving.has(step.outputs[0]!) || before.has(step)) continue
    const outer = readers[step.outputs[0]!]!
    if (outer.some((each) => before.has(each) || removed.has(each))) continue
    const turned = outer.map((each) => turnedOf(graph, product, each))
    if (turned.length === 0 || !turned.every((each) => each !== undefined)) continue
    const own = outer.reduce((total, each) => total + sizeOf(graph, each), sizeOf(graph, step))
    if (turned.reduce((total, each) => total + each.size, 0) > mostLeft * own) continue
    for (const [i, each] of turned.entries()) before.set(outer[i]!, each.apply())
    removed.add(step)
  }
  graph.steps = graph.steps.flatMap((step) => {
    if (removed.has(step)) return []
    const inner = before.get(step)
    return inner ? [inner, step] : [step]
  })
  return removed.size > 0
}

function productOf(graph: Graph, step: Step): Product | undefined {
  const [a, b] = step.inputs
  if (step.op !== 'matmul' || graph.values[a!]!.shape.length !== 2 || graph.values[b!]!.shape.length !== 2)
    return undefined
  return {
    step,
    left: { value: a!, isTransposed: step.attributes.transpose_a === 1 },
    right: { value: b!, isTransposed: step.attributes.transpose_b === 1 },
  }
}

const transposed = ({ value, isTransposed }: Operand): Operand => ({ value, isTransposed: !isTransposed })

/** [rows, columns] */
function shapeOf(graph: Graph, { value, isTransposed }: Operand): readonly [number, number] {
  const [rows, columns] = graph.values[value]!.shape as [number, number]
  return isTransposed ? [columns, rows] : [rows, columns]
}

/** Multiplications. */
function sizeOf(graph: Graph, step: Step): number {
  const [rows, inner] = shapeOf(graph, productOf(graph, step)!.left)
  return rows * inner * graph.values[step.outputs[0]!]!.shape[1]!
}

/** A product in its other order. */
interface Turned {
  /** Multiplications. */
  readonly size: number
  /** Turns the outer step. @returns the inner step, which belongs before it */
  apply(): Step
}

/** `outer`, a product with `inner`'s result, with what `inner` multiplies taken one after the other. */
function turnedOf(graph: Graph, inner: Product, outer: Step): Turned | undefined {
  const product = productOf(graph, outer)
  const [value] = inner.step.outputs
  const isAddend = (outer.inputs[2] ?? absent) === value
  if (!product || isAddend || outer.scope !== inner.step.scope || outer.backward !== inner.step.backward)
    return undefined
  if (outer.attributes.precision !== inner.step.attributes.precision) return undefined
  const { left, right } = product
  if ((left.value === value) === (right.value === value)) return undefined
  const isLeft = left.value === value
  const [first, second] = (isLeft ? left : right).isTransposed
    ? [transposed(inner.right), transposed(inner.left)]
    : [inner.left, inner.right]
  // (first second) right = first (second right), left (first second) = (left first) second
  const [a, b] = isLeft ? [second, right] : [left, first]
  const [rows, columns] = [shapeOf(graph, a)[0], shapeOf(graph, b)[1]]
  const [m, n] = graph.values[outer.outputs[0]!]!.shape as [number, number]
  return {
    size: rows * shapeOf(graph, a)[1] * columns + m * n * (isLeft ? rows : columns),
    apply() {
      const made = addValue(graph, { shape: [rows, columns], dtype: graph.values[value!]!.dtype })
      const step: Step = {
        ...inner.step,
        inputs: [a.value, b.value],
        outputs: [made],
        attributes: attributesOf(inner.step, a, b),
      }
      const between: Operand = { value: made, isTransposed: false }
      const [c, d] = isLeft ? [first, between] : [between, second]
      outer.inputs = [c.value, d.value, ...outer.inputs.slice(2)]
      outer.attributes = attributesOf(outer, c, d)
      return step
    },
  }
}

const attributesOf = ({ attributes }: Step, left: Operand, right: Operand): Step['attributes'] => ({
  ...attributes,
  transpose_a: Number(left.isTransposed),
  transpose_b: Number(right.isTransposed),
})
