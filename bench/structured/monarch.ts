/** Monarch products, forwards and backwards. */
import { gradients } from '../../lib/graph/grad.js'
import { mul } from '../../lib/graph/ops/elementwise.js'
import { monarch } from '../../lib/graph/ops/monarch.js'
import { sum } from '../../lib/graph/ops/reduce.js'
import type { Sym } from '../../lib/graph/sym.js'
import type { StructuredCase } from './cases.js'
import { chainCase, elements } from './chain_case.js'

type Size = readonly [number, number, number]

function monarchCases(name: string, rows: number, w1: Size, w2: Size): StructuredCase[] {
  const [inner, out] = [w1[0] * w1[2], w2[0] * w2[1]]
  const flops = 2 * rows * (elements(w1) + elements(w2))
  const shapes = [[rows, inner], w1, w2]
  const product = ([x, a, b]: readonly Sym[]): Sym => monarch(x!, a!, b!)
  return [
    chainCase({ name: `monarch-${name}`, flops, elements: rows * (inner + out), shapes, fn: (own) => [product(own)] }),
    chainCase({
      name: `monarch-${name}-train`,
      // The product, the gradient of x, that of the weights.
      flops: 3 * flops,
      elements: 2 * rows * (inner + out),
      shapes: [...shapes, [rows, out]],
      fn: ([x, a, b, g]) => gradients(sum(mul(product([x!, a!, b!]), g!)), [x!, a!, b!]),
    }),
  ]
}

/** Cases of `structured`. */
export const cases: readonly StructuredCase[] = [
  ...monarchCases('4096x1024-n32', 4096, [32, 32, 32], [32, 32, 32]),
  ...monarchCases('1024x4096-n64', 1024, [64, 64, 64], [64, 64, 64]),
  ...monarchCases('2048x768-3072-n4', 2048, [4, 768, 192], [4, 768, 768]),
]
