/**
 * Stores what only bf16 products read as bf16: they would round it themselves, each of them anew. Results stay the
 * same bit for bit, with half the memory traffic.
 */
import { elementCount } from '../../tensor/dtype.js'
import { absent, addValue, consumers, type Graph, isElementwise, results, type Step } from '../graph.js'
import { pause } from '../pause.js'

/** Smaller values stay in the caches either way. */
const leastElements = 1 << 16

export async function halveOperands(graph: Graph): Promise<void> {
  const readers = consumers(graph)
  await pause()
  const leaving = new Set(results(graph))
  const steps: Step[] = []
  for (const [index, step] of graph.steps.entries()) {
    if (index % 16 === 0) await pause()
    steps.push(step)
    const [value] = step.outputs as [number]
    if (!isElementwise(step) || leaving.has(value) || readers[value]!.length === 0) continue
    const { shape, dtype } = graph.values[value]!
    if (dtype !== 'f32' || elementCount(shape) < leastElements) continue
    if (!readers[value]!.every((reader) => rounds(reader, value))) continue
    const half = addValue(graph, { shape, dtype: 'bf16' })
    for (const reader of readers[value]!) reader.inputs = reader.inputs.map((input) => (input === value ? half : input))
    const { backward, scope } = step
    steps.push({ op: 'cast', inputs: [value], outputs: [half], attributes: { dtype: 'bf16' }, backward, scope })
  }
  graph.steps = steps
}

/** Whether a step only sees the value rounded to bf16. */
const rounds = ({ op, inputs, attributes }: Step, value: number): boolean =>
  op === 'matmul' && attributes.precision === 'bf16' && (inputs[2] ?? absent) !== value
