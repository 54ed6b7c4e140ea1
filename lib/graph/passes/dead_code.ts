/** Drops steps whose results nobody reads, unless they write to a bound tensor, and optional outputs that nobody reads. */
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
    const operator = step.op === 'input' || step.op === 'bound' ? undefined : operatorOf(step.op)
    if (!read && step.op !== 'input' && !operator?.mutates) continue
    if (operator) {
      const optional = operator.optionalOutputs ?? []
      step.outputs = step.outputs.map((output, i) => (optional.includes(i) && !live.has(output) ? absent : output))
    }
    for (const input of step.inputs) live.add(input)
    kept.push(step)
  }
  graph.steps = kept.reverse()
}
