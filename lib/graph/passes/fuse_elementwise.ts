/**
 * Joins neighbouring elementwise steps of one shape into single `elementwise` instructions, which keep the values in
 * between in cache. Constants are copied into every instruction that uses them.
 */
import { sameShape } from '../../tensor/dtype.js'
import { absent, consumers, type Graph, isElementwise, producers, results, type Step } from '../graph.js'
import { pause } from '../pause.js'

interface Group {
  readonly members: Set<Step>
  readonly shape: readonly number[]
  readonly computedIn: 'f32' | 'f64'
  readonly backward: boolean
}

export async function fuseElementwise(graph: Graph): Promise<void> {
  const position = new Map(graph.steps.map((step, index) => [step, index]))
  const groups = await formGroups(graph, position)
  const by = producers(graph)
  let order = await orderOf(graph, groups, by)
  for (; !Array.isArray(order); order = await orderOf(graph, groups, by))
    for (const member of order.members) groups.set(member, { ...order, members: new Set([member]) })
  const leaving = new Set(results(graph))
  await pause()
  const readers = consumers(graph)
  await pause()
  const steps: Step[] = []
  for (const [index, unit] of order.entries()) {
    if (index % 16 === 0) await pause()
    if (!isGroup(unit)) steps.push(unit)
    else if (!isLoneConstant(unit, readers, leaving)) {
      const members = [...unit.members].sort((a, b) => position.get(a)! - position.get(b)!)
      steps.push(instructionOf(unit, members, { groups, readers, leaving, by }))
    }
  }
  graph.steps = steps
}

type Unit = Group | Step

const isGroup = (unit: Unit): unit is Group => 'members' in unit

/**
 * Steps and groups such that producers come first: a group at its last member's place, unless a reader outside needs it
 * earlier. Gives a group instead that waits for itself through another one.
 */
async function orderOf(
  graph: Graph,
  groups: ReadonlyMap<Step, Group>,
  by: readonly (Step | undefined)[],
): Promise<Unit[] | Group> {
  const last = new Map<Group, Step>()
  for (const step of graph.steps) {
    const group = groups.get(step)
    if (group) last.set(group, step)
  }
  const order: Unit[] = []
  const finished = new Set<Unit>()
  const open = new Set<Unit>()
  let circular: Group | undefined
  const emit = (unit: Unit): void => {
    if (finished.has(unit)) return
    if (open.has(unit)) {
      const opened = [...open]
      const cycle = opened.slice(opened.indexOf(unit))
      circular ??= cycle.find((other): other is Group => isGroup(other) && other.members.size > 1)
      return
    }
    open.add(unit)
    for (const member of isGroup(unit) ? unit.members : [unit])
      for (const input of member.inputs) {
        const producer = input === absent ? undefined : by[input]
        const source = producer && (groups.get(producer) ?? producer)
        if (source && source !== unit) emit(source)
      }
    open.delete(unit)
    finished.add(unit)
    order.push(unit)
  }
  for (const [index, step] of graph.steps.entries()) {
    const group = groups.get(step)
    if (!group || last.get(group) === step) emit(group ?? step)
    if (circular) return circular
    if (index % 16 === 0) await pause()
  }
  return order
}

async function formGroups(graph: Graph, position: ReadonlyMap<Step, number>): Promise<Map<Step, Group>> {
  const readers = consumers(graph)
  const groups = new Map<Step, Group>()
  for (let index = graph.steps.length - 1; index >= 0; index -= 1) {
    if (index % 16 === 0) await pause()
    const step = graph.steps[index]!
    if (!isElementwise(step)) continue
    const { shape, dtype } = graph.values[step.outputs[0]!]!
    const computedIn = elementType(graph, step)
    groups.set(step, { members: new Set([step]), shape, computedIn, backward: step.backward })
    // A narrowing cast rounds where it is stored, so its readers must read it from memory.
    if (step.op === 'constant' || dtype !== computedIn) continue
    for (const reader of readers[step.outputs[0]!]!) {
      const mine = groups.get(step)!
      const theirs = groups.get(reader)
      if (theirs && fits(mine, theirs) && !closesCycle(mine, theirs, readers, position)) merge(mine, theirs, groups)
    }
  }
  await joinNarrowingCasts(graph, groups, readers, position)
  return groups
}

