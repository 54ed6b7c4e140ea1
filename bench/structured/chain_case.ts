/** A case that is one program over random operands. */
import { computed } from '../../lib/graph/computed.js'
import { randomNormal } from '../../lib/graph/ops/random.js'
import { program } from '../../lib/graph/program.js'
import type { Sym } from '../../lib/graph/sym.js'
import { type Tensor, tensor } from '../../lib/tensor/tensor.js'
import type { StructuredCase } from './cases.js'

/** A program to be timed. */
export interface ChainCase {
  readonly name: string
  readonly flops: number
  /** Numbers that must be read and written. */
  readonly elements: number
  readonly shapes: readonly (readonly number[])[]
  readonly fn: (operands: readonly Sym[]) => readonly Sym[] | Promise<readonly Sym[]>
}

export const chainCase = ({ name, flops, elements, shapes, fn }: ChainCase): StructuredCase => ({
  name,
  flops,
  bytes: 4 * elements,
  prepare: async () => {
    using seed = tensor(Uint32Array.of(1, 0))
    const operands: Tensor[] = []
    for (const [stream, shape] of shapes.entries())
      operands.push(await computed((words) => randomNormal(words!, stream, shape), [seed]))
    const run = program(async (...own: Sym[]) => fn(own))
    return async () => {
      for (const result of (await run(...operands)) as readonly Tensor[]) result.dispose()
    }
  },
})

/** Elements of a shape. */
export const elements = (shape: readonly number[]): number => shape.reduce((x, y) => x * y, 1)

/** This file has no cases of its own. */
export const cases: readonly StructuredCase[] = []
