/** A parametrization attached to a model: its trainable tensors at every chosen site, and its place in the forward pass. */
import { HeddleError } from '../errors.js'
import { computed, copied } from '../graph/computed.js'
import { copy, transpose } from '../graph/ops/index.js'
import { pause } from '../graph/pause.js'
import { assign, read, type Sym } from '../graph/sym.js'
import type { Network } from '../nn/network.js'
import type { Site, SiteHook } from '../nn/site.js'
import { seedTensor } from '../tensor/seed.js'
import { type Tensor, zeros } from '../tensor/tensor.js'
import type { Parametrization, SitePart, SitePlan } from './parametrization.js'
import { readMethod, readParameters, type SaveOptions, writeAdapter } from './peft_folder.js'
import { selectSites } from './target_modules.js'

/** What an adapter has at one site. */
export interface Attachment {
  readonly site: Site
  /** Absent where only {@link trained} parts are. */
  readonly plan?: SitePlan
  readonly parameters: Readonly<Record<string, Tensor>>
  /** First random stream of this site: one per parameter, then one for dropout. */
  readonly stream: number
  /** Copies of the site's own tensors that are trained in their place. */
  readonly trained: Readonly<Partial<Record<SitePart, Tensor>>>
  /** Parameters whose initial values the plan prepared. */
  readonly prepared?: ReadonlySet<string>
  /** The frozen weight that this adapter works on instead of the site's. */
  readonly weight?: Tensor
  /** Where there is one: the values that the parameters began with. */
  readonly initial?: Readonly<Record<string, Tensor>>
}

/** Options of {@link Adapter.attach}. */
export interface AttachOptions {
  /** Seed of the initial values; default 0. */
  readonly seed?: number
  /** Written into the adapter's folder as `base_model_name_or_path`, which PEFT uses to find the base model. */
  readonly baseModel?: string
  /** PEFT's name of what the model is for, written into the adapter's folder; default `CAUSAL_LM`. */
  readonly taskType?: string
}

/** A method attached to a network; made by {@link Adapter.attach} or {@link Adapter.load}. */
export class Adapter {
  readonly method: Parametrization
  readonly model: Network
  readonly baseModel: string
  readonly taskType: string
  readonly #attachments: ReadonlyMap<string, Attachment>
  #originals: Map<Site, Original> | undefined

  private constructor(
    model: Network,
    method: Parametrization,
    attachments: ReadonlyMap<string, Attachment>,
    { baseModel = '', taskType = 'CAUSAL_LM' }: AttachOptions,
  ) {
    this.model = model
    this.baseModel = baseModel
    this.taskType = taskType
    this.method = method
    this.#attachments = attachments
  }

  /**
   * Attaches a method to the sites that its config selects and initialises its parameters.
   * @throws ERR_HEDDLE_ARGUMENT when no site matches or the method cannot act at one of them
   */
  static async attach(model: Network, method: Parametrization, options: AttachOptions = {}): Promise<Adapter> {
    const sites = sitesOf(model)
    const targets = new Set(selectSites(sites, method.targetModules, method.targetFilter))
    const attachments = new Map<string, Attachment>()
    const { seed = 0 } = options
    let stream = 0
    try {
      for (const site of sites) {
        const parts = method.trainedParts?.(site, targets.has(site)) ?? []
        if (!targets.has(site) && parts.length === 0) continue
        const trained = await copiesOf(site, parts)
        const plan = targets.has(site) ? method.plan(site) : undefined
        const own = plan ? await prepared(plan, site, { seed, stream }) : { parameters: {} }
        attachments.set(site.path, { site, ...(plan ? { plan } : {}), stream, trained, ...own })
        if (plan) stream += Object.keys(plan.parameters).length + 1
        await pause()
      }
      await initialise([...attachments.values()], seed)
    } catch (error) {
      for (const attachment of attachments.values()) disposeAttachment(attachment)
      throw error
    }
    return new Adapter(model, method, attachments, options)
  }

