/**
 * Every operator with a CUDA kernel, at a shape that has a name, and what it computes and moves there at least: for
 * `npm run bench -- cuda`, which times it, and `npm run report:cuda`, which says what it would take at best.
 */
import { dtypeSize, elementCount } from '../../lib/tensor/dtype.js'
import type { Attribute } from '../../test/support/instruction_list.js'
import { arrayCases } from './array_cases.js'
import { linalgCases } from './linalg_cases.js'
import { networkCases } from './network_cases.js'
import type { CaseOperand } from './operands.js'
import { structuredCases } from './structured_cases.js'

/** What a chip's units multiply and add with: its f32 units, or its matrix units in bf16. */
export type Unit = 'f32' | 'bf16'

/** One instruction. */
export interface CudaCase {
  readonly op: string
  /** The shape in words. */
  readonly name: string
  readonly inputs: readonly (CaseOperand | null)[]
  readonly outputs: readonly (CaseOperand | null)[]
  /** The first output is the first input, updated where it lies. */
  readonly updates?: true
  readonly attributes?: readonly (readonly [string, Attribute])[]
  /** Operations on numbers that the result needs, by the usual algorithm. */
  readonly flops: number
  /** Default `f32`. */
  readonly unit?: Unit
  /** Bytes that must be read and written; default: all operands, once. */
  readonly bytes?: number
}

/** Numbers of the shapes: those that are reported, or small ones that show that a case runs. */
export type Scale = 'full' | 'tiny'
/** Gives one of the two. */
export type Pick = (full: number, tiny: number) => number

/** @throws never: shapes are constants */
export function casesAt(scale: Scale): readonly CudaCase[] {
  const pick: Pick = (full, tiny) => (scale === 'full' ? full : tiny)
  return [networkCases, arrayCases, structuredCases, linalgCases].flatMap((family) => family(pick))
}

/** Bytes that a case must move. */
export function bytesOf({ inputs, outputs, bytes }: CudaCase): number {
  if (bytes !== undefined) return bytes
  const size = (operand: CaseOperand | null): number =>
    operand === null ? 0 : elementCount(operand.shape) * dtypeSize(operand.dtype)
  return [...inputs, ...outputs].reduce((sum, operand) => sum + size(operand), 0)
}