/** A narrowing cast goes along with another reader of its operand, which then passes through the cache once. */
async function joinNarrowingCasts(
  graph: Graph,
  groups: Map<Step, Group>,
  readers: readonly Step[][],
  position: ReadonlyMap<Step, number>,
): Promise<void> {
  for (const [index, step] of graph.steps.entries()) {
    if (index % 16 === 0) await pause()
    const mine = groups.get(step)
    if (step.op !== 'cast' || mine?.members.size !== 1) continue
    for (const reader of readers[step.inputs[0]!]!) {
      const theirs = groups.get(reader)
      if (!theirs || !fits(mine, theirs) || closesCycle(mine, theirs, readers, position)) continue
      merge(mine, theirs, groups)
      break
    }
  }
}

/** The kernel takes 1024 operations and as many operands; an operation has up to three. */
const mostMembers = 340

/** Whether two groups can be one instruction. */
const fits = (a: Group, b: Group): boolean =>
  a !== b &&
  a.backward === b.backward &&
  a.computedIn === b.computedIn &&
  a.members.size + b.members.size <= mostMembers &&
  sameShape(a.shape, b.shape)

/** What the kernel computes a step in: f64 as soon as one operand is f64. */
function elementType({ values }: Graph, { inputs, outputs }: Step): 'f32' | 'f64' {
  return [...inputs, ...outputs].some((value) => values[value]!.dtype === 'f64') ? 'f64' : 'f32'
}

/** True when merging two groups would close a cycle through single steps outside of both. */
function closesCycle(a: Group, b: Group, readers: readonly Step[][], position: ReadonlyMap<Step, number>): boolean {
  const around = (from: Group, to: Group): boolean => {
    const starts: Step[] = []
    for (const member of from.members)
      for (const output of member.outputs)
        for (const reader of readers[output]!)
          if (!from.members.has(reader) && !to.members.has(reader)) starts.push(reader)
    return reaches(starts, to, readers, position)
  }
  return around(a, b) || around(b, a)
}

function reaches(
  starts: readonly Step[],
  goal: Group,
  readers: readonly Step[][],
  position: ReadonlyMap<Step, number>,
): boolean {
  const bound = Math.max(...[...goal.members].map((member) => position.get(member)!))
  const seen = new Set<Step>()
  const stack = [...starts]
  for (let step = stack.pop(); step; step = stack.pop()) {
    if (goal.members.has(step)) return true
    if (seen.has(step) || position.get(step)! > bound) continue
    seen.add(step)
    for (const output of step.outputs) if (output !== absent) stack.push(...readers[output]!)
  }
  return false
}

function merge(from: Group, into: Group, groups: Map<Step, Group>): void {
  for (const member of from.members) {
    into.members.add(member)
    groups.set(member, into)
  }
}

function isLoneConstant(group: Group, readers: readonly Step[][], leaving: ReadonlySet<number>): boolean {
  const [only] = group.members
  if (group.members.size !== 1 || only!.op !== 'constant') return false
  const output = only!.outputs[0]!
  return !leaving.has(output) && readers[output]!.every(isElementwise)
}

interface Surroundings {
  readonly groups: ReadonlyMap<Step, Group>
  readonly readers: readonly Step[][]
  readonly leaving: ReadonlySet<number>
  readonly by: readonly (Step | undefined)[]
}

function instructionOf(group: Group, order: readonly Step[], around: Surroundings): Step {
  const { groups, readers, leaving, by } = around
  const inside = (value: number): boolean => by[value] !== undefined && group.members.has(by[value])
  const inputs = [...new Set(order.flatMap((step) => step.inputs))].filter(
    (value) => !inside(value) && by[value]?.op !== 'constant',
  )
  const ids = new Map(inputs.map((value, index) => [value, index]))
  const ops: string[] = []
  const operands: number[] = []
  const constants: number[] = []
  const push = (value: number, op: string, args: readonly number[]): number => {
    operands.push(...args)
    const id = inputs.length + ops.push(op) - 1
    ids.set(value, id)
    return id
  }
  const constantId = (value: number): number => {
    constants.push(by[value]!.attributes.value as number)
    return push(value, 'constant', [])
  }
  for (const step of order) {
    const args = step.inputs.map((value) => ids.get(value) ?? constantId(value))
    if (step.op === 'constant') constantId(step.outputs[0]!)
    else if (step.op === 'cast') ids.set(step.outputs[0]!, args[0]!)
    else push(step.outputs[0]!, step.op, args)
  }
  const outputs = order
    .map((step) => step.outputs[0]!)
    .filter((value) => leaving.has(value) || readers[value]!.some((reader) => groups.get(reader) !== group))
  return {
    op: 'elementwise',
    inputs,
    outputs,
    attributes: { ops, operands, constants, results: outputs.map((value) => ids.get(value)!) },
    backward: group.backward,
    scope: order.at(-1)!.scope,
  }
}
