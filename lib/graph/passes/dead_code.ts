/** Drops steps whose results nobody reads, and optional outputs that nobody reads. */
import { absent, type Graph, results } from '../graph.js'
import { operatorOf } from '../operator.js'
import { pause } from '../pause.js'

export async function removeDeadCode(graph: Graph): Promise<void> {
  const live = new Set(results(graph))
  for (const { target } of graph.assignments) live.add(target)
  const kept = []
  for (const [index, step] of graph.steps.toReversed().entries()) {
    if (index % 16 === 0) await pause()
    const read = step.outputs.some((output) => live.has(output))
    if (!read && step.op !== 'input') continue
    if (step.op !== 'input' && step.op !== 'bound') {
      const optional = operatorOf(step.op).optionalOutputs ?? []
      step.outputs = step.outputs.map((output, i) => (optional.includes(i) && !live.has(output) ? absent : output))
    }
    for (const input of step.inputs) live.add(input)
    kept.push(step)
  }
  graph.steps = kept.reverse()
}
