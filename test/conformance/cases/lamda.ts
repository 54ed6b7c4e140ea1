import type { MethodCase } from '../method_case.js'

const config = { r: 16 }
const parameterCount = 2 * 2 * (16 * 16 + 64 * 16)

export const cases: readonly MethodCase[] = [
  {
    method: 'lamda',
    config,
    // With 0.1 SmolLM2's output moves by its own size, and rounding by 5e-5 of it: see test/146-merged-in-f64.
    noise: 0.01,
    parameterCount,
    counts: [
      { config: { r: 32 }, shape: [4096, 4096], parameters: 1_024 + 131_072 },
      { config: { r: 64 }, shape: [4096, 4096], parameters: 4_096 + 262_144 },
    ],
    refused: [
      { config: { r: 65 }, message: /lamda: model\.layers\.0\.\S+: expected r of at most 64, got 65/ },
      { config: { eta: 0 }, message: /lamda\.eta: expected more than 0/ },
      { config: { eta: 1.5 }, message: /lamda\.eta: expected at most 1/ },
      { config: { rank_candidates: [16, 32], budget: 8 }, message: /budget: expected a mean of at least 16/ },
    ],
  },
  {
    method: 'lamda',
    variant: 'random, LaMDA++',
    config: { ...config, init: 'code', rank_candidates: [8, 16, 24], budget: 16 },
    initialChange: 'none',
    parameterCount,
    counts: [],
    refused: [],
  },
  {
    method: 'lamda',
    variant: 'spectral_zero',
    config: { ...config, init: 'spectral_zero', lora_alpha: 8 },
    initialChange: 'none',
    parameterCount,
    counts: [],
    refused: [],
  },
]
