import type { MethodCase } from '../method_case.js'

const r4 = { lora_r: 4, lora_alpha: 8 }

export const cases: readonly MethodCase[] = [
  {
    method: 'dsee',
    config: { ...r4, num_sparse: 16, outer: 2 },
    parameterCount: 2 * (4 * (64 + 64 + 64 + 96) + 2 * 16),
    counts: [
      { config: { lora_r: 16, num_sparse: 16 }, shape: [768, 768], parameters: 24_592 },
      { config: { lora_r: 16, num_sparse: 0 }, shape: [768, 768], parameters: 24_576 },
    ],
    refused: [
      { config: { lora_r: 0 }, message: /dsee\.lora_r/ },
      { config: { num_sparse: 64 * 64 + 1 }, message: /num_sparse of at most 4096/ },
      { config: { sparse_method: 'svd' }, message: /sparse_method/ },
      { config: { tau: 1e9 }, message: /a decomposition whose sparse part has 64 entries, got 0/ },
      { config: { r: 8 }, message: /dsee/ },
    ],
  },
  {
    method: 'dsee',
    variant: 'without a sparse part',
    config: { ...r4, num_sparse: 0 },
    parameterCount: 2 * 4 * (64 + 64 + 64 + 96),
    counts: [],
    refused: [],
  },
  {
    method: 'dsee',
    variant: 'coefficients',
    config: {
      ...r4,
      num_sparse: 8,
      sparse_method: 'omp',
      neuron_coefficients: ['down_proj', 'output.dense'],
    },
    parameterCount: 2 * (4 * (64 + 64) + 8 + 96),
    counts: [],
    refused: [],
  },
]
