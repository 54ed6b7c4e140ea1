/** Factorisations and solvers: of many small matrices, and of one large. */
import type { CudaCase, Pick } from './cases.js'
import { dominated, f32, i32 } from './operands.js'

/** @returns factorisations, solvers, assignments */
export function linalgCases(pick: Pick): readonly CudaCase[] {
  return [...ofSize(pick(256, 2), pick(64, 4)), ...ofSize(1, pick(1024, 9)), ...others(pick)]
}

/** Operations as LAPACK's reports count them; of an SVD with vectors 22 n³, of eigenvalues with vectors 9 n³. */
function ofSize(count: number, n: number): readonly CudaCase[] {
  const a = f32(count, n, n)
  const [definite, row] = [dominated(count, n, n), f32(count, n)]
  const name = `${count} of [${n}, ${n}]`
  const cube = count * n ** 3
  return [
    { op: 'svd', name, inputs: [a], outputs: [a, row, a], attributes: [['full', 0]], flops: 22 * cube },
    { op: 'qr', name, inputs: [a], outputs: [a, a], attributes: [['full', 0]], flops: (8 / 3) * cube },
    { op: 'qr_pivoted', name, inputs: [a], outputs: [a, a, i32(count, n)], flops: (8 / 3) * cube },
    { op: 'eigh', name, inputs: [definite], outputs: [row, a], flops: 9 * cube },
    { op: 'lu', name, inputs: [a], outputs: [i32(count, n), a, a], flops: (2 / 3) * cube },
    { op: 'cholesky', name, inputs: [definite], outputs: [a], flops: cube / 3 },
    { op: 'solve', name, inputs: [definite, a], outputs: [a], flops: (8 / 3) * cube },
    {
      op: 'solve_triangular',
      name,
      inputs: [definite, a],
      outputs: [a],
      attributes: [
        ['upper', 0],
        ['transpose', 0],
        ['unit', 0],
      ],
      flops: cube,
    },
  ]
}

function others(pick: Pick): readonly CudaCase[] {
  const [count, n] = [pick(64, 2), pick(128, 5)]
  return [
    {
      op: 'linear_assignment',
      name: `${count} of [${n}, ${n}]`,
      inputs: [f32(count, n, n)],
      outputs: [i32(count, n)],
      flops: count * n ** 3,
    },
  ]
}
