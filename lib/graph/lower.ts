/**
 * From graph to instruction list: gives every value a buffer (reusing an input's where the kernel may work in place,
 * writing new states straight into their tensors where no one reads the old ones any more).
 */
import { type DType, dtypeSize, elementCount, sameShape } from '../tensor/dtype.js'
import type { Tensor } from '../tensor/tensor.js'
import type { BufferDeclaration, BufferKind, Instruction, InstructionList } from './encode.js'
import { fusedInstructions } from './fused.js'
import { absent, addValue, type Graph, isAlias, mutates, type Step } from './graph.js'
import { operatorOf } from './operator.js'
import { pause } from './pause.js'

export interface LoweredProgram {
  readonly list: InstructionList
  /** Bound tensors in the order of their indices. */
  readonly bound: readonly Tensor[]
}

/** Leaves the graph as it is. */
export async function lower(graph: Graph): Promise<LoweredProgram> {
  const own: Graph = {
    ...graph,
    values: [...graph.values],
    steps: [...graph.steps],
    assignments: graph.assignments.map((assignment) => ({ ...assignment })),
  }
  separateResults(own)
  await pause()
  const placement = new Placement(own)
  await pause()
  for (const [index, step] of own.steps.entries()) {
    placement.place(step, index)
    if (index % 16 === 0) await pause()
  }
  return { list: await placement.finish(), bound: placement.bound }
}

/** The most bytes of temporaries that are alive at once: what the arena of a run takes, gaps aside. */
export function liveBytes({ buffers, instructions }: InstructionList): number {
  const rootOf = (id: number): number => (buffers[id]!.kind === 'alias' ? rootOf(buffers[id]!.index) : id)
  const lives = new Map<number, [first: number, last: number]>()
  for (const [index, { inputs, outputs }] of instructions.entries())
    for (const id of [...inputs, ...outputs]) {
      const root = id < 0 ? id : rootOf(id)
      if (root < 0 || buffers[root]!.kind !== 'temp') continue
      const life = lives.get(root)
      if (life) life[1] = index
      else lives.set(root, [index, index])
    }
  const change = new Array<number>(instructions.length + 1).fill(0)
  for (const [root, [first, last]] of lives) {
    const { dtype, shape } = buffers[root]!
    const bytes = Math.ceil((elementCount(shape) * dtypeSize(dtype)) / arenaAlignment) * arenaAlignment
    change[first]! += bytes
    change[last + 1]! -= bytes
  }
  let [live, most] = [0, 0]
  for (const bytes of change) {
    live += bytes
    most = Math.max(most, live)
  }
  return most
}

/** Of cpp/core/memory_plan.cpp. */
const arenaAlignment = 64

/**
 * A value can leave the program through one door only, and states must all be read before any is replaced: adds
 * copies where a result is an input, a state's old value, a view, or wanted twice.
 */
function separateResults(graph: Graph): void {
  const by = new Map<number, Step>()
  for (const step of graph.steps) for (const output of step.outputs) by.set(output, step)
  const taken = new Set<number>()
  const own = (value: number): number => {
    const step = by.get(value)
    const direct = step && step.op !== 'input' && step.op !== 'bound' && !isAlias(step) && !mutates(step)
    if (direct && !taken.has(value)) {
      taken.add(value)
      return value
    }
    const copy = addValue(graph, graph.values[value]!)
    graph.steps.push({ op: 'copy', inputs: [value], outputs: [copy], attributes: {}, backward: false, scope: '' })
    taken.add(copy)
    return copy
  }
  const assigned = graph.assignments.filter(
    ({ target, value }) => target !== value && !isMutated(by.get(value), target),
  )
  for (const assignment of assigned) assignment.value = own(assignment.value)
  graph.assignments = assigned
  graph.outputs = graph.outputs.map(own)
}

const isMutated = (step: Step | undefined, target: number): boolean =>
  step !== undefined && mutates(step) && step.inputs[0] === target

interface Root {
  readonly kind: BufferKind
  readonly index: number
  readonly shape: readonly number[]
  readonly dtype: DType
  /** The value that lives in this memory now. */
  owner: number
}

class Placement {
  readonly bound: Tensor[] = []
  readonly #graph: Graph
  readonly #roots: Root[] = []
  readonly #rootOf: number[]
  readonly #boundRoots = new Map<Tensor, number>()
  /** The value whose memory a value is a view of (itself if none). */
  readonly #base: readonly number[]
  /** Position of the last step that reads the memory of a base value. */
  readonly #lastRead: number[]
  readonly #outputIndex: ReadonlyMap<number, number>
  readonly #assignedTo: ReadonlyMap<number, { readonly tensor: Tensor; readonly target: number }>
  readonly #copies: { readonly from: number; readonly to: Tensor }[] = []
  readonly #steps: Step[] = []

  constructor(graph: Graph) {
    this.#graph = graph
    this.#rootOf = new Array<number>(graph.values.length).fill(absent)
    this.#base = baseValues(graph)
    this.#lastRead = lastReads(graph, this.#base)
    this.#outputIndex = new Map(graph.outputs.map((value, index) => [value, index]))
    this.#assignedTo = new Map(graph.assignments.map((assignment) => [assignment.value, assignment]))
  }

