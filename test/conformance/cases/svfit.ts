import type { MethodCase } from '../method_case.js'

export const cases: readonly MethodCase[] = [
  {
    method: 'svfit',
    config: { r: 48 },
    parameterCount: 2 * 2 * 48,
    counts: [
      { config: { r: 768 }, shape: [768, 768], parameters: 768 },
      { config: { r: 192 }, shape: [192, 576], parameters: 192 },
    ],
    refused: [
      { config: { r: 0 }, message: /svfit\.r: expected more than 0/ },
      { config: { r: 65 }, message: /svfit: model\.layers\.0\.\S+: expected r of at most 64, got 65/ },
      { config: { rank: 8 }, message: /Did you mean "rank_pattern"|Did you mean "r"/ },
      { config: { energy: 1.1 }, message: /energy: expected at most 1/ },
    ],
    learningRate: 0.1,
    noise: 0.3,
  },
  {
    method: 'svfit',
    variant: 'by energy, nonnegative',
    config: { energy: 0.5, nonnegative: true, decay_delta: 1e-4 },
    parameterCount: 53,
    counts: [],
    refused: [],
    learningRate: 0.1,
    noise: 0.3,
  },
]
