/** A parametrization attached to a model: its trainable tensors at every chosen site, and its place in the forward pass. */
import { HeddleError } from '../errors.js'
import { pause } from '../graph/pause.js'
import { program } from '../graph/program.js'
import { assign, read } from '../graph/sym.js'
import type { Network } from '../nn/network.js'
import type { Site, SiteHook } from '../nn/site.js'
import { type Tensor, tensor, zeros } from '../tensor/tensor.js'
import type { Parametrization, SitePlan } from './parametrization.js'
import { readMethod, readParameters, writeAdapter } from './peft_folder.js'
import { selectSites } from './target_modules.js'

interface Attachment {
  readonly site: Site
  readonly plan: SitePlan
  readonly parameters: Readonly<Record<string, Tensor>>
  /** First random stream of this site: one per parameter, then one for dropout. */
  readonly stream: number
}

export interface AttachOptions {
  /** Seed of the initial values; default 0. */
  readonly seed?: number
  /** Written into the adapter's folder as `base_model_name_or_path`, which PEFT uses to find the base model. */
  readonly baseModel?: string
}

export class Adapter {
  readonly method: Parametrization
  readonly model: Network
  readonly baseModel: string
  readonly #attachments: ReadonlyMap<string, Attachment>
  #originals: Map<Site, Tensor> | undefined

  private constructor(
    model: Network,
    method: Parametrization,
    attachments: ReadonlyMap<string, Attachment>,
    baseModel: string,
  ) {
    this.model = model
    this.baseModel = baseModel
    this.method = method
    this.#attachments = attachments
  }

  /**
   * Attaches a method to the sites that its config selects and initialises its parameters.
   * @throws ERR_HEDDLE_ARGUMENT when no site matches or the method cannot act at one of them
   */
  static async attach(model: Network, method: Parametrization, options: AttachOptions = {}): Promise<Adapter> {
    const { outputSite: output } = model
    const candidates = output && !model.sites.has(output.path) ? [output] : []
    const sites = selectSites([...model.sites.values(), ...candidates], method.targetModules, method.targetFilter)
    const attachments = new Map<string, Attachment>()
    let stream = 0
    for (const site of sites) {
      const plan = method.plan(site)
      const entries = Object.entries(plan.parameters)
      const parameters = Object.fromEntries(entries.map(([name, { shape }]) => [name, zeros(shape)]))
      attachments.set(site.path, { site, plan, parameters, stream })
      stream += entries.length + 1
      await pause()
    }
    const adapter = new Adapter(model, method, attachments, options.baseModel ?? '')
    await adapter.#initialise(options.seed ?? 0)
    return adapter
  }

  /**
   * Attaches the adapter of a PEFT folder to its base model.
   * @throws ERR_HEDDLE_IO when a file is missing, ERR_HEDDLE_FORMAT when the folder asks for something that is not
   *   supported, or its tensors are not those of the chosen modules
   */
  static async load(model: Network, folder: string, options: AttachOptions = {}): Promise<Adapter> {
    const adapter = await Adapter.attach(model, await readMethod(folder), options)
    try {
      await readParameters(adapter, folder)
      return adapter
    } catch (error) {
      adapter.dispose()
      throw error
    }
  }

  /** Writes a PEFT folder, each file whole or not at all. @throws ERR_HEDDLE_IO */
  async save(folder: string): Promise<void> {
    await writeAdapter(this, folder)
  }

  /** Trainable tensors under `<module path>.<name>`, in site order. */
  parameters(): Map<string, Tensor> {
    const named = [...this.#attachments.values()].flatMap(({ site, parameters }) =>
      Object.entries(parameters).map(([name, value]) => [`${site.path}.${name}`, value] as const),
    )
    return new Map(named)
  }

  /** Paths of the modules that the adapter acts on. */
  get sitePaths(): readonly string[] {
    return [...this.#attachments.keys()]
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
        const { plan, parameters, stream } = this.#attachments.get(site.path)!
        const dropoutStream = stream + Object.keys(parameters).length
        return plan.forward({ site, x, base, parameters, forward, stream: dropoutStream })
      },
    }
  }

  get isMerged(): boolean {
    return this.#originals !== undefined
  }

  /**
   * Replaces the weight of every site by one that computes the same without the adapter. Programs traced before keep
   * the old weights. {@link unmerge} puts the very same old tensors back.
   * @throws ERR_HEDDLE_ARGUMENT when the method cannot be merged or is merged already
   */
  async merge(): Promise<void> {
    if (this.#originals) throw misuse('merge', 'an adapter that is not merged', 'a merged one')
    const originals = new Map<Site, Tensor>()
    for (const { site, plan, parameters } of this.#attachments.values()) {
      const { merged } = plan
      if (!merged) throw misuse('merge', 'a method that can be merged', this.method.name)
      if (site === this.model.outputSite && this.model.embeddingTied)
        throw misuse('merge', 'an output projection of its own', 'one that shares its weight with the embedding')
      const step = program(() => merged(read(site.weight), parameters))
      const weight = await step()
      step.dispose()
      originals.set(site, site.weight)
      site.weight = weight
    }
    this.#originals = originals
  }

  /** Undoes {@link merge} exactly. */
  unmerge(): void {
    if (!this.#originals) throw misuse('unmerge', 'a merged adapter', 'one that is not merged')
    for (const [site, weight] of this.#originals) {
      site.weight.dispose()
      site.weight = weight
    }
    this.#originals = undefined
  }

  /** Frees the adapter's tensors. */
  dispose(): void {
    for (const value of this.parameters().values()) value.dispose()
  }

  async #initialise(seed: number): Promise<void> {
    const initialise = program(async (seedSym) => {
      for (const { plan, parameters, stream } of this.#attachments.values()) {
        for (const [i, [name, { init }]] of Object.entries(plan.parameters).entries())
          assign(parameters[name]!, init(seedSym!, stream + i))
        await pause()
      }
      return []
    })
    await initialise(seedTensor(seed))
    initialise.dispose()
  }
}

/** A 53-bit seed as the two words that random operators take. */
export const seedTensor = (seed: number): Tensor =>
  tensor(Uint32Array.of(seed >>> 0, Math.floor(seed / 2 ** 32) >>> 0), [2])

const misuse = (place: string, expected: string, got: string): HeddleError =>
  new HeddleError('ERR_HEDDLE_ARGUMENT', { place: `Adapter.${place}`, expected, got })
