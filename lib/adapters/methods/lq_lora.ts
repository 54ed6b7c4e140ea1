/**
 * LQ-LoRA (Guo et al. 2023, arXiv 2311.12023): the weight is quantised, what that loses of low rank is where a LoRA begins, and
 * how many bits each matrix gets is an integer programme.
 */

import { parseConfig } from '../../config.js'
import { HeddleError } from '../../errors.js'
import { read } from '../../graph/sym.js'
import type { Site } from '../../nn/site.js'
import type { Tensor } from '../../tensor/tensor.js'
import { declared, zero } from '../initial_values.js'
import { changedLinear, changedWeight, type LowRankChange, matrixShape } from '../low_rank_change.js'
import { copiesOf, freedOnFailure } from '../owned_values.js'
import type {
  AttachedSite,
  Parametrization,
  ParametrizationType,
  ResolveContext,
  SitePlan,
} from '../parametrization.js'
import { storedFields, targeting, unsuited } from '../targeting.js'
import { type LqLoraConfig, type LqLoraOptions, lqLoraSchema } from './lq_lora_config.js'
import { type Decided, type Decomposed, decided, isToAllocate } from './lq_lora_data.js'
import {
  missedBy,
  names,
  type Packed,
  packedBuffers,
  packedWeight,
  quantisationAt,
  restoredWeight,
} from './lq_lora_packed.js'

/**
 * y = Q x + s B A x, s = lora_alpha / num_ranks, with W ≈ Q + L₁ L₂, Q quantised; A `[r, in]` and B `[out, r]` begin as L₂/√s and
 * L₁/√s and are trained. A fresh adapter is near the model, not equal to it. The adapter works on Q, as numbers, in
 * the place of the weight; its file holds Q in bits. Linear sites.
 * @throws ERR_HEDDLE_ARGUMENT on a field that is unknown or out of range
 */
export function lqLora(options: LqLoraOptions = {}): Parametrization {
  const config = parseConfig('lq_lora', lqLoraSchema, options)
  if (config.candidates && config.budget === undefined)
    throw misuse('lq_lora.candidates', 'a budget beside them', 'candidates alone')
  return lqLoraOf({ config })
}

function lqLoraOf({ config, found }: Decided): Parametrization {
  const isOpen = found === undefined && (config.data_aware || isToAllocate(config))
  return {
    name: 'lq_lora',
    config,
    ...targeting(config),
    plan: (site) => planAt(site, config, found && decomposedAt(site, found)),
    ...(isOpen ? { resolve: (context) => resolved(config, context) } : {}),
  }
}

/** Registry entry. */
export const lqLoraType: ParametrizationType = {
  name: 'lq_lora',
  peftType: 'LQ_LORA',
  isPeft: false,
  title: 'LQ-LoRA',
  source: 'Guo et al. 2023, arXiv 2311.12023',
  purpose: 'a model and its adapter in 2 to 4 bits a weight, each matrix with as many as it needs',
  initialChange: 'any',
  create: (config) => lqLora(config as LqLoraOptions),
  restore: (stored) => lqLora(storedFields(lqLoraSchema, stored) as LqLoraOptions),
}

async function resolved(config: LqLoraConfig, context: ResolveContext): Promise<Parametrization> {
  for (const site of context.sites) planAt(site, config)
  return lqLoraOf(await decided(config, context))
}

function decomposedAt(site: Site, found: ReadonlyMap<string, Decomposed>): Decomposed {
  const own = found.get(site.path)
  if (own) return own
  throw unsuited('lq_lora', site, 'one of the modules that the data was shown', 'another one')
}

function planAt(site: Site, config: LqLoraConfig, found?: Decomposed): SitePlan {
  const shape = matrixShape('lq_lora', site)
  const { out, inner } = shape
  const { num_ranks: r, lora_dropout: dropout } = config
  if (r > Math.min(out, inner)) throw unsuited('lq_lora', site, `num_ranks of at most ${Math.min(out, inner)}`, `${r}`)
  const scale = config.lora_alpha / r
  const quantisation = quantisationAt(site, config)
  const change = ({ parameters }: Pick<AttachedSite, 'parameters'>): LowRankChange => ({
    left: read(parameters[names.b]!),
    right: read(parameters[names.a]!),
    scale,
  })
  return {
    // Filled by what is prepared or loaded.
    parameters: { [names.a]: declared([r, inner], zero), [names.b]: declared([out, r], zero) },
    buffers: packedBuffers(shape, quantisation),
    prepare: ({ weight }) => (found ? ownCopies(site, weight, config, found) : packedWeight(site, weight, config)),
    restoredWeight: (buffers) => restoredWeight(buffers, shape, quantisation),
    forward: (context) => changedLinear(context, shape, [change(context)], { dropout, path: 'products' }),
    merged: (context) => ({ weight: changedWeight(context.weight, [change(context)], shape) }),
  }
}

/** A decomposition that was found earlier, for one more adapter. @throws ERR_HEDDLE_ARGUMENT where it is another weight's */
const ownCopies = (
  site: Site,
  weight: Tensor,
  config: LqLoraConfig,
  { values, ...found }: Decomposed,
): Promise<Packed> =>
  freedOnFailure(async (own) => {
    const q = own(await restoredWeight(values, matrixShape('lq_lora', site), quantisationAt(site, config)))
    const missed = await missedBy(site, weight, config, { values, weight: q })
    // False for NaN too.
    if (!(Math.abs(missed - found.missed) <= 1e-4 * found.missed))
      throw unsuited('lq_lora', site, 'the weight that the data was shown with', 'another one')
    return { values: await copiesOf(values), weight: q }
  })

const misuse = (place: string, expected: string, got: string): HeddleError =>
  new HeddleError('ERR_HEDDLE_ARGUMENT', { place, expected, got })
