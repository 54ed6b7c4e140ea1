import type { MethodCase } from '../method_case.js'

const neverMerges = /a method that can be merged.*compacter.*non-linearity/
/** Two norms per layer and a last one. */
const norms = 5 * 64

export const cases: readonly MethodCase[] = [
  {
    method: 'compacter',
    config: { task_reduction_factor: 8 },
    parameterCount: 4 * (2 * (64 + 8) + 8 + 64) + 4 ** 3 + norms,
    counts: [
      { config: {}, shape: [768, 768], parameters: 2_376 + 64 },
      {
        config: { hypercomplex_division: 12, shared_phm_rule: false, factorized_phm: false },
        shape: [768, 768],
        parameters: (2 * 3072) / 2 + 2 * 1728 + 792,
      },
    ],
    neverMerges,
    refused: [
      { config: {}, message: /hypercomplex_division of both 64 and 2, got 4/ },
      { config: { task_reduction_factor: 65 }, message: /task_reduction_factor of at most 64/ },
      {
        config: { learn_phm: false, shared_phm_rule: false },
        message: /learn_phm: expected true without shared_phm_rule/,
      },
      { config: { phm_ranks: 2 }, message: /Did you mean "phm_rank"/ },
    ],
  },
  {
    method: 'compacter',
    variant: 'PHM, a rule per projection',
    config: { task_reduction_factor: 8, hypercomplex_division: 2, shared_phm_rule: false, factorized_phm: false },
    initialChange: 'small',
    parameterCount: 4 * (2 * ((64 * 8) / 2 + 2 ** 3) + 8 + 64) + norms,
    counts: [],
    neverMerges,
    refused: [],
  },
]
