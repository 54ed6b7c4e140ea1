import type { MethodCase } from '../method_case.js'

export const cases: readonly MethodCase[] = [
  {
    method: 'miss',
    config: { r: 7 },
    noise: 0.02,
    parameterCount: 2 * 7 * (64 + 64),
    counts: [
      { config: {}, shape: [4096, 4096], parameters: 262_144 },
      { config: {}, shape: [1024, 4096], parameters: 65_536 },
      { config: {}, shape: [14_336, 4096], parameters: 917_504 },
      { config: {}, shape: [4096, 14_336], parameters: 262_144 },
      { config: {}, shape: [576, 576], parameters: 36_864 },
    ],
    refused: [
      { config: { r: 0 }, message: /miss\.r: expected more than 0/ },
      { config: { r: 65 }, message: /r of at most 64/ },
      { config: { init_weights: 'bone' }, message: /init_weights/ },
      { config: { lora_alpha: 8 }, message: /lora_alpha/ },
    ],
  },
  {
    method: 'miss',
    variant: 'bat',
    config: { r: 16, init_weights: 'bat' },
    parameterCount: 2 * 16 * (64 + 64),
    counts: [{ config: { init_weights: 'bat' }, shape: [4096, 4096], parameters: 262_144 }],
    refused: [{ config: { r: 24, init_weights: 'bat' }, message: /an r that divides 64 and 64/ }],
    noise: 0.05,
  },
  {
    method: 'miss',
    variant: 'mini',
    config: { r: 16, mini_r: 32, init_weights: 'mini' },
    noise: 0.02,
    parameterCount: 4 * 16 * 32,
    counts: [{ config: { r: 64, mini_r: 8, init_weights: 'mini' }, shape: [4096, 4096], parameters: 512 }],
    refused: [{ config: { r: 8, mini_r: 24, init_weights: 'mini' }, message: /a mini_r that divides 64/ }],
  },
]
