import type { MethodCase } from '../method_case.js'

export const cases: readonly MethodCase[] = [
  {
    method: 'monarch_adapter',
    config: { nblocks: 4, blk_r: 4 },
    parameterCount: 2 * 4 * (64 + 64 + 64 + 96),
    counts: [
      { config: { blk_r: 8 }, shape: [4096, 4096], parameters: 65_536 },
      // Three blocks of 4 inputs for 10, and of 3 outputs for 7.
      { config: { nblocks: 3, blk_r: 2 }, shape: [7, 10], parameters: 2 * 3 * (4 + 3) },
    ],
    refused: [
      { config: { nblocks: 0 }, message: /nblocks: expected more than 0/ },
      { config: { nblocks: 65 }, message: /nblocks of at most 64/ },
      { config: { nblocks: 8, blk_r: 9 }, message: /blk_r of at most 8, the smaller block/ },
      { config: { block: 4 }, message: /Did you mean/ },
    ],
  },
  {
    method: 'monarch_adapter',
    variant: 'padded blocks',
    config: { nblocks: 5, blk_r: 3 },
    parameterCount: 2 * (3 * 5 * (13 + 13) + 3 * 5 * (20 + 13)),
    counts: [],
    refused: [],
  },
]
