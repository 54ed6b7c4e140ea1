import type { MethodCase } from '../method_case.js'

export const cases: readonly MethodCase[] = [
  {
    method: 'vera',
    config: { r: 16 },
    parameterCount: 2 * (64 + 16 + 64 + 16),
    counts: [
      { config: {}, shape: [192, 576], parameters: 192 + 256 },
      { config: { r: 64 }, shape: [4096, 1024], parameters: 4096 + 64 },
    ],
    refused: [
      { config: { r: 0 }, message: /vera\.r: expected more than 0/ },
      { config: { projection_prng_key: -1 }, message: /projection_prng_key: expected at least 0/ },
      { config: { rank: 8 }, message: /Did you mean "r"/ },
    ],
    learningRate: 5e-2,
  },
]
