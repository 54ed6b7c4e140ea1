/**
 * Keeps what the backward pass needs of the forward pass as bf16: half the memory between the two. The forward pass
 * computes with the values as they are; the backward pass sees them rounded, as it does where networks run in bf16.
 */
import { elementCount } from '../../tensor/dtype.js'
import { absent, addValue, consumers, type Graph, isAlias, producers, results, type Step } from '../graph.js'
import { pause } from '../pause.js'

/** Smaller values are not worth an instruction. */
const leastElements = 1 << 16

/** A value that is read again after so few steps is not kept for long. */
const leastDistance = 32

export async function halveActivations(graph: Graph): Promise<void> {
  const [by, readers] = [producers(graph), consumers(graph)]
  await pause()
  const position = new Map(graph.steps.map((step, index) => [step, index]))
  const leaving = new Set(results(graph))
  const halves = new Map<number, number>()
  /** Steps to place behind one that is there. */
  const behind = new Map<Step, Step[]>()

  const isKept = (value: number): boolean => {
    const { shape, dtype } = graph.values[value]!
    const step = by[value]!
    if (dtype !== 'f32' || elementCount(shape) < leastElements || leaving.has(value)) return false
    if (step.backward || step.op === 'input' || step.op === 'bound') return false
    const first = readers[value]!.find((reader) => reader.backward)
    return first !== undefined && position.get(first)! - position.get(step)! >= leastDistance
  }

  const halfOf = (value: number): number => {
    const known = halves.get(value)
    if (known !== undefined) return known
    const step = by[value]!
    const half = addValue(graph, { shape: graph.values[value]!.shape, dtype: 'bf16' })
    halves.set(value, half)
    const { scope } = step
    // Views of one value share its half.
    const made: Step =
      isAlias(step) && by[step.inputs[0]!]!.tensor === undefined
        ? { ...step, inputs: [halfOf(step.inputs[0]!)], outputs: [half] }
        : { op: 'cast', inputs: [value], outputs: [half], attributes: { dtype: 'bf16' }, backward: false, scope }
    behind.set(step, [...(behind.get(step) ?? []), made])
    return half
  }

  const ahead = new Map<Step, Step[]>()
  /** The last widened copy of each half, which readers close by share. */
  const wholes = new Map<number, { readonly value: number; readonly index: number }>()
  const wholeOf = (half: number, reader: Step, index: number): number => {
    const last = wholes.get(half)
    if (last && index - last.index < leastDistance) return last.value
    const { shape } = graph.values[half]!
    const value = addValue(graph, { shape, dtype: 'f32' })
    const { scope } = reader
    const cast: Step = {
      op: 'cast',
      inputs: [half],
      outputs: [value],
      attributes: { dtype: 'f32' },
      backward: true,
      scope,
    }
    ahead.set(reader, [...(ahead.get(reader) ?? []), cast])
    wholes.set(half, { value, index })
    return value
  }

  for (const [index, step] of graph.steps.entries()) {
    if (index % 16 === 0) await pause()
    if (!step.backward) continue
    step.inputs = step.inputs.map((input, i) => {
      if (input === absent || !isKept(input)) return input
      const half = halfOf(input)
      return readsHalf(step, i) ? half : wholeOf(half, step, index)
    })
  }
  graph.steps = graph.steps.flatMap((step) => [...(ahead.get(step) ?? []), step, ...(behind.get(step) ?? [])])
}

/** Products of two matrices take bf16 operands as they are. */
const readsHalf = (step: Step, input: number): boolean => step.op === 'matmul' && input < 2
