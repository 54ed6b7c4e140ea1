import type { MethodCase } from '../method_case.js'

export const cases: readonly MethodCase[] = [
  {
    method: 'adalora',
    config: { init_r: 6, target_r: 4, lora_alpha: 12, orth_reg_weight: 0.1 },
    parameterCount: 2 * 6 * (64 + 64 + 1 + 64 + 96 + 1),
    counts: [
      { config: {}, shape: [4096, 4096], parameters: 98_316 },
      { config: {}, shape: [1024, 4096], parameters: 61_452 },
      { config: {}, shape: [14_336, 4096], parameters: 221_196 },
      { config: {}, shape: [576, 576], parameters: 13_836 },
    ],
    refused: [
      { config: { init_r: 4, target_r: 8 }, message: /target_r: expected at most init_r, 4/ },
      { config: { total_step: 10, tinit: 6, tfinal: 4 }, message: /more than tinit \+ tfinal, 10, got 10/ },
      { config: { total_step: 0 }, message: /adalora\.total_step/ },
      { config: { orth_reg_weight: -1 }, message: /orth_reg_weight/ },
      { config: { beta1: 1 }, message: /beta1/ },
      { config: { r: 8 }, message: /adalora/ },
    ],
  },
]
