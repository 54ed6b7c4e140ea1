/** The graph that passes rewrite: flat steps over numbered values, made from a finished trace. */
import type { DType } from '../tensor/dtype.js'
import type { Tensor } from '../tensor/tensor.js'
import { fusedInstructions } from './fused.js'
import { type OperatorDefinition, operatorOf } from './operator.js'
import { pause } from './pause.js'
import type { Attributes, Sym, SymType, Trace } from './sym.js'

/** Stands for an optional operand that is left out. */
export const absent = -1

export interface Step {
  op: string
  /** Value ids, or {@link absent}. */
  inputs: number[]
  outputs: number[]
  attributes: Attributes
  readonly backward: boolean
  /** Module path in which the step was traced. */
  scope: string
  /** The tensor of a `bound` leaf. */
  readonly tensor?: Tensor
}

export interface Assignment {
  readonly tensor: Tensor
  /** Id of the bound leaf's value. */
  readonly target: number
  value: number
}

export interface Graph {
  readonly values: { readonly shape: readonly number[]; readonly dtype: DType }[]
  steps: Step[]
  /** Program inputs in call order. */
  readonly inputs: readonly number[]
  outputs: number[]
  assignments: Assignment[]
}

/** The declaration of a step's operator; leaves and fused instructions have none. */
export const declared = ({ op }: Pick<Step, 'op'>): OperatorDefinition | undefined =>
  op === 'input' || op === 'bound' || fusedInstructions.has(op) ? undefined : operatorOf(op)

export const isElementwise = (step: Step): boolean => declared(step)?.kind === 'elementwise'

export const isAlias = (step: Step): boolean => declared(step)?.kind === 'alias'

/** True when the step writes through its first input, which is a bound tensor. */
export const mutates = (step: Step): boolean => declared(step)?.mutates === true

export function addValue(graph: Graph, { shape, dtype }: SymType): number {
  return graph.values.push({ shape, dtype }) - 1
}

/** Flattens a trace. */
export async function graphOf(trace: Trace, outputs: readonly Sym[]): Promise<Graph> {
  const ids = new Map<Sym, number>()
  const values: Graph['values'] = []
  const idOf = (sym: Sym): number => {
    let id = ids.get(sym)
    if (id === undefined) {
      id = values.push({ shape: sym.shape, dtype: sym.dtype }) - 1
      ids.set(sym, id)
    }
    return id
  }
  const steps: Step[] = []
  for (const [index, node] of trace.nodes.entries()) {
    steps.push({
      op: node.op,
      inputs: node.inputs.map((input) => (input ? idOf(input) : absent)),
      outputs: node.outputs.map(idOf),
      attributes: node.attributes,
      backward: node.backward,
      scope: node.scope,
      ...(node.tensor ? { tensor: node.tensor } : {}),
    })
    if (index % 16 === 0) await pause()
  }
  return {
    values,
    steps,
    inputs: trace.inputs.map(idOf),
    outputs: outputs.map(idOf),
    assignments: [...trace.assignments].map(([tensor, value]) => ({
      tensor,
      target: idOf(trace.read(tensor)),
      value: idOf(value),
    })),
  }
}

/** For each value, the step that makes it. */
export function producers(graph: Graph): (Step | undefined)[] {
  const result = new Array<Step | undefined>(graph.values.length)
  for (const step of graph.steps) for (const output of step.outputs) if (output !== absent) result[output] = step
  return result
}

/** For each value, the steps that read it (each once). */
export function consumers(graph: Graph): Step[][] {
  const result: Step[][] = graph.values.map(() => [])
  for (const step of graph.steps)
    for (const [i, input] of step.inputs.entries())
      if (input !== absent && step.inputs.indexOf(input) === i) result[input]!.push(step)
  return result
}

/** Values that leave the program: outputs and new states. */
export const results = (graph: Graph): number[] => [
  ...graph.outputs,
  ...graph.assignments.map((assignment) => assignment.value),
]
