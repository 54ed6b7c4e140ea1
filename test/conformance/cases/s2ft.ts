import type { MethodCase } from '../method_case.js'

const targets = ['v_proj', 'o_proj', 'up_proj', 'down_proj']
const encoderTargets = ['value', 'attention.output.dense', 'intermediate.dense', 'output.dense']

export const cases: readonly MethodCase[] = [
  {
    method: 's2ft',
    config: { v_ratio: 0.5, o_ratio: 0.25, u_ratio: 0.125, d_ratio: 0.0625 },
    targets,
    encoderTargets,
    // Of 4 key–value heads and 8 query heads of 16 channels, and of 2 · 96 channels.
    parameterCount: 64 * (2 * 16 + 2 * 16 + 24 + 12),
    counts: [],
    refused: [
      { config: {}, message: /v_ratio, o_ratio, u_ratio, d_ratio above 0/ },
      { config: { d_ratio: 1.5 }, message: /d_ratio: expected at most 1/ },
      { config: { d_ratio: -0.5 }, message: /d_ratio: expected at least 0/ },
      { config: { o_ratio: 0.01 }, message: /a share that makes one of 8 query heads/ },
      { config: { d_ratio: 0.5, selection: 'best' }, message: /selection: expected one of "random"/ },
      {
        config: { d_ratio: 0.5, target_modules: ['q_proj'] },
        message: /down projections among the target modules/,
      },
    ],
  },
  {
    method: 's2ft',
    variant: 'by activations',
    config: { v_ratio: 0.5, o_ratio: 0.25, d_ratio: 0.0625, selection: 'activation' },
    targets,
    encoderTargets,
    parameterCount: 64 * (2 * 16 + 2 * 16 + 12),
    counts: [],
    refused: [],
  },
  {
    method: 's2ft',
    variant: 'by gradients',
    config: { u_ratio: 0.125, d_ratio: 0.0625, selection: 'gradient', selection_order: 'largest' },
    targets,
    encoderTargets,
    parameterCount: 64 * (24 + 12),
    counts: [],
    refused: [],
  },
]
