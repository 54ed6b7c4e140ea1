/**
 * Joins a product with a frozen matrix and its low-rank update, y = a b + s · (a u) v, into one instruction that reads
 * a and writes y once. It finds LoRA's forward pass and, with the roles of A and B swapped, its backward pass.
 */
import { consumers, type Graph, producers, results, type Step } from '../graph.js'
import { pause } from '../pause.js'

export async function fuseLowRankMatmuls(graph: Graph): Promise<void> {
  leavesFirst(graph)
  const around: Surroundings = {
    graph,
    by: producers(graph),
    readers: consumers(graph),
    leaving: new Set(results(graph)),
    written: new Set(graph.assignments.map(({ target }) => target)),
  }
  const position = new Map(graph.steps.map((step, index) => [step, index]))
  const fused = new Map<Step, Step>()
  const removed = new Set<Step>()
  for (const [index, base] of graph.steps.entries()) {
    if (index % 16 === 0) await pause()
    const found = lowRankUpdateOf(base, around)
    if (!found || fused.has(found.down)) continue
    const { down, up, addend } = found
    // The joined step stands where z is made, so that all readers of z come after it.
    const needed = [base.inputs[1]!, up.inputs[1]!, addend ?? base.inputs[1]!]
    if (!needed.every((value) => position.get(around.by[value]!)! < position.get(down)!)) continue
    fused.set(down, joined(base, found))
    removed.add(base).add(up)
  }
  graph.steps = graph.steps.filter((step) => !removed.has(step)).map((step) => fused.get(step) ?? step)
}

interface Surroundings {
  readonly graph: Graph
  readonly by: readonly (Step | undefined)[]
  readonly readers: readonly (readonly Step[])[]
  readonly leaving: ReadonlySet<number>
  readonly written: ReadonlySet<number>
}

interface LowRankUpdate {
  /** z = a u */
  readonly down: Step
  /** z v */
  readonly up: Step
  /** What else is added. */
  readonly addend: number | undefined
  readonly output: number
}

/** The update that is added to the product `base`, or to which `base` is added. */
function lowRankUpdateOf(base: Step, around: Surroundings): LowRankUpdate | undefined {
  const { graph, by, readers, leaving, written } = around
  if (!isPlainProduct(base, graph) || base.attributes.alpha !== 1) return undefined
  const [a, b, sum] = base.inputs as [number, number, number?]
  if (by[b]?.op !== 'bound' || written.has(b)) return undefined
  const isInner = (value: number): boolean => readers[value]!.length === 1 && !leaving.has(value)
  const { precision } = base.attributes
  // A base that stays in quantised blocks has a kernel of its own.
  if (precision === 'stored') return undefined
  const isLike = (step: Step): boolean => isPlainProduct(step, graph) && step.attributes.precision === precision
  const updateOf = (up: Step | undefined, addend: number | undefined, output: number): LowRankUpdate | undefined => {
    if (!up || !isLike(up)) return undefined
    const z = up.inputs[0]!
    const down = by[z]
    const fits = down && isLike(down) && down.inputs.length === 2 && down.inputs[0] === a
    return fits && !leaving.has(z) ? { down, up, addend, output } : undefined
  }
  const product = base.outputs[0]!
  const before = sum !== undefined && isInner(sum) ? updateOf(by[sum], by[sum]?.inputs[2], product) : undefined
  if (before) return before
  const after = isInner(product) ? readers[product]![0]! : undefined
  return after?.inputs[2] === product ? updateOf(after, sum, after.outputs[0]!) : undefined
}

function joined(base: Step, { down, up, addend, output }: LowRankUpdate): Step {
  const operands = [base.inputs[0]!, base.inputs[1]!, down.inputs[1]!, up.inputs[1]!]
  return {
    op: 'low_rank_matmul',
    inputs: addend === undefined ? operands : [...operands, addend],
    outputs: [output, down.outputs[0]!],
    attributes: {
      transpose_b: base.attributes.transpose_b!,
      transpose_u: down.attributes.transpose_b!,
      transpose_v: up.attributes.transpose_b!,
      alpha: up.attributes.alpha!,
      alpha_z: down.attributes.alpha!,
      precision: base.attributes.precision!,
    },
    backward: base.backward,
    scope: base.scope,
  }
}

/** Tensors may be read for the first time after the place that a step moves up to. */
function leavesFirst(graph: Graph): void {
  const isLeaf = ({ op }: Step): boolean => op === 'input' || op === 'bound'
  graph.steps = [...graph.steps.filter(isLeaf), ...graph.steps.filter((step) => !isLeaf(step))]
}

/** An f32 product of two matrices, the left one not transposed, with no addend but one of the result's shape. */
function isPlainProduct({ op, inputs, outputs, attributes }: Step, graph: Graph): boolean {
  if (op !== 'matmul' || attributes.transpose_a !== 0) return false
  const rank = (value: number): number => graph.values[value]!.shape.length
  if (graph.values[outputs[0]!]!.dtype !== 'f32') return false
  return rank(outputs[0]!) === 2 && inputs.every((input) => rank(input) === 2)
}
