/** The kinds of structure, found by the name that files give them. One line for each. */
import { blockDiagonalMatrix } from './block_diagonal_matrix.js'
import { denseMatrix } from './dense_matrix.js'
import { kroneckerMatrix } from './kronecker_matrix.js'
import { lowRankMatrix } from './low_rank_matrix.js'
import { monarchMatrix } from './monarch_matrix.js'
import { sparseLowRankMatrix } from './sparse_low_rank.js'
import type { Structure } from './structured_matrix.js'
import { tuckerMatrix } from './tucker_matrix.js'

/** Every kind of structure, by name. */
export const structures: ReadonlyMap<string, Pick<Structure, 'kind' | 'restore'>> = new Map(
  [
    denseMatrix,
    lowRankMatrix,
    kroneckerMatrix,
    monarchMatrix,
    blockDiagonalMatrix,
    tuckerMatrix,
    sparseLowRankMatrix,
  ].map((each) => [each.kind, each]),
)
