import type { MethodCase } from '../method_case.js'

/** A larger turn makes another model of SmolLM2, in which rounding grows from layer to layer. */
const noise = 0.01

export const cases: readonly MethodCase[] = [
  {
    method: 'oft',
    config: { oft_block_size: 8 },
    noise,
    parameterCount: 2 * 28 * (8 + 12),
    counts: [
      { config: {}, shape: [576, 576], parameters: 18 * 496 },
      { config: { oft_block_size: 0, r: 8 }, shape: [576, 1536], parameters: (8 * 192 * 191) / 2 },
      { config: { block_share: true }, shape: [4096, 4096], parameters: 496 },
      // 576 has no divisor between 32 and 36: 33 becomes 32.
      { config: { oft_block_size: 33 }, shape: [64, 576], parameters: 18 * 496 },
    ],
    refused: [
      { config: { r: 4 }, message: /either r or oft_block_size/ },
      { config: { oft_block_size: 0 }, message: /either r or oft_block_size/ },
      { config: { oft_r: 4 }, message: /Did you mean/ },
      { config: { eps: 0 }, message: /oft\.eps/ },
    ],
  },
  {
    method: 'oft',
    variant: 'exact',
    config: { oft_block_size: 0, r: 4, use_cayley_neumann: false },
    noise,
    parameterCount: 2 * (4 * 120 + 4 * 276),
    counts: [],
    refused: [],
  },
  {
    method: 'oft',
    variant: 'shared blocks',
    config: { oft_block_size: 16, block_share: true, use_cayley_neumann: false },
    noise,
    parameterCount: 4 * 120,
    counts: [],
    refused: [],
  },
  {
    method: 'oft',
    variant: 'constrained',
    config: { oft_block_size: 8, coft: true, eps: 0.1 },
    noise,
    parameterCount: 2 * 28 * (8 + 12),
    counts: [],
    refused: [],
    hasConstants: true,
  },
]
