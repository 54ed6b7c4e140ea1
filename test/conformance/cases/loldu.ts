import type { MethodCase } from '../method_case.js'

export const cases: readonly MethodCase[] = [
  {
    method: 'loldu',
    config: { rank: 48, lora_alpha: 48 },
    parameterCount: 2 * 2 * 48,
    counts: [
      { config: { rank: 768 }, shape: [768, 768], parameters: 768 },
      { config: { rank: 1024 }, shape: [4096, 4096], parameters: 1024 },
    ],
    refused: [
      { config: { rank: 0 }, message: /loldu\.rank: expected more than 0/ },
      { config: { rank: 65 }, message: /loldu: model\.layers\.0\.\S+: expected rank of at most 64, got 65/ },
      { config: { r: 8 }, message: /Did you mean "rank"/ },
    ],
    learningRate: 0.05,
    noise: 0.05,
  },
]
