/**
 * Activation checkpointing (Chen et al. 2016, arXiv 1604.06174): of a module that is recomputed only what it hands on is
 * kept; its other activations are computed again in the backward pass, just before they are read. Runs last, on the
 * instructions as they are, so that they are repeated bit for bit.
 */
import { dtypeSize, elementCount } from '../../tensor/dtype.js'
import { fusedInstructions } from '../fused.js'
import {
  absent,
  addValue,
  consumers,
  declared,
  type Graph,
  isAlias,
  mutates,
  producers,
  results,
  type Step,
} from '../graph.js'
import { pause } from '../pause.js'

/** A glob over module paths (`*` within a name, `**` across names) or an expression that finds them. */
export type ScopePattern = string | RegExp

/** What recomputing one scope would free and cost. */
export interface ScopeCost {
  readonly scope: string
  /** Activations that need not be kept. */
  readonly bytes: number
  /** Floating-point operations done twice. */
  readonly flops: number
}

/** Gives the scope that a module path belongs to: the shortest of its prefixes that a pattern matches. */
export function scopeFinder(patterns: readonly ScopePattern[]): (path: string) => string | undefined {
  const tests = patterns.map((pattern) => (typeof pattern === 'string' ? globExpression(pattern) : pattern))
  return cached((path) => {
    const names = path === '' ? [] : path.split('.')
    const prefixes = names.map((_, i) => names.slice(0, i + 1).join('.'))
    return prefixes.find((prefix) => tests.some((test) => prefix.search(test) >= 0))
  })
}

/** The scopes of repeated blocks, such as decoder layers: paths up to their first number. */
export const blockOf: (path: string) => string | undefined = scopeFinder([/(^|\.)\d+$/])

/** The floating-point operations of a step. */
export function flopsOf({ values }: Graph, step: Step): number {
  const type = (value: number) => (value === absent ? undefined : values[value])
  const [inputs, outputs] = [step.inputs.map(type), step.outputs.map(type)]
  if (step.op === 'input' || step.op === 'bound' || isAlias(step)) return 0
  const flops = fusedInstructions.get(step.op)?.flops ?? declared(step)?.flops
  if (flops) return flops(inputs, outputs, step.attributes)
  return [...inputs, ...outputs].reduce((sum, operand) => sum + (operand ? elementCount(operand.shape) : 0), 0)
}

/** Every scope that has something to recompute, in order of appearance. */
export async function scopeCosts(graph: Graph, scopeOf: (path: string) => string | undefined): Promise<ScopeCost[]> {
  const plan = await planOf(graph, scopeOf)
  const costs = new Map<string, { bytes: number; flops: number }>()
  const counted = new Set<Step>()
  for (const [index, value] of plan.dropped.entries()) {
    if (index % 16 === 0) await pause()
    const scope = plan.owner.get(value)!
    const cost = costs.get(scope) ?? { bytes: 0, flops: 0 }
    costs.set(scope, cost)
    const { shape, dtype } = graph.values[value]!
    if (!isAlias(plan.by[value]!)) cost.bytes += elementCount(shape) * dtypeSize(dtype)
    const visit = (needed: number): void => {
      const step = plan.by[needed]!
      if (!plan.isRepeatable(needed, scope) || counted.has(step)) return
      counted.add(step)
      cost.flops += flopsOf(graph, step)
      for (const input of step.inputs) if (input !== absent) visit(input)
    }
    visit(value)
  }
  return [...costs].map(([scope, cost]) => ({ scope, ...cost }))
}

/** The graph with the chosen scopes recomputed. */
export async function recomputeScopes(
  graph: Graph,
  scopeOf: (path: string) => string | undefined,
  chosen: ReadonlySet<string>,
): Promise<Graph> {
  const own: Graph = { ...graph, values: [...graph.values] }
  const { by, owner, dropped, isRepeatable } = await planOf(graph, (path) => {
    const scope = scopeOf(path)
    return scope !== undefined && chosen.has(scope) ? scope : undefined
  })
  const steps: Step[] = []
  const copies = new Map<number, number>()
  const copyOf = (value: number, scope: string): number => {
    const known = copies.get(value)
    if (known !== undefined) return known
    if (value === absent || !isRepeatable(value, scope)) return value
    const step = by[value]!
    const inputs = step.inputs.map((input) => copyOf(input, scope))
    const outputs = step.outputs.map((output) => (output === absent ? absent : addValue(own, own.values[output]!)))
    for (const [i, output] of step.outputs.entries()) if (output !== absent) copies.set(output, outputs[i]!)
    steps.push({ ...step, inputs, outputs, backward: true })
    return copies.get(value)!
  }
  const isDropped = new Set(dropped)
  for (const [index, step] of graph.steps.entries()) {
    if (index % 16 === 0) await pause()
    const inputs = step.backward
      ? step.inputs.map((input) => (isDropped.has(input) ? copyOf(input, owner.get(input)!) : input))
      : step.inputs
    steps.push({ ...step, inputs })
  }
  return { ...own, steps }
}

interface RecomputePlan {
  readonly by: readonly (Step | undefined)[]
  /** The scope whose forward pass makes a value. */
  readonly owner: ReadonlyMap<number, string>
  /** Values that the backward pass reads and that are not kept for it. */
  readonly dropped: readonly number[]
  /** True when the value can be made again from what the scope was given. */
  readonly isRepeatable: (value: number, scope: string) => boolean
}

async function planOf(graph: Graph, scopeOf: (path: string) => string | undefined): Promise<RecomputePlan> {
  const by = producers(graph)
  await pause()
  const readers = consumers(graph)
  await pause()
  const leaving = new Set(results(graph))
  const owner = new Map<number, string>()
  for (const step of graph.steps) {
    const scope = step.backward || isLeaf(step) || mutates(step) ? undefined : scopeOf(step.scope)
    if (scope !== undefined) for (const output of step.outputs) if (output !== absent) owner.set(output, scope)
  }
  await pause()
  /** Other modules read it, or the caller: it is there anyway. */
  const isHandedOn = (value: number): boolean =>
    leaving.has(value) ||
    readers[value]!.some(
      (step) =>
        !step.backward && (scopeOf(step.scope) !== owner.get(value) || (isAlias(step) && isHandedOn(step.outputs[0]!))),
    )
  const isRepeatable = (value: number, scope: string): boolean => owner.get(value) === scope && !isHandedOn(value)
  const dropped = [...owner.keys()].filter(
    (value) => readers[value]!.some((step) => step.backward) && !isHandedOn(value),
  )
  return { by, owner, dropped, isRepeatable }
}

const isLeaf = ({ op }: Step): boolean => op === 'input' || op === 'bound'

function globExpression(glob: string): RegExp {
  const parts = glob.split(/(\*\*|\*)/).map((part) => {
    if (part === '**') return '.*'
    return part === '*' ? '[^.]*' : part.replace(/[.+?^${}()|[\]\\]/g, '\\$&')
  })
  return new RegExp(`^${parts.join('')}$`)
}

function cached(find: (path: string) => string | undefined): (path: string) => string | undefined {
  const known = new Map<string, string | undefined>()
  return (path) => {
    if (!known.has(path)) known.set(path, find(path))
    return known.get(path)
  }
}