  /**
   * Attaches the adapter of a PEFT folder to its base model.
   * @throws ERR_HEDDLE_IO when a file is missing, ERR_HEDDLE_FORMAT when the folder asks for something that is not
   *   supported, or its tensors are not those of the chosen modules
   */
  static async load(model: Network, folder: string, options: AttachOptions = {}): Promise<Adapter> {
    const { method, taskType } = await readMethod(folder)
    const adapter = await Adapter.attach(model, method, { taskType, ...options })
    try {
      await readParameters(adapter, folder)
      return adapter
    } catch (error) {
      adapter.dispose()
      throw error
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

  /** Trainable tensors under their names in the adapter's file, `<module path>.<name>`, in site order. */
  parameters(): Map<string, Tensor> {
    const named = [...this.#attachments.values()].flatMap(({ site, plan, parameters, trained }) => {
      const own = Object.entries(parameters).map(([name, value]) => [`${site.path}.${name}`, value] as const)
      // PEFT wraps a module that it adapts: the module's own tensors are then inside of `base_layer`.
      const inside = plan ? `${site.path}.base_layer` : site.path
      return [...own, ...Object.entries(trained).map(([part, value]) => [`${inside}.${part}`, value] as const)]
    })
    return new Map(named)
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
          parameters,
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
        const { weight, bias } = await mergedTensors(attachment)
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
    for (const attachment of this.#attachments.values()) disposeAttachment(attachment)
  }

  #expectMergeable({ site, plan }: Attachment): void {
    if (plan && !plan.merged)
      throw misuse('merge', 'a method that can be merged', `${this.method.name} at ${site.path}`)
    const isShared = site === this.model.outputSite || site.kind === 'embedding'
    if (isShared && this.model.embeddingTied)
      throw misuse('merge', 'an output projection of its own', `${site.path}, which shares its weight`)
  }
}

/** What a merge replaces at a site. */
type Original = Pick<Site, SitePart | 'structure'>

/** Every site that an adapter can act on; an output projection that shares the embedding's weight is one of them. */
function sitesOf({ sites, outputSite: output }: Network): Site[] {
  return [...sites.values(), ...(output && !sites.has(output.path) ? [output] : [])]
}

async function copiesOf(site: Site, parts: readonly SitePart[]): Promise<Partial<Record<SitePart, Tensor>>> {
  const copies: Partial<Record<SitePart, Tensor>> = {}
  for (const part of parts) {
    const original = site[part]
    if (original) copies[part] = await copied(original)
  }
  return copies
}

/** Room for a site's parameters, with what has to be known before the others are initialised. */
async function prepared(
  plan: SitePlan,
  site: Site,
  { seed, stream }: { readonly seed: number; readonly stream: number },
): Promise<Pick<Attachment, 'parameters' | 'prepared' | 'weight' | 'initial'>> {
  const { values = {}, weight } = plan.prepare ? await plan.prepare({ weight: site.weight, seed, stream }) : {}
  const parameters = Object.fromEntries(
    Object.entries(plan.parameters).map(([name, { shape }]) => [name, values[name] ?? zeros(shape)]),
  )
  const names = new Set(Object.keys(values))
  if (!weight) return { parameters, prepared: names }
  const initial: Record<string, Tensor> = {}
  for (const [name, value] of Object.entries(values)) initial[name] = await copied(value)
  return { parameters, prepared: names, weight, initial }
}

/** Gives the parameters that are not prepared yet their declared initial values. */
async function initialise(attachments: readonly Attachment[], seed: number): Promise<void> {
  using words = seedTensor(seed)
  await computed(
    async (seedSym) => {
      for (const { site, plan, parameters, stream, weight = site.weight, prepared: known } of attachments) {
        const values: Record<string, Sym> = {}
        for (const [i, [name, { init }]] of Object.entries(plan?.parameters ?? {}).entries()) {
          const target = parameters[name]!
          if (known?.has(name)) values[name] = read(target)
          else {
            values[name] = init({ seed: seedSym!, stream: stream + i, weight: () => read(weight), values })
            assign(target, values[name])
          }
        }
        await pause()
      }
      return []
    },
    [words],
  )
}

/** The site with the adapter's tensors in the place of its own; the site itself where there are none. */
function replaced(site: Site, { trained, weight }: Attachment): Site {
  if (!weight && !trained.weight && !trained.bias) return site
  return { ...site, weight: trained.weight ?? weight ?? site.weight, bias: trained.bias ?? site.bias }
}

/** New tensors for the merged site; the bias only where it is another. */
async function mergedTensors(attachment: Attachment): Promise<{ weight: Tensor; bias?: Tensor }> {
  const { plan, parameters, trained } = attachment
  const part = replaced(attachment.site, attachment)
  return await computed(() => {
    const [weight, bias] = [weightOf(part), part.bias && read(part.bias)]
    const merged = plan?.merged?.({ weight, bias, parameters }) ?? { weight: copy(weight) }
    const newBias = merged.bias ?? (trained.bias && copy(read(trained.bias)))
    return { weight: merged.weight, ...(newBias ? { bias: newBias } : {}) }
  })
}

/** The site's weight as it is stored, written out where it has a structure. */
function weightOf({ weight, structure, transposed }: Site): Sym {
  if (!structure) return read(weight)
  return transposed ? transpose(structure.toDense()) : structure.toDense()
}

function disposeAttachment({ parameters, trained, weight, initial = {} }: Attachment): void {
  for (const value of [...Object.values(parameters), ...Object.values(trained), ...Object.values(initial)])
    value.dispose()
  weight?.dispose()
}

const misuse = (place: string, expected: string, got: string): HeddleError =>
  new HeddleError('ERR_HEDDLE_ARGUMENT', { place: `Adapter.${place}`, expected, got })
