/** The seam of adapters: what a method must say to take part in a model, be trained, merged, saved and loaded. */
import type { Sym } from '../graph/sym.js'
import type { Network } from '../nn/network.js'
import type { Forward, Site, SiteComputation } from '../nn/site.js'
import type { Calibration, Watch } from '../observers/calibration.js'
import type { GradientTransform } from '../optim/gradient_transform.js'
import type { DType } from '../tensor/dtype.js'
import type { Tensor } from '../tensor/tensor.js'
import type { TargetFilter } from './target_modules.js'

/** A trainable tensor of a parametrization, f32. */
export interface ParameterDeclaration {
  readonly shape: readonly number[]
  /** Traced once at attach, after the parameters declared before it; not where {@link SitePlan.prepare} gives a value. */
  readonly init?: (context: InitContext) => Sym
}

/** A frozen tensor of a parametrization: a factor of the weight, a random basis, where entries stand. */
export interface BufferDeclaration {
  readonly shape: readonly number[]
  /** Default `f32`. */
  readonly dtype?: DType
  /** In the adapter's file; default true. False for what is computed from the weight again when the adapter is loaded. */
  readonly isStored?: boolean
  /**
   * For a stored buffer that {@link SitePlan.prepare} finds again when the adapter is loaded, and by which it knows its
   * weight: how far the two may lie apart, relative to the largest element. A file for another weight is refused.
   */
  readonly sameWithin?: number
}

/** A tensor above the sites, which all of them use: trained by all, or frozen. */
export interface SharedDeclaration extends BufferDeclaration {
  readonly isTrained: boolean
  /** Its first value; the adapter owns it from then on. */
  readonly make: (context: { readonly seed: number; readonly stream: number }) => Promise<Tensor>
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
  /** What the sites share, by name. */
  readonly shared: Readonly<Record<string, Tensor>>
}

/** What {@link SitePlan.prepare} found; the adapter owns the tensors from then on. */
export interface Prepared {
  /** All buffers, and initial values of parameters, by name; the other parameters come from their declarations. */
  readonly values: Readonly<Record<string, Tensor>>
  /** Takes the place of the site's weight wherever this adapter is active; the site itself keeps its own. */
  readonly weight?: Tensor
}

/** A method at one site, before it has parameters. */
export interface SitePlan {
  /** By the name's suffix in the adapter file, e.g. `lora_A.weight`. */
  readonly parameters: Readonly<Record<string, ParameterDeclaration>>
  /** By the name's suffix in the adapter file; {@link prepare} gives their values. */
  readonly buffers?: Readonly<Record<string, BufferDeclaration>>
  /** What takes more than one traced program at attach: factorisations, procedures that read data. */
  readonly prepare?: (context: PrepareContext) => Promise<Prepared>
  /**
   * For a method whose file holds the weight that it works on: that weight, as the site's is stored, from the buffers of
   * a loaded file. The method is then not prepared when it is loaded.
   */
  readonly restoredWeight?: (buffers: Readonly<Record<string, Tensor>>) => Promise<Tensor>
  /** Output of the site with the adapter: a delta on `base()`, what a new weight gives, or a function of the output. */
  readonly forward: (context: SiteContext) => Sym
  /** The weight and bias that make the plain site compute the same; absent where the method cannot be merged. */
  readonly merged?: (context: MergeContext) => Merged
  /** Where there is no {@link merged}: why. */
  readonly unmergeable?: string
  /**
   * The change of a linear site's own weight as a plain LoRA of scale 1; absent where it is not of low rank. Traced.
   */
  readonly factors?: (attached: AttachedSite) => Factors
  /** Where {@link factors} are the site's only two parameters, the second one scaled: which ones. */
  readonly storedFactors?: StoredFactors
}

/** A site's {@link Factors} as they lie in an adapter's file: suffixes of the names of a and b there. */
export interface StoredFactors {
  /** f32 `[r, in]` */
  readonly a: string
  /** f32 `[out, r]` */
  readonly b: string
  /** What b is multiplied by. */
  readonly scale: number
}

/** ΔW `[out, in]` = b a. */
export interface Factors {
  /** `[r, in]` */
  readonly a: Sym
  /** `[out, r]` */
  readonly b: Sym
}

/** What a merge starts from. */
export interface MergeContext extends SiteTensors {
  readonly weight: Sym
  readonly bias: Sym | undefined
}

/** What a merge gives; the bias only where it changes. */
export interface Merged {
  readonly weight: Sym
  readonly bias?: Sym
}

/** What a method gets when its site is traced. */
export interface SiteContext extends SiteTensors {
  /** The site, with the tensors that this adapter has put in the place of the site's own. */
  readonly site: Site
  readonly x: Sym
  /** What that site computes without the adapter's parameters. */
  readonly base: SiteComputation
  readonly forward: Forward
  /** Seeds this site's dropout. */
  readonly stream: number
}

/** The tensors of a site. */
export type SitePart = 'weight' | 'bias'

