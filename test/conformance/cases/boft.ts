import type { MethodCase } from '../method_case.js'

/** A larger turn makes another model of SmolLM2, in which rounding grows from layer to layer. */
const noise = 0.01

export const cases: readonly MethodCase[] = [
  {
    method: 'boft',
    config: { boft_block_size: 8 },
    noise,
    // On BERT's biases (y − b) s + b rounds.
    initialChange: 'rounding',
    parameterCount: 2 * (8 * 64 + 64 + 12 * 64 + 64),
    counts: [
      { config: {}, shape: [576, 576], parameters: 144 * 16 + 576 },
      { config: { boft_block_size: 0, boft_block_num: 8 }, shape: [64, 128], parameters: 8 * 256 + 64 },
    ],
    refused: [
      { config: { boft_block_num: 4 }, message: /either boft_block_size or boft_block_num/ },
      { config: { boft_block_size: 5 }, message: /a boft_block_size that divides 64/ },
      { config: { boft_n_butterfly_factor: 6 }, message: /a multiple of 32 blocks for 6 butterfly factors/ },
      { config: { boft_n_butterfly_factor: 0 }, message: /boft_n_butterfly_factor/ },
    ],
  },
  {
    method: 'boft',
    variant: 'three factors',
    config: { boft_block_size: 0, boft_block_num: 16, boft_n_butterfly_factor: 3 },
    noise,
    initialChange: 'rounding',
    parameterCount: 2 * (3 * 16 * 16 + 64 + 3 * 16 * 36 + 64),
    counts: [
      {
        config: { boft_block_size: 8, boft_n_butterfly_factor: 2 },
        shape: [64, 64],
        parameters: 2 * 8 * 64 + 64,
      },
    ],
    refused: [],
  },
]
