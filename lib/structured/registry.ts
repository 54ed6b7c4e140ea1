/** The kinds of structure, found by the name that files give them. One line for each. */
import { denseMatrix } from './dense_matrix.js'
import { lowRankMatrix } from './low_rank_matrix.js'
import type { Structure } from './structured_matrix.js'

/** Every kind of structure, by name. */
export const structures: ReadonlyMap<string, Pick<Structure, 'kind' | 'restore'>> = new Map(
  [denseMatrix, lowRankMatrix].map((each) => [each.kind, each]),
)