/** What belongs to a site: its own tensors and those of all sites, by name. */
export interface SiteTensors {
  readonly parameters: Readonly<Record<string, Tensor>>
  readonly buffers: Readonly<Record<string, Tensor>>
}

/** A site of an attached method, with the tensors that belong to it. */
export interface AttachedSite extends SiteTensors {
  readonly site: Site
  /** The values that the parameters began with, where {@link Prepared.weight} stands in the place of the site's. */
  readonly initial?: Readonly<Record<string, Tensor>>
}

/** What an adapter's folder holds in the place of the method's config and parameters. */
export interface Written {
  /** Takes the place of {@link Parametrization.config}. */
  readonly config: Readonly<Record<string, unknown>>
  /** By `<module path>.<name>`, in the place of the adapter's own tensors of that name; freed once they are written. */
  readonly tensors: ReadonlyMap<string, Tensor>
}

/** How far the attaching of a method is. */
export interface AttachProgress {
  /** Registry name. */
  readonly method: string
  /** What is counted. */
  readonly unit: 'batches' | 'modules' | 'steps'
  readonly done: number
  /** At most; 0 where it is not known. */
  readonly total: number
}

/** What {@link Parametrization.resolve} gets. */
export interface ResolveContext {
  readonly network: Network
  /** The sites that the method is to act on. */
  readonly sites: readonly Site[]
  readonly seed: number
  /** Handed on to what runs batches; its signal stops everything else too. */
  readonly watch: Watch
  /** Says how far it is, where no batches do. */
  report(progress: Omit<AttachProgress, 'method'>): void
  /** Says what did not go as it should, where it goes on all the same. */
  warn(message: string): void
  /** @throws ERR_HEDDLE_ARGUMENT where the adapter is attached without data */
  calibration(): Calibration
}

/** What {@link Parametrization.optimizer} gets. */
export interface OptimizerContext {
  /** Names of what is trained, `<module path>.<name>`, in the optimizer's order. */
  readonly names: readonly string[]
  /** Optimizer steps of the whole run. */
  readonly totalSteps: number
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
  /**
   * Paths of modules, adapted or not, that compute with some of their weight's numbers set to 0 wherever the adapter is
   * active; which ones is in the adapter's file.
   */
  readonly maskedModules?: readonly string[]
  /** @throws HeddleError when the method cannot act at this kind of site */
  readonly plan: (site: Site) => SitePlan
  /** What the chosen sites have in common, by the name in the adapter's file. */
  readonly shared?: (sites: readonly Site[]) => Readonly<Record<string, SharedDeclaration>>
  /**
   * For a method that looks at the whole network, or at data, before it can say what it does at a site: what is
   * attached in its place. That may be attached again, to other models too: tensors that it found are its own, and what
   * it prepares are copies. Not called when an adapter is loaded from a folder.
   */
  readonly resolve?: (context: ResolveContext) => Promise<Parametrization>
  /** Traced: what is added to the loss while this adapter is trained, `f32 []`. */
  readonly penalty?: (sites: readonly AttachedSite[]) => Sym
  /** The optimizer with what the method does around an update: freezing, masks, importance. */
  readonly optimizer?: (inner: GradientTransform, context: OptimizerContext) => GradientTransform
  /** What the folder holds where it is not {@link config} and the parameters as they are. */
  readonly written?: (sites: readonly AttachedSite[], options: WriteOptions) => Promise<Written | undefined>
}

/** What {@link Parametrization.written} is asked for. */
export interface WriteOptions {
  /** In a form that fits the original model. */
  readonly convert: boolean
}

/** PEFT's `target_modules`: names or path ends, one regular expression for whole paths, or "all-linear". */
export type TargetModules = string | readonly string[]

/** How far from the model's own output the output with a fresh adapter is. */
export type InitialChange = 'none' | 'rounding' | 'small' | 'any'

/** One method, reachable by name from code, the CLI, config files and PEFT folders. */
export interface ParametrizationType {
  readonly name: string
  /** `peft_type` in adapter_config.json. */
  readonly peftType: string
  /** What PEFT called it in folders that are read too: `peft_type`, and ends of tensor names there → here. */
  readonly formerly?: { readonly peftType: string; readonly names: Readonly<Record<string, string>> }
  /** PEFT has it, and the folders are PEFT's. */
  readonly isPeft: boolean
  /** As the paper spells it. */
  readonly title: string
  /** Where it is published: authors, year, arXiv id. */
  readonly source: string
  /** What it is good for, in one line. */
  readonly purpose: string
  readonly initialChange: InitialChange
  /** The name of the page in docs/adapters where it is described together with another method; default its own. */
  readonly page?: string
  /** Checks a config in the reference's field names; unknown fields are refused. */
  readonly create: (config: unknown) => Parametrization
  /** The method of an adapter_config.json. @throws ERR_HEDDLE_FORMAT naming a field that asks for something else */
  readonly restore: (stored: Readonly<Record<string, unknown>>) => Parametrization
}
