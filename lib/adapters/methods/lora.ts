/**
 * LoRA (Hu et al. 2021, arXiv 2106.09685) as PEFT has it, with rsLoRA's scale (Kalajdzievski 2023, arXiv 2312.03732),
 * DoRA (Liu et al. 2024, arXiv 2402.09353) and the initialisations of PiSSA (Meng et al. 2024, arXiv 2404.02948) and
 * OLoRA (Büyükakyüz 2024, arXiv 2406.01775).
 */
import { parseConfig } from '../../config.js'
import { HeddleError } from '../../errors.js'
import type { Site } from '../../nn/site.js'
import type { Parametrization, ParametrizationType, SitePlan } from '../parametrization.js'
import { patternValue } from '../target_modules.js'
import { targeting, unsuited } from '../targeting.js'
import { changesBase, knownFields, type LoraConfig, type LoraOptions, loraSchema, plainForm } from './lora_config.js'
import { declarations, preparation } from './lora_init.js'
import { type LoraShape, loraFactors, loraForward, loraMerged, namesAt, shapeAt } from './lora_site.js'

/**
 * y = W x + s · B A dropout(x), with A `[r, in]`, B `[out, r]`, s = alpha/r (rsLoRA: alpha/√r); with `use_dora`
 * y = m ⊙ (W x + s B A x) / ‖W + s B A‖, row by row, with m `[out]` trained and the norm a constant of differentiation.
 * Embeddings have A `[r, rows]` and B `[dim, r]`, convolutions A `[r, in, kh, kw]` and B `[out, r, 1, 1]`.
 * @throws ERR_HEDDLE_ARGUMENT on a field that is unknown, out of range or at odds with another
 */
export function lora(options: LoraOptions = {}): Parametrization {
  const config = parseConfig('lora', loraSchema, options)
  if (config.use_dora && config.lora_bias) throw misuse('lora.lora_bias', 'false with use_dora', 'true')
  return {
    name: 'lora',
    config,
    ...targeting(config),
    plan: (site) => planAt(site, config),
    ...(changesBase(config)
      ? { written: async (sites, { convert }) => (convert ? await plainForm(config, sites) : undefined) }
      : {}),
  }
}

/** Registry entry. */
export const loraType: ParametrizationType = {
  name: 'lora',
  peftType: 'LORA',
  isPeft: true,
  title: 'LoRA',
  source: 'Hu et al. 2021, arXiv 2106.09685',
  purpose: 'the one to begin with: every tool reads it',
  initialChange: 'none',
  create: (config) => lora(config as LoraOptions),
  restore: (stored) => lora(knownFields(stored) as LoraOptions),
}

function planAt(site: Site, config: LoraConfig): SitePlan {
  const shape = shapeAt(site)
  if (!shape) throw unsuited('lora', site, 'a linear, embedding or convolution module', `a ${site.kind} module`)
  const { r, scale } = scaleAt(config, site.path)
  const { init_lora_weights: init, lora_bias: hasBias, use_dora: isDora, lora_dropout: dropout } = config
  expectFit(site, shape, r, config)
  const settings = { shape, r, scale, init, hasBias, isDora, dropout }
  const prepare = preparation(settings)
  const isPlain = shape.kind === 'linear' && !isDora && !hasBias
  const { a, b } = namesAt(shape)
  const canMerge = shape.groups === 1 && !(hasBias && !site.bias)
  return {
    parameters: declarations(settings),
    ...(prepare ? { prepare } : {}),
    forward: loraForward(settings),
    ...(canMerge ? { merged: loraMerged(settings) } : {}),
    ...(isPlain ? { factors: loraFactors(settings) } : {}),
    ...(isPlain && !changesBase(config) ? { storedFactors: { a, b, scale } } : {}),
  }
}

/** Rank and scale at a module. */
export function scaleAt(config: LoraConfig, path: string): { readonly r: number; readonly scale: number } {
  const r = patternValue(config.rank_pattern ?? {}, path, 'rank_pattern') ?? config.r
  const alpha = patternValue(config.alpha_pattern ?? {}, path, 'alpha_pattern') ?? config.lora_alpha
  return { r, scale: alpha / (config.use_rslora ? Math.sqrt(r) : r) }
}

/** @throws ERR_HEDDLE_ARGUMENT where PEFT refuses too, or would make factors of another rank than asked for */
function expectFit(site: Site, { kind, out, inner, groups }: LoraShape, r: number, config: LoraConfig): void {
  const { init_lora_weights: init, lora_bias: hasBias, use_dora: isDora } = config
  const isFactorised = typeof init === 'string' && init !== 'gaussian'
  if (isFactorised && kind !== 'linear')
    throw unsuited('lora', site, `a linear module for init_lora_weights ${init}`, `a ${kind}`)
  if (init === 'orthogonal' && r % 2 !== 0) throw unsuited('lora', site, 'an even rank for orthogonal', `${r}`)
  if (changesBase(config) && r > Math.min(out, inner))
    throw unsuited('lora', site, `a rank of at most ${Math.min(out, inner)} for ${init}`, `${r}`)
  if (r % groups !== 0) throw unsuited('lora', site, `a rank that ${groups} groups can share`, `${r}`)
  if (isDora && groups > 1) throw unsuited('lora', site, 'no use_dora at a convolution in groups', 'use_dora')
  if (hasBias && kind === 'embedding') throw unsuited('lora', site, 'no lora_bias at an embedding', 'lora_bias')
}

const misuse = (place: string, expected: string, got: string): HeddleError =>
  new HeddleError('ERR_HEDDLE_ARGUMENT', { place, expected, got })
