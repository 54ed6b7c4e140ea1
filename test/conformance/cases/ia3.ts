import type { MethodCase } from '../method_case.js'

export const cases: readonly MethodCase[] = [
  {
    method: 'ia3',
    config: { feedforward_modules: ['down_proj', 'output.dense'] },
    parameterCount: 2 * (64 + 96),
    counts: [
      { config: { feedforward_modules: [] }, shape: [192, 576], parameters: 192 },
      { config: { feedforward_modules: ['proj'] }, shape: [192, 576], parameters: 576 },
    ],
    refused: [
      { config: { feedforward_module: ['down_proj'] }, message: /Did you mean "feedforward_modules"/ },
      { config: { bias: 'all' }, message: /ia3: expected one of/ },
      { config: { feedforward_modules: '(' }, message: /feedforward_modules: expected a list of names or a valid/ },
    ],
    learningRate: 3e-2,
  },
]
