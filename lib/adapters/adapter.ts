/** A parametrization attached to a model: its trainable tensors at every chosen site, and its place in the forward pass. */
import { HeddleError, throwIfAborted } from '../errors.js'
import { computed } from '../graph/computed.js'
import { copy, transpose } from '../graph/ops/index.js'
import { pause } from '../graph/pause.js'
import { assign, read, type Sym } from '../graph/sym.js'
import type { Network } from '../nn/network.js'
import type { Site, SiteHook } from '../nn/site.js'
import type { Calibration } from '../observers/calibration.js'
import type { Tensor } from '../tensor/tensor.js'
import {
  type Attached,
  type Attachment,
  attachMethod,
  disposeAttached,
  networkSites,
  replaced,
  type SharedTensors,
} from './attachment.js'
import { maskedWeight, maskName } from './masked_weight.js'
import type {
  AttachedSite,
  AttachProgress,
  Parametrization,
  ResolveContext,
  SitePart,
  SiteTensors,
} from './parametrization.js'
import { readMethod, readParameters, type SaveOptions, writeAdapter } from './peft_folder.js'
import { namingMethod, traceStructured } from './structured_sites.js'
import { selectSites } from './target_modules.js'

export type { Attachment } from './attachment.js'

/** Options of {@link Adapter.attach}. */
export interface AttachOptions {
  /** Seed of the initial values; default 0. */
  readonly seed?: number
  /** Written into the adapter's folder as `base_model_name_or_path`, which PEFT uses to find the base model. */
  readonly baseModel?: string
  /** PEFT's name of what the model is for, written into the adapter's folder; default `CAUSAL_LM`. */
  readonly taskType?: string
  /** For a method that learns from data where to act and how to begin. */
  readonly calibration?: Calibration | undefined
  /** Stops the attaching, of which then nothing is left: ERR_HEDDLE_ABORTED. */
  readonly signal?: AbortSignal | undefined
  /** Called where attaching takes its time: while a method learns from data, or takes weights apart. */
  readonly onProgress?: ((progress: AttachProgress) => void) | undefined
  /** Called with what did not go as it should; default: `process.emitWarning`. */
  readonly onWarning?: ((message: string) => void) | undefined
}

/** A method attached to a network; made by {@link Adapter.attach} or {@link Adapter.load}. */
export class Adapter {
  readonly method: Parametrization
  readonly model: Network
  readonly baseModel: string
  readonly taskType: string
  readonly #attachments: Map<string, Attachment>
  readonly #shared: SharedTensors
  #originals: Map<Site, Original> | undefined

  private constructor(
    model: Network,
    method: Parametrization,
    { attachments, shared }: Attached,
    { baseModel = '', taskType = 'CAUSAL_LM' }: AttachOptions,
  ) {
    this.model = model
    this.baseModel = baseModel
    this.taskType = taskType
    this.method = method
    this.#attachments = attachments
    this.#shared = shared
  }

  /**
   * Attaches a method to the sites that its config selects and initialises its parameters.
   * @throws ERR_HEDDLE_ARGUMENT when no site matches, the method cannot act at one of them, or needs data and gets none;
   *   ERR_HEDDLE_ABORTED
   */
  static async attach(model: Network, method: Parametrization, options: AttachOptions = {}): Promise<Adapter> {
    return await namingMethod(method.name, networkSites(model), async () =>
      Adapter.#attach(model, await resolved(model, method, options), options),
    )
  }