  place(step: Step, index: number): void {
    const [output] = step.outputs
    if (step.op === 'input') this.#rootOf[output!] = this.#addRoot('input', step.attributes.index as number, output!)
    else if (step.op === 'bound') this.#rootOf[output!] = this.#boundRoot(step.tensor!, output!)
    else if (isAlias(step) || mutates(step)) this.#rootOf[output!] = this.#rootOf[step.inputs[0]!]!
    else this.#placeOutputs(step, index)
    if (step.op !== 'input' && step.op !== 'bound' && !isAlias(step)) this.#steps.push(step)
  }

  async finish(): Promise<InstructionList> {
    const buffers: BufferDeclaration[] = this.#roots.map(({ kind, index, shape, dtype }) => ({
      kind,
      index,
      shape,
      dtype,
    }))
    const views = new Map<string, number>()
    const bufferOf = (value: number): number => {
      if (value === absent) return absent
      const root = this.#rootOf[value]!
      const { shape, dtype } = this.#graph.values[value]!
      if (sameShape(this.#roots[root]!.shape, shape) && this.#roots[root]!.dtype === dtype) return root
      const key = `${root}|${dtype}|${shape}`
      const view = views.get(key) ?? buffers.push({ kind: 'alias', index: root, shape, dtype }) - 1
      views.set(key, view)
      return view
    }
    const instructions: Instruction[] = []
    for (const [index, { op, inputs, outputs, attributes }] of this.#steps.entries()) {
      instructions.push({ op, inputs: inputs.map(bufferOf), outputs: outputs.map(bufferOf), attributes })
      if (index % 16 === 0) await pause()
    }
    for (const { from, to } of this.#copies)
      instructions.push({ op: 'copy', inputs: [bufferOf(from)], outputs: [this.#boundRoots.get(to)!], attributes: {} })
    return { buffers, instructions }
  }

  #placeOutputs(step: Step, index: number): void {
    const used = new Set<number>()
    for (const [slot, output] of step.outputs.entries()) {
      if (output === absent) continue
      const root = this.#stateRoot(step, index, slot) ?? this.#inPlaceRoot(step, index, slot, used)
      this.#rootOf[output] = root ?? this.#freshRoot(output)
      this.#roots[this.#rootOf[output]!]!.owner = output
      used.add(this.#rootOf[output]!)
    }
  }

  #freshRoot(value: number): number {
    const outputIndex = this.#outputIndex.get(value)
    return outputIndex === undefined ? this.#addRoot('temp', 0, value) : this.#addRoot('output', outputIndex, value)
  }

  /** The tensor that the value becomes, if all readers of the old state are done by now; else a copy at the end. */
  #stateRoot(step: Step, index: number, slot: number): number | undefined {
    const output = step.outputs[slot]!
    const assignment = this.#assignedTo.get(output)
    if (!assignment) return undefined
    const root = this.#boundRoot(assignment.tensor, assignment.target)
    const readers = step.inputs.flatMap((input, i) => (input !== absent && this.#rootOf[input] === root ? [i] : []))
    const free = this.#lastRead[assignment.target]! <= index && readers.every((i) => this.#mayShare(step, i, slot))
    if (free) return root
    this.#copies.push({ from: output, to: assignment.tensor })
    this.#lastRead[output] = Number.POSITIVE_INFINITY
    return undefined
  }

  /** The memory of a dying temporary among the inputs, where the kernel may overwrite it. */
  #inPlaceRoot(step: Step, index: number, slot: number, used: ReadonlySet<number>): number | undefined {
    if (this.#outputIndex.has(step.outputs[slot]!)) return undefined
    for (const input of step.inputs) {
      if (input === absent) continue
      const root = this.#rootOf[input]!
      const { kind, owner } = this.#roots[root]!
      if (kind !== 'temp' || this.#lastRead[this.#base[owner]!]! > index || used.has(root)) continue
      if (
        step.inputs.every(
          (other, i) => other === absent || this.#rootOf[other] !== root || this.#mayShare(step, i, slot),
        )
      )
        return root
    }
    return undefined
  }

  #mayShare(step: Step, input: number, output: number): boolean {
    const from = this.#graph.values[step.inputs[input]!]!
    const to = this.#graph.values[step.outputs[output]!]!
    const inPlace = fusedInstructions.get(step.op)?.inPlace ?? operatorOf(step.op).inPlace ?? []
    if (inPlace === 'alike') return sameShape(from.shape, to.shape) && from.dtype === to.dtype
    if (elementCount(from.shape) !== elementCount(to.shape) || dtypeSize(from.dtype) !== dtypeSize(to.dtype))
      return false
    return inPlace.some(([i, o]) => i === input && o === output)
  }

  #addRoot(kind: BufferKind, index: number, owner: number): number {
    const { shape, dtype } = this.#graph.values[owner]!
    return this.#roots.push({ kind, index, shape, dtype, owner }) - 1
  }

  #boundRoot(tensor: Tensor, owner: number): number {
    let root = this.#boundRoots.get(tensor)
    if (root === undefined) {
      root = this.#addRoot('bound', this.bound.push(tensor) - 1, owner)
      this.#boundRoots.set(tensor, root)
    }
    return root
  }
}

function baseValues(graph: Graph): number[] {
  const base = graph.values.map((_, value) => value)
  for (const step of graph.steps) if (isAlias(step) || mutates(step)) base[step.outputs[0]!] = base[step.inputs[0]!]!
  return base
}

function lastReads(graph: Graph, base: readonly number[]): number[] {
  const last = new Array<number>(graph.values.length).fill(-1)
  for (const [index, step] of graph.steps.entries())
    for (const input of step.inputs) if (input !== absent) last[base[input]!] = index
  return last
}
