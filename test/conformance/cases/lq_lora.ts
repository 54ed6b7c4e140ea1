import type { MethodCase } from '../method_case.js'

const config = { num_ranks: 8, num_iterations: 3, block_size_0: 16, block_size_1: 16 }
const parameterCount = 2 * 8 * (64 + 64 + 64 + 96)

export const cases: readonly MethodCase[] = [
  {
    method: 'lq_lora',
    config,
    parameterCount,
    counts: [{ config: {}, shape: [4096, 4096], parameters: 64 * 8192 }],
    refused: [
      { config: { num_bits: 5 }, message: /lq_lora\.num_bits: expected/ },
      {
        config: { num_ranks: 65 },
        message: /lq_lora: model\.layers\.0\.\S+: expected num_ranks of at most 64, got 65/,
      },
      { config: { candidates: [[4, 8, 'fp32', 64, 256]] }, message: /candidates: expected a budget beside them/ },
      { config: { ...config, budget: 1 }, message: /budget: expected at least \d+(\.\d+)? bits/ },
    ],
  },
  {
    method: 'lq_lora',
    variant: 'data-aware, by budget',
    config: {
      num_ranks: 4,
      num_iterations: 2,
      data_aware: true,
      budget: 3.5,
      candidates: [
        [2, 8, 'bf16', 16, 16],
        [4, 8, 'bf16', 64, 16],
      ],
    },
    parameterCount: parameterCount / 2,
    counts: [],
    refused: [],
  },
]
