import type { MethodCase } from '../method_case.js'

const search = { search_steps: 4, warmup_steps: 1 }
/** Both types are [64, 64] on the tiny Llama: the count does not depend on what is found. */
const targets = ['q_proj', 'o_proj']
const encoderTargets = ['query', 'attention.output.dense']

export const cases: readonly MethodCase[] = [
  {
    method: 'diffora',
    // One of four modules is chosen; of both types one is left at least.
    config: { r: 4, select: 'global', ratio: 0.25, share_r: 2, ...search },
    targets,
    encoderTargets,
    parameterCount: 4 * 128 + 2 * 2 * 128,
    counts: [{ config: { r: 8 }, shape: [768, 768], parameters: 12_288 }],
    refused: [
      { config: { r: 0 }, message: /diffora\.r: expected more than 0/ },
      { config: { ratio: 0.2, search_steps: 2 }, message: /ratio: expected a share that makes one of 2 modules/ },
      { config: { search_steps: 5, warmup_steps: 5 }, message: /warmup_steps: expected fewer than 5/ },
      { config: { normalise: true, select: 'threshold' }, message: /normalise: expected false with the threshold/ },
      {
        config: { valid_fraction: 0.1, search_steps: 2 },
        message: /batches to train on and others to hold out, got 4 and 0/,
      },
      { config: { rho: 0.5 }, message: /Did you mean/ },
    ],
  },
  {
    method: 'diffora',
    variant: 'plain selection',
    config: { r: 4, share: 'none', relaxation: 'softmax', normalise: true, ...search },
    targets,
    encoderTargets,
    parameterCount: 2 * 4 * 128,
    counts: [],
    refused: [],
  },
]
