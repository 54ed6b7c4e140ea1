import type { MethodCase } from '../method_case.js'

export const cases: readonly MethodCase[] = [
  {
    method: 'flora',
    config: { r: [6, 4], scale: 2 },
    parameterCount: 2 * (2 * 6 * 4 + 6 * (64 + 96) + 4 * (64 + 64)),
    counts: [
      { config: { r: [8, 8] }, shape: [768, 768], parameters: 12_352 },
      { config: { r: 8 }, shape: [3072, 768], parameters: 30_784 },
      { config: { r: [16, 16] }, shape: [4096, 4096], parameters: 131_328 },
    ],
    refused: [
      { config: { r: 0 }, message: /flora\.r/ },
      { config: { r: [8, 8, 2, 2] }, message: /one rank for each axis, in order at most \[64,64\]/ },
      { config: { r: [65, 8] }, message: /at most \[64,64\]/ },
      { config: { droprate: 0.1 }, message: /Did you mean "drop_rate"/ },
    ],
  },
]
