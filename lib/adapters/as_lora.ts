/** Plain LoRAs made of factors: what every other tool reads. */
import { HeddleError } from '../errors.js'
import { computed } from '../graph/computed.js'
import { reshape } from '../graph/ops/reduce.js'
import { pause } from '../graph/pause.js'
import { assign, read } from '../graph/sym.js'
import type { Tensor } from '../tensor/tensor.js'
import { Adapter } from './adapter.js'
import { lora } from './methods/lora.js'
import { namesAt, shapeAt } from './methods/lora_site.js'
import { escaped } from './target_modules.js'

/** Factors of a site's change, ΔW = b a. */
export interface FactorTensors {
  /** `[r, in]` */
  readonly a: Tensor
  /** `[out, r]` */
  readonly b: Tensor
}

/**
 * An adapter as a plain LoRA of scale 1 that computes the same, for methods whose change of the weights is of low rank.
 * The caller owns it; it can be saved for PEFT, exported as GGUF and combined with others.
 * @throws ERR_HEDDLE_ARGUMENT when the method has no such form, or trains tensors of the model besides
 */
export async function asLora(adapter: Adapter): Promise<Adapter> {
  const found = await factorsOf(adapter)
  try {
    return await loraOf(adapter, found)
  } finally {
    disposeFactors(found)
  }
}

/**
 * What an adapter changes, by module path; the caller owns the tensors.
 * @throws ERR_HEDDLE_ARGUMENT as {@link asLora}
 */
export async function factorsOf(adapter: Adapter): Promise<Map<string, FactorTensors>> {
  for (const { plan, site, trained } of adapter.attachments.values())
    if (!plan?.factors || Object.keys(trained).length > 0)
      throw misuse(`a method with low-rank factors at ${site.path}`, plan ? adapter.method.name : 'a trained module')
  const found = new Map<string, FactorTensors>()
  try {
    for (const attached of adapter.attachedSites) {
      const { path } = attached.site
      const { factors } = adapter.attachments.get(path)!.plan!
      found.set(path, await computed(() => ({ ...factors!(attached) })))
      await pause()
    }
    return found
  } catch (error) {
    disposeFactors(found)
    throw error
  }
}

/** Frees what {@link factorsOf} gave. */
export function disposeFactors(factors: ReadonlyMap<string, FactorTensors>): void {
  for (const { a, b } of factors.values()) for (const used of [a, b]) used.dispose()
}

/** Fields of the config of {@link loraOf}. */
export interface LoraOfOptions {
  /** Rank where a module has no other; default: the largest. */
  readonly r?: number
  readonly lora_dropout?: number
  readonly fan_in_fan_out?: boolean
}

const largestRank = (factors: ReadonlyMap<string, FactorTensors>): number =>
  Math.max(...[...factors.values()].map(({ a }) => a.shape[0]!))

/** A LoRA of scale 1 over these factors, which are copied, by module path. The caller owns it. */
export async function loraOf(
  { model, baseModel, taskType }: Pick<Adapter, 'model' | 'baseModel' | 'taskType'>,
  factors: ReadonlyMap<string, FactorTensors>,
  { r = largestRank(factors), ...fields }: LoraOfOptions = {},
): Promise<Adapter> {
  const ranks = [...factors].map(([path, { a }]) => [path, a.shape[0]!] as const)
  const others = ranks.filter(([, rank]) => rank !== r)
  const pattern = Object.fromEntries(others.map(([path, rank]) => [escaped(path), rank]))
  const patterns = others.length > 0 ? { rank_pattern: pattern, alpha_pattern: pattern } : {}
  const method = lora({ r, lora_alpha: r, ...fields, target_modules: [...factors.keys()], ...patterns })
  const adapter = await Adapter.attach(model, method, { baseModel, taskType })
  try {
    await computed(() => {
      for (const [path, { a, b }] of factors) {
        const { site, parameters } = adapter.attachments.get(path)!
        const names = namesAt(shapeAt(site)!)
        for (const [name, value] of [
          [names.a, a],
          [names.b, b],
        ] as const)
          assign(parameters[name]!, reshape(read(value), parameters[name]!.shape))
      }
      return []
    })
    return adapter
  } catch (error) {
    adapter.dispose()
    throw error
  }
}

const misuse = (expected: string, got: string): HeddleError =>
  new HeddleError('ERR_HEDDLE_ARGUMENT', { place: 'adapter', expected, got, hint: 'Merge it into the model instead.' })
