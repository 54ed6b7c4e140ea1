/** Turns y + s · (a b) into one matmul with factor and addend, so that sums of products accumulate in place. */
import { sameShape } from '../../tensor/dtype.js'
import { absent, consumers, type Graph, producers, results, type Step } from '../graph.js'
import { pause } from '../pause.js'

export async function fuseMatmulAddends(graph: Graph): Promise<void> {
  await foldFactors(graph)
  await pause()
  await foldAddends(graph)
}

/** mul(matmul, constant) → matmul with alpha. */
async function foldFactors(graph: Graph): Promise<void> {
  const by = producers(graph)
  await pause()
  const readers = consumers(graph)
  await pause()
  const leaving = new Set(results(graph))
  const removed = new Set<Step>()
  for (const [index, step] of graph.steps.entries()) {
    if (index % 16 === 0) await pause()
    if (step.op !== 'mul') continue
    for (const [product, factor] of [
      [step.inputs[0]!, step.inputs[1]!],
      [step.inputs[1]!, step.inputs[0]!],
    ] as const) {
      const matmul = by[product]
      const constant = by[factor]
      if (matmul?.op !== 'matmul' || constant?.op !== 'constant' || matmul.inputs.length > 2) continue
      if (readers[product]!.length !== 1 || leaving.has(product) || removed.has(matmul)) continue
      step.op = 'matmul'
      step.inputs = matmul.inputs
      const alpha = (matmul.attributes.alpha as number) * (constant.attributes.value as number)
      step.attributes = { ...matmul.attributes, alpha }
      removed.add(matmul)
      break
    }
  }
  graph.steps = graph.steps.filter((step) => !removed.has(step))
}

/** add(matmul, y) → matmul with addend y; the later of two products takes the earlier one. */
async function foldAddends(graph: Graph): Promise<void> {
  const by = producers(graph)
  await pause()
  const readers = consumers(graph)
  await pause()
  const leaving = new Set(results(graph))
  const position = new Map(graph.steps.map((step, index) => [step, index]))
  const removed = new Set<Step>()
  for (const [index, step] of graph.steps.entries()) {
    if (index % 16 === 0) await pause()
    if (step.op !== 'add') continue
    const output = graph.values[step.outputs[0]!]!
    const candidates = step.inputs.filter((input) => {
      const matmul = by[input]
      if (matmul?.op !== 'matmul' || removed.has(matmul) || leaving.has(input)) return false
      return (
        matmul.inputs.length === 2 &&
        readers[input]!.length === 1 &&
        sameShape(graph.values[input]!.shape, output.shape)
      )
    })
    const product = candidates.sort((a, b) => position.get(by[b]!)! - position.get(by[a]!)!)[0]
    if (product === undefined || step.inputs[0] === step.inputs[1]) continue
    const addend = step.inputs.find((input) => input !== product) ?? absent
    if (!sameShape(graph.values[addend]!.shape, output.shape) || graph.values[addend]!.dtype !== output.dtype) continue
    const matmul = by[product]!
    step.op = 'matmul'
    step.inputs = [...matmul.inputs, addend]
    step.attributes = matmul.attributes
    // The product's own: a scope that is recomputed must not hand on its operands to the sum.
    step.scope = matmul.scope
    removed.add(matmul)
    by[step.outputs[0]!] = step
  }
  graph.steps = graph.steps.filter((step) => !removed.has(step))
}
