/**
 * EVA (Paischer et al. 2024, arXiv 2410.07170) as PEFT has it: LoRAs whose A begins with the principal components of what
 * goes into each module, and whose ranks go where these explain most.
 */
import { z } from 'zod'
import { parseConfig } from '../../config.js'
import { HeddleError } from '../../errors.js'
import { computed } from '../../graph/computed.js'
import { div, sqrt } from '../../graph/ops/elementwise.js'
import { copy, slice } from '../../graph/ops/index.js'
import { reshape } from '../../graph/ops/reduce.js'
import { pause } from '../../graph/pause.js'
import { read } from '../../graph/sym.js'
import type { Site } from '../../nn/site.js'
import { copiesOf, foundValues, type Values } from '../owned_values.js'
import type { Parametrization, ParametrizationType, ResolveContext } from '../parametrization.js'
import { escaped } from '../target_modules.js'
import { targeting } from '../targeting.js'
import { type EvaGroup, principalComponents } from './eva_components.js'
import { lora, scaleAt } from './lora.js'
import { knownFields, type LoraConfig, type LoraOptions, loraSchema } from './lora_config.js'

/** PEFT's `EvaConfig`. */
export interface EvaSettings {
  /** A module gets at most `r · rho` components; 1 leaves the ranks as they are. Default 2. */
  readonly rho?: number
  /** Components have converged when their cosine with those of the batch before is this. Default 0.99. */
  readonly tau?: number
  /** Look only at tokens that the loss is about, not at prompts. Default true. */
  readonly use_label_mask?: boolean
  /** Kept for PEFT's sake: data here says by itself which tokens those are. */
  readonly label_mask_value?: number
  /** Divide each component by the square root of its singular value. Default false. */
  readonly whiten?: boolean
  /** Let alpha grow with a module's rank, so that alpha / r stays. Default true. */
  readonly adjust_scaling_factors?: boolean
  /**
   * Most batches, those of repeated passes included; default 256. Components of equal variance may turn for ever. Those
   * that have not converged by then are taken as they are, with a warning. Heddle's own, and not in the folder.
   */
  readonly max_batches?: number
}

/** Options of {@link eva}: those of LoRA but how it begins. */
export interface EvaOptions extends Omit<LoraOptions, 'init_lora_weights'> {
  readonly eva_config?: EvaSettings
}

const settingsSchema = z.strictObject({
  rho: z.number().min(1).default(2),
  tau: z.number().min(0).max(1).default(0.99),
  use_label_mask: z.boolean().default(true),
  label_mask_value: z.int().default(-100),
  whiten: z.boolean().default(false),
  adjust_scaling_factors: z.boolean().default(true),
  max_batches: z.int().positive().default(256),
})
const schema = loraSchema.omit({ init_lora_weights: true }).extend({
  eva_config: settingsSchema.default(settingsSchema.parse({})),
})
type EvaConfig = z.infer<typeof schema>

/**
 * What is attached is a LoRA with A = the first components of the module's inputs, B = 0, `rank_pattern` and
 * `alpha_pattern`; modules that get no component are left out. Needs data at attach.
 * @throws ERR_HEDDLE_ARGUMENT on a field that is unknown or out of range
 */
export function eva(options: EvaOptions = {}): Parametrization {
  const config = parseConfig('eva', schema, options)
  const { eva_config: _, ...fields } = config
  return {
    ...lora(fields as LoraOptions),
    name: 'eva',
    config,
    ...targeting(config),
    resolve: (context) => resolved(config, context),
  }
}

/** Registry entry. */
export const evaType: ParametrizationType = {
  name: 'eva',
  peftType: 'LORA',
  isPeft: true,
  title: 'EVA',
  source: 'Paischer et al. 2024, arXiv 2410.07170',
  purpose: 'a LoRA that begins with the directions of your data, its ranks where they explain most',
  initialChange: 'none',
  create: (config) => eva(config as EvaOptions),
  restore: (stored) => lora(knownFields(stored) as LoraOptions),
}

/** As PEFT's randomised decomposition has them. */
const iterations = 4

async function resolved(config: EvaConfig, context: ResolveContext): Promise<Parametrization> {
  const { eva_config: settings, ...fields } = config
  const { max_batches: _, ...stored } = settings
  const plainConfig: LoraConfig = { ...fields, init_lora_weights: true }
  // Refuses modules that LoRA cannot act at before any batch is run.
  const checked = lora(fields as LoraOptions)
  for (const site of context.sites) {
    checked.plan(site)
    await pause()
  }
  const rankOf = (site: Site): number => scaleAt(plainConfig, site.path).r
  const linear = context.sites.filter(({ kind }) => kind === 'linear')
  if (linear.length === 0)
    throw new HeddleError('ERR_HEDDLE_ARGUMENT', {
      place: 'eva.target_modules',
      expected: 'a linear module',
      got: context.sites.map(({ path }) => path).join(', '),
    })
  const { groups, ranks } = await principalComponents(context, linear, { ...settings, rankOf, iterations })
  try {
    const factors = await initialFactors(groups, ranks, settings.whiten)
    const kept = context.sites.filter((site) => (ranks.get(site) ?? rankOf(site)) > 0)
    const found = patterns(kept, ranks, config, plainConfig)
    await pause()
    const method = lora({ ...(fields as LoraOptions), ...found })
    await pause()
    return {
      ...method,
      config: { ...method.config, init_lora_weights: 'eva', eva_config: stored },
      plan: (site) => {
        const plan = method.plan(site)
        const begin = factors.get(site.path)
        return begin ? { ...plan, prepare: async () => ({ values: await copiesOf(begin) }) } : plan
      },
    }
  } finally {
    for (const { svd } of groups) svd.dispose()
  }
}

/** A `[rank, in]` of each module. */
const initialFactors = (
  groups: readonly EvaGroup[],
  ranks: ReadonlyMap<Site, number>,
  whiten: boolean,
): Promise<ReadonlyMap<string, Values>> =>
  foundValues(async (add) => {
    for (const { sites, svd } of groups)
      for (const site of sites) {
        const end = ranks.get(site)!
        if (end === 0) continue
        const a = await computed(() => {
          const rows = slice(read(svd.vh), [{ axis: 0, start: 0, end }])
          const values = slice(read(svd.s), [{ axis: 0, start: 0, end }])
          return whiten ? div(rows, sqrt(reshape(values, [end, 1]))) : copy(rows)
        })
        add(site.path, { 'lora_A.weight': a })
        await pause()
      }
  })

/** The fields of the LoRA that say which modules have which rank and scale. */
function patterns(
  sites: readonly Site[],
  ranks: ReadonlyMap<Site, number>,
  { eva_config: { adjust_scaling_factors: adjusts } }: EvaConfig,
  config: LoraConfig,
): Pick<LoraOptions, 'target_modules' | 'rank_pattern' | 'alpha_pattern' | 'layers_to_transform' | 'layers_pattern'> {
  const [rankPattern, alphaPattern]: Record<string, number>[] = [{}, {}]
  for (const site of sites) {
    const { r, scale } = scaleAt(config, site.path)
    const alpha = scale * (config.use_rslora ? Math.sqrt(r) : r)
    const rank = ranks.get(site) ?? r
    const key = escaped(site.path)
    const grown = adjusts && rank !== r ? (alpha * rank) / r : alpha
    if (rank !== config.r) rankPattern![key] = rank
    if (grown !== config.lora_alpha) alphaPattern![key] = grown
  }
  return { target_modules: sites.map(({ path }) => path), rank_pattern: rankPattern!, alpha_pattern: alphaPattern! }
}
