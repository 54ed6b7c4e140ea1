/** Adapters of methods that PEFT does not have, as the plain LoRAs that PEFT reads. */
import { Adapter } from '../../lib/adapters/adapter.js'
import { diffora } from '../../lib/adapters/methods/diffora.js'
import { flora } from '../../lib/adapters/methods/flora.js'
import { monarchAdapter } from '../../lib/adapters/methods/monarch_adapter.js'
import { s2ft } from '../../lib/adapters/methods/s2ft.js'
import type { Parametrization } from '../../lib/adapters/parametrization.js'
import type { CausalLm } from '../../lib/models/causal_lm.js'
import { goldenJson } from '../golden.js'
import { disturb } from './one_site.js'

interface PlainForms {
  readonly variants: Readonly<Record<string, { readonly base: string; readonly ids: readonly (readonly number[])[] }>>
}

/** The base and the ids of each, which test/golden/check_adapters_in_peft.py reads too. */
export const { variants } = goldenJson<PlainForms>('plain-forms.golden.json')

const target_modules = ['q_proj', 'down_proj']
const layers = ['model.layers.0', 'model.layers.1']
const modules = ['self_attn.q_proj', 'mlp.down_proj']

const methods: Readonly<Record<string, Parametrization>> = {
  flora: flora({ r: [4, 3], scale: 2, target_modules }),
  monarch_adapter: monarchAdapter({ blk_r: 2, target_modules }),
  s2ft: s2ft({ v_ratio: 0.25, d_ratio: 0.05 }),
  // Ranks differ: a shared pair is narrower than a module's own.
  diffora: diffora({
    r: 4,
    share_r: 2,
    search: {
      layers,
      modules,
      theta: [
        [1, 0],
        [0, 0],
      ],
      gamma: [
        [1, 0],
        [0, 0],
      ],
    },
  }),
}

/** The adapter of a variant, made to do something. */
export async function plainFormSource(name: string, model: CausalLm): Promise<Adapter> {
  const adapter = await Adapter.attach(model, methods[name]!, { seed: 5 })
  await disturb(adapter)
  return adapter
}
