/** Products with Kronecker products, and with sums of them. */
import { kroneckerMatmul, kroneckerProducts } from '../../lib/graph/ops/kronecker.js'
import type { StructuredCase } from './cases.js'
import { chainCase } from './chain_case.js'

function kroneckerCase(
  name: string,
  rows: number,
  factors: readonly (readonly [number, number])[],
  terms = 1,
): StructuredCase {
  const [out, inner] = [0, 1].map((axis) => factors.reduce((size, factor) => size * factor[axis]!, 1)) as [
    number,
    number,
  ]
  return chainCase({
    name: `kronecker-${name}`,
    flops: 2 * rows * terms * kroneckerProducts(factors),
    elements: rows * (inner + out),
    shapes: [[rows, inner], ...factors.map(([m, n]) => [terms, m, n])],
    fn: ([x, ...own]) => [kroneckerMatmul(x!, own)],
  })
}

/** Cases of `structured`. */
export const cases: readonly StructuredCase[] = [
  kroneckerCase('4096-32x32', 4096, [
    [32, 32],
    [32, 32],
  ]),
  kroneckerCase('1024-64x64', 1024, [
    [64, 64],
    [64, 64],
  ]),
  kroneckerCase('2048-16x16x16', 2048, [
    [16, 16],
    [16, 16],
    [16, 16],
  ]),
  kroneckerCase(
    '2048-phm4-768-3072',
    2048,
    [
      [4, 4],
      [768, 192],
    ],
    4,
  ),
]
