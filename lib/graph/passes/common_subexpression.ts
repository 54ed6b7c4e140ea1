/** Computes equal expressions once, and drops views that change nothing. Operators have no hidden state (randomness comes from seeds), so equal is equal. */
import { sameShape } from '../../tensor/dtype.js'
import { absent, type Graph, isAlias, type Step } from '../graph.js'
import { operatorOf } from '../operator.js'
import { pause } from '../pause.js'

export async function mergeCommonSubexpressions(graph: Graph): Promise<void> {
  const seen = new Map<string, number[]>()
  const replacement = new Map<number, number>()
  const current = (value: number): number => replacement.get(value) ?? value
  const kept = []
  for (const [index, step] of graph.steps.entries()) {
    if (index % 16 === 0) await pause()
    step.inputs = step.inputs.map((input) => (input === absent ? absent : current(input)))
    if (step.op === 'input' || step.op === 'bound' || operatorOf(step.op).mutates) {
      kept.push(step)
      continue
    }
    if (isAlias(step) && sameShape(graph.values[step.inputs[0]!]!.shape, graph.values[step.outputs[0]!]!.shape)) {
      replacement.set(step.outputs[0]!, step.inputs[0]!)
      continue
    }
    const key = `${step.op}|${step.inputs.join()}|${attributeText(step)}`
    const twin = seen.get(key)
    if (twin) {
      // An optional output that only the later of two is asked for comes from the earlier one now.
      for (const [i, output] of step.outputs.entries())
        if (twin[i] === absent) twin[i] = output
        else replacement.set(output, twin[i]!)
    } else {
      seen.set(key, step.outputs)
      kept.push(step)
    }
  }
  graph.steps = kept
  graph.outputs = graph.outputs.map(current)
  for (const assignment of graph.assignments) assignment.value = current(assignment.value)
}

/** JSON has no word for -0, infinities and NaN, which only constants hold. */
const attributeText = ({ op, attributes }: Step): string =>
  op === 'constant'
    ? `${attributes.dtype} ${Object.is(attributes.value, -0) ? '-0' : attributes.value}`
    : JSON.stringify(attributes)
