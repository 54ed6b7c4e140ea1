/** The kinds of structure, found by the name that files give them. One line for each. */
import { denseMatrix } from './dense_matrix.js'
import { lowRankMatrix } from './low_rank_matrix.js'
import { sparseLowRankMatrix } from './sparse_low_rank.js'
import type { Structure } from './structured_matrix.js'
import { tuckerMatrix } from './tucker_matrix.js'

/** Every kind of structure, by name. */
export const structures: ReadonlyMap<string, Pick<Structure, 'kind' | 'restore'>> = new Map(
  [denseMatrix, lowRankMatrix, sparseLowRankMatrix, tuckerMatrix].map((each) => [each.kind, each]),
)
