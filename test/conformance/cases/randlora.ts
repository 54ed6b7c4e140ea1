import type { MethodCase } from '../method_case.js'

export const cases: readonly MethodCase[] = [
  {
    method: 'randlora',
    config: { r: 16, randlora_alpha: 16 },
    // q_proj and down_proj: d = 64, N = 4
    parameterCount: 2 * 2 * (16 * 4 + 4 * 64),
    counts: [
      { config: {}, shape: [4096, 4096], parameters: 528_384 },
      { config: {}, shape: [1024, 4096], parameters: 33_792 },
      { config: {}, shape: [576, 576], parameters: 10_944 },
      { config: {}, shape: [192, 576], parameters: 1_344 },
      { config: {}, shape: [1536, 576], parameters: 10_944 },
      { config: {}, shape: [576, 1536], parameters: 10_944 },
    ],
    refused: [
      { config: { r: 0 }, message: /randlora\.r: expected more than 0/ },
      { config: { alpha: 8 }, message: /randlora: expected one of/ },
      { config: { randlora_dropout: 1 }, message: /randlora_dropout: expected less than 1/ },
    ],
  },
  {
    method: 'randlora',
    variant: 'sparse',
    config: { r: 16, randlora_alpha: 16, sparse: true, save_projection: false },
    parameterCount: 2 * 2 * (16 * 4 + 4 * 64),
    counts: [],
    refused: [],
  },
]
