import type { MethodCase } from '../method_case.js'

const r4 = { r: 4, lora_alpha: 8 }
const refused = [
  { config: { r: 0 }, message: /lora\.r: expected more than 0/ },
  { config: { rank: 8 }, message: /Did you mean "r"/ },
  { config: { lora_dropout: 1 }, message: /lora_dropout: expected less than 1/ },
] as const

export const cases: readonly MethodCase[] = [
  {
    method: 'lora',
    config: r4,
    parameterCount: 2 * 4 * (64 + 64 + 64 + 96),
    counts: [
      { config: { r: 16 }, shape: [4096, 4096], parameters: 131_072 },
      { config: { r: 8 }, shape: [192, 576], parameters: 6_144 },
    ],
    refused,
    unsuited: ['norm'],
  },
  {
    method: 'lora',
    variant: 'rsLoRA',
    config: { ...r4, use_rslora: true },
    parameterCount: 2 * 4 * (64 + 64 + 64 + 96),
    counts: [],
    refused: [],
  },
  {
    method: 'lora',
    variant: 'DoRA',
    config: { ...r4, use_dora: true },
    initialChange: 'rounding',
    parameterCount: 2 * (4 * (64 + 64 + 64 + 96) + 64 + 64),
    counts: [{ config: { r: 8, use_dora: true }, shape: [192, 576], parameters: 6_144 + 192 }],
    refused: [{ config: { use_dora: true, lora_bias: true }, message: /lora_bias: expected false with use_dora/ }],
    hasConstants: true,
  },
  {
    method: 'lora',
    variant: 'PiSSA',
    config: { ...r4, init_lora_weights: 'pissa' },
    initialChange: 'rounding',
    parameterCount: 2 * 4 * (64 + 64 + 64 + 96),
    counts: [],
    refused: [{ config: { init_lora_weights: 'pisa' }, message: /init_lora_weights/ }],
  },
  {
    method: 'lora',
    variant: 'OLoRA',
    config: { ...r4, init_lora_weights: 'olora' },
    initialChange: 'rounding',
    parameterCount: 2 * 4 * (64 + 64 + 64 + 96),
    counts: [],
    refused: [],
  },
]
