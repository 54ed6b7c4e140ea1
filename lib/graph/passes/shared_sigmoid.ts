/**
 * silu(x) = x · sigmoid(x): where the sigmoid is computed anyway, as in silu's own gradient, it is computed once. The
 * kernel's silu is the same product, so results stay the same bit for bit.
 */
import { type Graph, producers, type Step } from '../graph.js'
import { pause } from '../pause.js'

export async function shareSigmoids(graph: Graph): Promise<void> {
  const by = producers(graph)
  // Forward and backward steps are never one instruction; two readers of a narrow value may widen it each.
  const keyOf = ({ inputs: [x], backward }: Step): string => {
    const widening = by[x!]?.op === 'cast' ? by[x!]!.inputs[0] : x
    return `${widening}|${graph.values[x!]!.dtype}|${backward}`
  }
  const sigmoids = new Map(graph.steps.filter(({ op }) => op === 'sigmoid').map((step) => [keyOf(step), step]))
  await pause()
  const steps = new Set<Step>()
  for (const [index, step] of graph.steps.entries()) {
    if (index % 16 === 0) await pause()
    const sigmoid = step.op === 'silu' ? sigmoids.get(keyOf(step)) : undefined
    if (sigmoid) {
      // The sigmoid moves up to the first silu, to its operand.
      if (!steps.has(sigmoid)) sigmoid.inputs = step.inputs
      steps.add(sigmoid)
      step.op = 'mul'
      step.inputs = [step.inputs[0]!, sigmoid.outputs[0]!]
    }
    steps.add(step)
  }
  graph.steps = [...steps]
}
