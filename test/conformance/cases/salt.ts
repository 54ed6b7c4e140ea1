import type { MethodCase } from '../method_case.js'

const parameterCount = 2 * 2 * (2 * 24 + 2 * 4 * (64 - 24))

export const cases: readonly MethodCase[] = [
  {
    method: 'salt',
    config: { rank: 24, r_lora: 4 },
    parameterCount,
    counts: [
      { config: { rank: 500, r_lora: 256 }, shape: [768, 768], parameters: 138_216 },
      { config: { rank: 760, r_lora: 256 }, shape: [2304, 768], parameters: 5_616 },
      { config: { rank: 4000 }, shape: [4096, 4096], parameters: 9_536 },
      { config: { rank: 64 }, shape: [64, 96], parameters: 128 },
    ],
    refused: [
      { config: { rank: 0 }, message: /salt\.rank: expected more than 0/ },
      { config: { rank: 65 }, message: /salt: model\.layers\.0\.\S+: expected rank of at most 64, got 65/ },
      { config: { r_lora: 0 }, message: /salt\.r_lora: expected more than 0/ },
      { config: { activation: 'gelu' }, message: /activation: expected one of "none", "relu"/ },
    ],
  },
  {
    method: 'salt',
    variant: 'relu, gaussian',
    config: { rank: 24, r_lora: 4, activation: 'relu', init_salt_weights: 'gaussian', reg_multiplier: 0 },
    initialChange: 'any',
    parameterCount,
    counts: [],
    refused: [],
    // Half of the off-diagonal elements are at relu's kink to begin with.
    hasConstants: true,
  },
]
