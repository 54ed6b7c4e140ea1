import type { MethodCase } from '../method_case.js'

export const cases: readonly MethodCase[] = [
  {
    method: 'eva',
    config: { r: 4, lora_alpha: 8, eva_config: { rho: 1 } },
    parameterCount: 2 * 4 * (64 + 64 + 64 + 96),
    counts: [{ config: { r: 8 }, shape: [192, 576], parameters: 6_144 }],
    refused: [
      { config: { eva_config: { rho: 0.5 } }, message: /eva_config\.rho: expected at least 1/ },
      { config: { eva_config: { tau: 2 } }, message: /eva_config\.tau: expected at most 1/ },
      { config: { init_lora_weights: 'pissa' }, message: /eva: expected one of/ },
      { config: { r: 60 }, message: /eva: model\.layers\.\d\.\S+: expected a batch of at least 120 tokens/ },
    ],
  },
]
