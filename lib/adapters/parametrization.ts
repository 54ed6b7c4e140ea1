/** The seam of adapters: what a method must say to take part in a model, be trained, merged, saved and loaded. */
import type { Sym } from '../graph/sym.js'
import type { Forward, Site, SiteComputation } from '../nn/site.js'
import type { Tensor } from '../tensor/tensor.js'
import type { TargetFilter } from './target_modules.js'

/** A trainable tensor of a parametrization. */
export interface ParameterDeclaration {
  readonly shape: readonly number[]
  /** Traced once at attach, after the parameters declared before it. */
  readonly init: (context: InitContext) => Sym
}

/** What an initial value may depend on. */
export interface InitContext {
  readonly seed: Sym
  /** This parameter's own random stream. */
  readonly stream: number
  /** The weight that the method works on. */
  weight(): Sym
  /** Initial values of the parameters so far. */
  readonly values: Readonly<Record<string, Sym>>
}

/** What {@link SitePlan.prepare} starts from. */
export interface PrepareContext {
  readonly weight: Tensor
  readonly seed: number
  readonly stream: number
}

/** What {@link SitePlan.prepare} found; the adapter owns the tensors from then on. */
export interface Prepared {
  /** Initial values of parameters, by name; the others come from their declarations. */
  readonly values: Readonly<Record<string, Tensor>>
  /** Takes the place of the site's weight wherever this adapter is active; the site itself keeps its own. */
  readonly weight?: Tensor
}

/** A method at one site, before it has parameters. */
export interface SitePlan {
  /** By the name's suffix in the adapter file, e.g. `lora_A.weight`. */
  readonly parameters: Readonly<Record<string, ParameterDeclaration>>
  /** What takes more than one traced program at attach: factorisations, procedures that read data. */
  readonly prepare?: (context: PrepareContext) => Promise<Prepared>
  /** Output of the site with the adapter: a delta on `base()`, what a new weight gives, or a function of the output. */
  readonly forward: (context: SiteContext) => Sym
  /** The weight and bias that make the plain site compute the same; absent where the method cannot be merged. */
  readonly merged?: (context: MergeContext) => Merged
}

/** What a merge starts from. */
export interface MergeContext {
  readonly weight: Sym
  readonly bias: Sym | undefined
  readonly parameters: Readonly<Record<string, Tensor>>
}

/** What a merge gives; the bias only where it changes. */
export interface Merged {
  readonly weight: Sym
  readonly bias?: Sym
}

/** What a method gets when its site is traced. */
export interface SiteContext {
  /** The site, with the tensors that this adapter has put in the place of the site's own. */
  readonly site: Site
  readonly x: Sym
  /** What that site computes without the adapter's parameters. */
  readonly base: SiteComputation
  readonly parameters: Readonly<Record<string, Tensor>>
  readonly forward: Forward
  /** Seeds this site's dropout. */
  readonly stream: number
}

/** The tensors of a site. */
export type SitePart = 'weight' | 'bias'

/** How an adapter that works on a weight of its own is written so that it fits the model's. */
export interface Conversion {
  /** Takes the place of {@link Parametrization.config}. */
  readonly config: Readonly<Record<string, unknown>>
  /** Tensors of one site, from the trained and the initial values. */
  readonly tensors: (
    values: Readonly<Record<string, Sym>>,
    initial: Readonly<Record<string, Sym>>,
  ) => Readonly<Record<string, Sym>>
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
  /** Tensors of the site that are copied and trained as they are, beside the method's own parameters. */
  readonly trainedParts?: (site: Site, isTarget: boolean) => readonly SitePart[]
  /** @throws HeddleError when the method cannot act at this kind of site */
  readonly plan: (site: Site) => SitePlan
  /** Present where {@link SitePlan.prepare} gives weights. @throws HeddleError when this config cannot be converted */
  readonly conversion?: () => Conversion
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