  /**
   * Attaches the adapter of a PEFT folder to its base model.
   * @throws ERR_HEDDLE_IO when a file is missing, ERR_HEDDLE_FORMAT when the folder asks for something that is not
   *   supported, or its tensors are not those of the chosen modules
   */
  static async load(model: Network, folder: string, options: AttachOptions = {}): Promise<Adapter> {
    const { method, taskType } = await readMethod(folder)
    return await namingMethod(method.name, networkSites(model), async () => {
      const adapter = await Adapter.#attach(model, method, { taskType, ...options }, true)
      return await adapter.#completed(async () => {
        await readParameters(adapter, folder)
        await adapter.#restoreWeights()
        await adapter.#maskWeights()
      })
    })
  }

  static async #attach(
    model: Network,
    method: Parametrization,
    options: AttachOptions,
    isLoading = false,
  ): Promise<Adapter> {
    const { seed = 0, signal, onProgress } = options
    const attached = await attachMethod(model, method, { seed, signal, onProgress, isLoading })
    const adapter = new Adapter(model, method, attached, options)
    return await adapter.#completed(async () => {
      for (const { site } of attached.attachments.values()) {
        if (!site.structure) continue
        traceStructured(site, adapter.hook)
        await pause()
      }
    })
  }

  /** This adapter, once what it still lacks is done; freed where that fails. */
  async #completed(complete: () => Promise<void>): Promise<this> {
    try {
      await complete()
      return this
    } catch (error) {
      this.dispose()
      throw error
    }
  }

  /**
   * The same adapter, in tensors of its own, with some numbers of modules' weights set to 0 wherever it is active. The
   * caller owns it. @internal
   * @param method the adapter's, with these modules as its {@link Parametrization.maskedModules}
   * @param masks by path, packed, see {@link packed}; freed in any case
   */
  static async masked(adapter: Adapter, method: Parametrization, masks: ReadonlyMap<string, Tensor>): Promise<Adapter> {
    const { model, baseModel, taskType } = adapter
    const from = new Map([...adapter.parameters(), ...adapter.buffers()])
    for (const [path, mask] of masks) from.set(`${path}.${maskName}`, mask)
    try {
      const result = await Adapter.#attach(model, method, { baseModel, taskType })
      return await result.#completed(async () => {
        await computed(() => {
          for (const [name, target] of [...result.parameters(), ...result.buffers()])
            assign(target, read(from.get(name)!))
          return []
        })
        await result.#maskWeights()
      })
    } finally {
      for (const mask of masks.values()) mask.dispose()
    }
  }

  /** Puts the weights in the place of the modules' own that the file's buffers hold. */
  async #restoreWeights(): Promise<void> {
    for (const [path, attachment] of this.#attachments) {
      const weight = await attachment.plan?.restoredWeight?.(attachment.buffers)
      if (weight) this.#attachments.set(path, { ...attachment, weight })
      await pause()
    }
  }

  /** Puts the weights in the place of the modules' own that the masks leave. */
  async #maskWeights(): Promise<void> {
    for (const [path, attachment] of this.#attachments) {
      const mask = attachment.buffers[maskName]
      if (mask) this.#attachments.set(path, { ...attachment, weight: await maskedWeight(attachment.site, mask) })
      await pause()
    }
  }

  /** Writes a PEFT folder, each file whole or not at all. @throws ERR_HEDDLE_IO */
  async save(folder: string, options: SaveOptions = {}): Promise<void> {
    await writeAdapter(this, folder, options)
  }

  /** What the adapter has at each site, by path. @internal */
  get attachments(): ReadonlyMap<string, Attachment> {
    return this.#attachments
  }

  /** What all sites share, by name. @internal */
  get shared(): SharedTensors {
    return this.#shared
  }

  /** The sites that the method acts on, with all that belongs to them. @internal */
  get attachedSites(): readonly AttachedSite[] {
    return [...this.#attachments.values()].flatMap((attachment) =>
      attachment.plan ? [{ ...attachment, ...this.#tensorsOf(attachment) }] : [],
    )
  }

  /**
   * Trainable tensors under their names in the adapter's file: what all sites share by name alone, then
   * `<module path>.<name>`, in site order.
   */
  parameters(): Map<string, Tensor> {
    const common = Object.entries(this.#shared).flatMap(([name, { isTrained, tensor }]) =>
      isTrained ? [[name, tensor] as const] : [],
    )
    const named = [...this.#attachments.values()].flatMap(({ site, plan, parameters, trained }) => {
      const own = Object.entries(parameters).map(([name, value]) => [`${site.path}.${name}`, value] as const)
      // PEFT wraps a module that it adapts: the module's own tensors are then inside of `base_layer`.
      const inside = plan ? `${site.path}.base_layer` : site.path
      return [...own, ...Object.entries(trained).map(([part, value]) => [`${inside}.${part}`, value] as const)]
    })
    return new Map([...common, ...named])
  }

  /** Frozen tensors of the method, named as {@link parameters} are. */
  buffers(): Map<string, Tensor> {
    const common = Object.entries(this.#shared).flatMap(([name, { isTrained, tensor }]) =>
      isTrained ? [] : [[name, tensor] as const],
    )
    const named = [...this.#attachments.values()].flatMap(({ site, buffers }) =>
      Object.entries(buffers).map(([name, value]) => [`${site.path}.${name}`, value] as const),
    )
    return new Map([...common, ...named])
  }

  /** Traced: what the method adds to the loss, `f32 []`; undefined for most. */
  penalty(): Sym | undefined {
    return this.method.penalty?.(this.attachedSites)
  }

  /** Paths of the modules that the method acts on. */
  get sitePaths(): readonly string[] {
    return [...this.#attachments.values()].flatMap(({ plan, site }) => (plan ? [site.path] : []))
  }

  /** Number of trainable numbers. */
  get parameterCount(): number {
    return [...this.parameters().values()].reduce((total, { size }) => total + size, 0)
  }

  /** The adapter's part in a traced forward pass. */
  get hook(): SiteHook {
    return {
      targets: (site) => this.#attachments.has(site.path),
      apply: (site, x, base, forward) => {
        const attachment = this.#attachments.get(site.path)!
        const { plan, parameters, stream } = attachment
        const part = replaced(site, attachment)
        if (!plan) return base(part)
        return plan.forward({
          site: part,
          x,
          base: (other = part, input = x) => base(other, input),
          ...this.#tensorsOf(attachment),
          forward,
          stream: stream + Object.keys(parameters).length,
        })
      },
    }
  }

  get isMerged(): boolean {
    return this.#originals !== undefined
  }

  /**
   * Replaces the weight of every site by one that computes the same without the adapter; a structured matrix gives way to
   * a dense weight. Programs traced before keep the old weights. {@link unmerge} puts the very same old tensors back.
   * @throws ERR_HEDDLE_ARGUMENT when the method cannot be merged or is merged already
   */
  async merge(): Promise<void> {
    if (this.#originals) throw misuse('merge', 'an adapter that is not merged', 'a merged one')
    for (const attachment of this.#attachments.values()) this.#expectMergeable(attachment)
    const originals = new Map<Site, Original>()
    this.#originals = originals
    try {
      for (const attachment of this.#attachments.values()) {
        const { site } = attachment
        const { weight, bias } = await mergedTensors(attachment, this.#tensorsOf(attachment))
        originals.set(site, { weight: site.weight, bias: site.bias, structure: site.structure })
        site.weight = weight
        site.structure = undefined
        if (bias) site.bias = bias
        await pause()
      }
    } catch (error) {
      this.unmerge()
      throw error
    }
  }

  /** Undoes {@link merge} exactly. */
  unmerge(): void {
    if (!this.#originals) throw misuse('unmerge', 'a merged adapter', 'one that is not merged')
    for (const [site, { weight, bias, structure }] of this.#originals) {
      site.weight.dispose()
      site.weight = weight
      site.structure = structure
      if (site.bias !== bias) {
        site.bias?.dispose()
        site.bias = bias
      }
    }
    this.#originals = undefined
  }

  /** Frees the adapter's tensors. */
  dispose(): void {
    disposeAttached({ attachments: this.#attachments, shared: this.#shared })
  }

  /** A site's tensors with those that all sites share. */
  #tensorsOf({ parameters, buffers }: Attachment): SiteTensors {
    const shared = (isTrained: boolean): Record<string, Tensor> =>
      Object.fromEntries(
        Object.entries(this.#shared).flatMap(([name, each]) =>
          each.isTrained === isTrained ? [[name, each.tensor] as const] : [],
        ),
      )
    return { parameters: { ...shared(true), ...parameters }, buffers: { ...shared(false), ...buffers } }
  }

  #expectMergeable({ site, plan }: Attachment): void {
    if (plan && !plan.merged)
      throw misuse('merge', 'a method that can be merged', `${this.method.name} at ${site.path}`, plan.unmergeable)
    const isShared = site === this.model.outputSite || site.kind === 'embedding'
    if (isShared && this.model.embeddingTied)
      throw misuse('merge', 'an output projection of its own', `${site.path}, which shares its weight`)
  }
}

/** What a merge replaces at a site. */
type Original = Pick<Site, SitePart | 'structure'>

/** What is attached: the method itself, or what it makes of the network and the data. */
async function resolved(
  model: Network,
  method: Parametrization,
  { seed = 0, calibration, signal, onProgress, onWarning = (message) => process.emitWarning(message) }: AttachOptions,
): Promise<Parametrization> {
  throwIfAborted(signal, `Adapter.attach: ${method.name}`)
  if (!method.resolve) return method
  const report: ResolveContext['report'] = (progress) => onProgress?.({ method: method.name, ...progress })
  return method.resolve({
    network: model,
    sites: selectSites(networkSites(model), method.targetModules, method.targetFilter),
    seed,
    watch: { signal, onBatch: (done, total) => report({ unit: 'batches', done, total }) },
    report,
    warn: (message) => onWarning(`${method.name}: ${message}`),
    calibration() {
      if (calibration) return calibration
      throw new HeddleError('ERR_HEDDLE_ARGUMENT', {
        place: `Adapter.attach: ${method.name}`,
        expected: 'data to look at, as calibration',
        got: 'none',
        hint: 'Give attach a calibration, or let train attach the method: it shows it the training data.',
      })
    },
  })
}

/** New tensors for the merged site; the bias only where it is another. */
async function mergedTensors(attachment: Attachment, tensors: SiteTensors): Promise<{ weight: Tensor; bias?: Tensor }> {
  const { plan, trained } = attachment
  const part = replaced(attachment.site, attachment)
  return await computed(() => {
    const [weight, bias] = [weightOf(part), part.bias && read(part.bias)]
    const merged = plan?.merged?.({ weight, bias, ...tensors }) ?? { weight: copy(weight) }
    const newBias = merged.bias ?? (trained.bias && copy(read(trained.bias)))
    return { weight: merged.weight, ...(newBias ? { bias: newBias } : {}) }
  })
}

/** The site's weight as it is stored, written out where it has a structure. */
function weightOf({ weight, structure, transposed }: Site): Sym {
  if (!structure) return read(weight)
  return transposed ? transpose(structure.toDense()) : structure.toDense()
}

const misuse = (place: string, expected: string, got: string, hint?: string): HeddleError =>
  new HeddleError('ERR_HEDDLE_ARGUMENT', { place: `Adapter.${place}`, expected, got, ...(hint ? { hint } : {}) })
