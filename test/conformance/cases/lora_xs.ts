import type { MethodCase } from '../method_case.js'

export const cases: readonly MethodCase[] = [
  {
    method: 'lora_xs',
    config: { r: 16 },
    parameterCount: 2 * 2 * 16 * 16,
    counts: [
      { config: { r: 96 }, shape: [4096, 4096], parameters: 9_216 },
      { config: { r: 32 }, shape: [14_336, 4096], parameters: 1_024 },
    ],
    refused: [
      { config: { r: 0 }, message: /lora_xs\.r: expected more than 0/ },
      { config: { r: 65 }, message: /lora_xs: model\.layers\.0\.\S+: expected r of at most 64, got 65/ },
      { config: { lora_alfa: 8 }, message: /Did you mean "lora_alpha"/ },
    ],
  },
  {
    method: 'lora_sb',
    config: { r: 16, eta1: 1e-3 },
    parameterCount: 2 * 2 * 16 * 16,
    counts: [{ config: { r: 96 }, shape: [4096, 4096], parameters: 9_216 }],
    refused: [
      { config: { eta1: 0 }, message: /lora_sb\.eta1: expected more than 0/ },
      { config: { gradient: 'adam' }, message: /gradient: expected one of "sign", "raw"/ },
      { config: { r: 65 }, message: /lora_sb: model\.layers\.0\.\S+: expected r of at most 64, got 65/ },
    ],
  },
]
