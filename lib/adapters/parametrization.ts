/** The seam of adapters: what a method must say to take part in a model, be trained, merged, saved and loaded. */
import type { Sym } from '../graph/sym.js'
import type { Forward, Site } from '../nn/site.js'
import type { Tensor } from '../tensor/tensor.js'
import type { TargetFilter } from './target_modules.js'

/** A trainable tensor of a parametrization. */
export interface ParameterDeclaration {
  readonly shape: readonly number[]
  /** Traced once at attach; `stream` is this parameter's own random stream. */
  readonly init: (seed: Sym, stream: number) => Sym
}

/** A method at one site, before it has parameters. */
export interface SitePlan {
  /** By the name's suffix in the adapter file, e.g. `lora_A.weight`. */
  readonly parameters: Readonly<Record<string, ParameterDeclaration>>
  /** Output of the site with the adapter: x `[n, in]` → `[n, out]`. `stream` seeds this site's dropout. */
  readonly forward: (context: SiteContext) => Sym
  /** The weight that makes the plain site compute the same; absent where the method cannot be merged. */
  readonly merged?: (weight: Sym, parameters: Readonly<Record<string, Tensor>>) => Sym
}

/** What a method gets when its site is traced. */
export interface SiteContext {
  readonly site: Site
  readonly x: Sym
  /** What the site computes without the adapter. */
  readonly base: () => Sym
  readonly parameters: Readonly<Record<string, Tensor>>
  readonly forward: Forward
  readonly stream: number
}

/** A configured adapter method, ready to be attached to a model. */
export interface Parametrization {
  /** Registry name. */
  readonly name: string
  /** The `adapter_config.json` that PEFT reads, without the fields that every method shares. */
  readonly config: Readonly<Record<string, unknown>>
  readonly targetModules: TargetModules
  /** What narrows that choice. */
  readonly targetFilter?: TargetFilter
  /** @throws HeddleError when the method cannot act at this kind of site */
  readonly plan: (site: Site) => SitePlan
}

/** PEFT's `target_modules`: names or path ends, one regular expression for whole paths, or "all-linear". */
export type TargetModules = string | readonly string[]

/** One method, reachable by name from code, the CLI, config files and PEFT folders. */
export interface ParametrizationType {
  readonly name: string
  /** `peft_type` in adapter_config.json. */
  readonly peftType: string
  /** Checks a config in PEFT's field names; unknown fields are refused unless `lenient`. */
  readonly create: (config: unknown, options?: { readonly lenient?: boolean }) => Parametrization
}
