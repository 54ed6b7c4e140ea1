/**
 * Computes cheap forward values again in the backward pass instead of keeping them: elementwise results and norms
 * whose own inputs are kept anyway. The activations of a training step shrink by about a half at the price of a few
 * memory-bound instructions.
 */
import { absent, addValue, consumers, type Graph, isElementwise, producers, type Step } from '../graph.js'
import { operatorOf } from '../operator.js'
import { pause } from '../pause.js'

export async function recomputeCheapValues(graph: Graph): Promise<void> {
  const by = producers(graph)
  await pause()
  const readers = consumers(graph)
  const copies = new Map<number, number>()
  const copySteps = new Map<number, Step>()
  const keptForBackward = (value: number): boolean => readers[value]!.some((step) => step.backward)
  const available = (value: number): boolean =>
    value === absent || copies.has(value) || isLeaf(by[value]!) || keptForBackward(value)

  for (const [index, step] of graph.steps.entries()) {
    if (index % 16 === 0) await pause()
    if (step.backward || !isCheap(step)) continue
    const needed = step.outputs.some((output) => output !== absent && keptForBackward(output))
    const usedForward = step.outputs.some((output) => output !== absent && readers[output]!.some((r) => !r.backward))
    if (!needed || !usedForward || !step.inputs.every(available)) continue
    const copy: Step = {
      op: step.op,
      inputs: step.inputs.map((input) => copies.get(input) ?? input),
      outputs: step.outputs.map((output) => (output === absent ? absent : addValue(graph, graph.values[output]!))),
      attributes: step.attributes,
      backward: true,
      scope: step.scope,
    }
    for (const [i, output] of step.outputs.entries())
      if (output !== absent) {
        copies.set(output, copy.outputs[i]!)
        copySteps.set(copy.outputs[i]!, copy)
      }
  }

  const placed = new Set<Step>()
  const steps: Step[] = []
  const place = (value: number): void => {
    const copy = copySteps.get(value)
    if (!copy || placed.has(copy)) return
    placed.add(copy)
    for (const input of copy.inputs) place(input)
    steps.push(copy)
  }
  for (const [index, step] of graph.steps.entries()) {
    if (index % 16 === 0) await pause()
    if (step.backward) {
      step.inputs = step.inputs.map((input) => copies.get(input) ?? input)
      for (const input of step.inputs) place(input)
    }
    steps.push(step)
  }
  graph.steps = steps
}

const isLeaf = (step: Step): boolean => step.op === 'input' || step.op === 'bound' || step.op === 'constant'

const isCheap = (step: Step): boolean =>
  !isLeaf(step) && (isElementwise(step) || (operatorOf(step.op).recompute ?? false))
