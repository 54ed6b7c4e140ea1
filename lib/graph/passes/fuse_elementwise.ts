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
  readonly backward: boolean
}

export async function fuseElementwise(graph: Graph): Promise<void> {
  const position = new Map(graph.steps.map((step, index) => [step, index]))
  const groups = await formGroups(graph, position)
  const leaving = new Set(results(graph))
  await pause()
  const readers = consumers(graph)
  await pause()
  const by = producers(graph)
  const emitted = new Set<Group>()
  const done = new Set<Step>()
  const steps: Step[] = []
  // A group runs at its last member's place unless an earlier reader outside needs it: emit on demand.
  const emit = (step: Step): void => {
    const group = groups.get(step)
    if (group ? emitted.has(group) : done.has(step)) return
    if (group) emitted.add(group)
    else done.add(step)
    for (const member of group?.members ?? [step])
      for (const input of member.inputs) {
        const producer = input === absent ? undefined : by[input]
        if (producer && !group?.members.has(producer)) emit(producer)
      }
    if (!group) steps.push(step)
    else if (!isLoneConstant(group, readers, leaving)) {
      const order = [...group.members].sort((a, b) => position.get(a)! - position.get(b)!)
      steps.push(instructionOf(group, order, { groups, readers, leaving, by }))
    }
  }
  const last = new Map<Group, Step>()
  for (const step of graph.steps) {
    const group = groups.get(step)
    if (group) last.set(group, step)
  }
  for (const [index, step] of graph.steps.entries()) {
    const group = groups.get(step)
    if (!group || last.get(group) === step) emit(step)
    if (index % 16 === 0) await pause()
  }
  graph.steps = steps
}

async function formGroups(graph: Graph, position: ReadonlyMap<Step, number>): Promise<Map<Step, Group>> {
  const readers = consumers(graph)
  const groups = new Map<Step, Group>()
  for (let index = graph.steps.length - 1; index >= 0; index -= 1) {
    if (index % 16 === 0) await pause()
    const step = graph.steps[index]!
    if (!isElementwise(step)) continue
    const { shape, dtype } = graph.values[step.outputs[0]!]!
    groups.set(step, { members: new Set([step]), shape, backward: step.backward })
    // A narrowing cast rounds where it is stored, so its readers must read it from memory.
    if (step.op === 'constant' || dtype !== 'f32') continue
    for (const reader of readers[step.outputs[0]!]!) {
      const mine = groups.get(step)!
      const theirs = groups.get(reader)
      if (!theirs || theirs === mine || theirs.backward !== mine.backward || !sameShape(theirs.shape, shape)) continue
      if (!closesCycle(mine, theirs, readers, position)) merge(mine, theirs, groups)
    }
  }
  return groups
}

/** True when merging two groups would close a cycle through steps outside of both. */
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
  }
}
