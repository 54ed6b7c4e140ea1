/**
 * Computes what depends on constants alone once, while the program is compiled, with the kernels that would compute it in
 * every run: results are the same bit for bit. Tensors that a trace reads are no constants, as others may write to them.
 */
import { addon } from '../../native.js'
import { elementCount } from '../../tensor/dtype.js'
import { Tensor } from '../../tensor/tensor.js'
import { encode } from '../encode.js'
import { absent, type Graph, mutates, results, type Step } from '../graph.js'
import { lower } from '../lower.js'
import { pause } from '../pause.js'
import { fuseElementwise } from './fuse_elementwise.js'

/** Larger results are computed in every run: they would take memory for as long as the program lives. */
const mostElements = 4096

export async function foldConstants(graph: Graph): Promise<void> {
  const known = await constantSteps(graph)
  if (known.size === 0) return
  const wanted = frontier(graph, known)
  if (wanted.length === 0) return
  const folded = await evaluated(graph, known, wanted)
  graph.steps = graph.steps.map((step) => folded.get(step.outputs[0]!) ?? step)
}

/** Steps that read nothing but results of such steps, the constants themselves among them. */
async function constantSteps(graph: Graph): Promise<Set<Step>> {
  const values = new Set<number>()
  const known = new Set<Step>()
  for (const [index, step] of graph.steps.entries()) {
    if (index % 64 === 0) await pause()
    if (step.op === 'input' || step.op === 'bound' || mutates(step)) continue
    if (!step.inputs.every((input) => input === absent || values.has(input))) continue
    known.add(step)
    for (const output of step.outputs) values.add(output)
  }
  return known
}

/** Results that are read by others, or leave the program; of steps that do more than to spread one number. */
function frontier(graph: Graph, known: ReadonlySet<Step>): number[] {
  const read = new Set(results(graph))
  for (const step of graph.steps) if (!known.has(step)) for (const input of step.inputs) read.add(input)
  const numbers = new Set([...known].filter(({ op }) => op === 'constant').flatMap(({ outputs }) => outputs))
  const isPlain = ({ op, inputs }: Step): boolean =>
    op === 'constant' || (op === 'broadcast_to' && numbers.has(inputs[0]!))
  return [...known]
    .filter((step) => !isPlain(step) && step.outputs.length === 1)
    .flatMap(({ outputs }) => outputs)
    .filter((value) => read.has(value) && elementCount(graph.values[value]!.shape) <= mostElements)
}

/** A leaf for each of the values: a constant for a single number, else a tensor. */
async function evaluated(
  graph: Graph,
  known: ReadonlySet<Step>,
  wanted: readonly number[],
): Promise<ReadonlyMap<number, Step>> {
  const part: Graph = {
    values: [...graph.values],
    steps: neededFor(wanted, known).map((step) => ({ ...step, inputs: [...step.inputs], outputs: [...step.outputs] })),
    inputs: [],
    outputs: [...wanted],
    assignments: [],
  }
  await fuseElementwise(part)
  const { list } = await lower(part)
  const native = await addon.compile(await encode(list), [])
  try {
    const found = (await native.run([])).map((each) => new Tensor(each))
    const leaves = await Promise.all(wanted.map((value, index) => leafOf(graph, value, found[index]!)))
    return new Map(wanted.map((value, index) => [value, leaves[index]!]))
  } finally {
    native.dispose()
  }
}

function neededFor(wanted: readonly number[], known: ReadonlySet<Step>): Step[] {
  const needed = new Set(wanted)
  const steps: Step[] = []
  for (const step of [...known].reverse()) {
    if (!step.outputs.some((output) => needed.has(output))) continue
    for (const input of step.inputs) needed.add(input)
    steps.push(step)
  }
  return steps.reverse()
}

async function leafOf(graph: Graph, value: number, tensor: Tensor): Promise<Step> {
  const { shape, dtype } = graph.values[value]!
  const leaf = { inputs: [], outputs: [value], backward: false, scope: '' }
  if (shape.length > 0 || (dtype !== 'f32' && dtype !== 'f64')) return { ...leaf, op: 'bound', attributes: {}, tensor }
  const [number] = (await tensor.data()) as Float32Array
  tensor.dispose()
  return { ...leaf, op: 'constant', attributes: { value: number!, dtype } }
}
