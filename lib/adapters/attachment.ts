/** What an adapter has at one site, and how its tensors begin. */
import { HeddleError, throwIfAborted } from '../errors.js'
import { computed } from '../graph/computed.js'
import { pause } from '../graph/pause.js'
import { assign, read, type Sym } from '../graph/sym.js'
import type { Network } from '../nn/network.js'
import type { Site } from '../nn/site.js'
import { sameShape, shapeText } from '../tensor/dtype.js'
import { seedTensor } from '../tensor/seed.js'
import { type Tensor, zeros } from '../tensor/tensor.js'
import { maskBytes, maskName } from './masked_weight.js'
import { copiesOf, freedOnFailure, type Own } from './owned_values.js'
import type {
  AttachProgress,
  BufferDeclaration,
  Parametrization,
  SharedDeclaration,
  SitePart,
  SitePlan,
} from './parametrization.js'
import { selectSites } from './target_modules.js'

/** What an adapter has at one site. */
export interface Attachment {
  readonly site: Site
  /** Absent where only {@link trained} parts are. */
  readonly plan?: SitePlan
  readonly parameters: Readonly<Record<string, Tensor>>
  /** Frozen tensors of the method. */
  readonly buffers: Readonly<Record<string, Tensor>>
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

/** Every site that an adapter can act on; an output projection that shares the embedding's weight is one of them. */
export function networkSites({ sites, outputSite: output }: Network): Site[] {
  return [...sites.values(), ...(output && !sites.has(output.path) ? [output] : [])]
}

/** What all sites of an adapter share, by name. */
export type SharedTensors = Readonly<
  Record<string, Pick<SharedDeclaration, 'isTrained' | 'isStored'> & { readonly tensor: Tensor }>
>

/** Streams of what is shared, behind those of any number of sites. */
const firstSharedStream = 2 ** 40

/** Makes what the sites share. */
export const madeShared = (
  declared: Readonly<Record<string, SharedDeclaration>>,
  seed: number,
): Promise<SharedTensors> =>
  freedOnFailure(async (own) => {
    const made: Record<string, SharedTensors[string]> = {}
    for (const [index, [name, { make, isTrained, isStored = true }]] of Object.entries(declared).entries())
      made[name] = { isTrained, isStored, tensor: own(await make({ seed, stream: firstSharedStream + index })) }
    return made
  })

/** All that an adapter has, at the sites and above them. */
export interface Attached {
  /** By path. */
  readonly attachments: Map<string, Attachment>
  readonly shared: SharedTensors
}

/** Frees what an adapter has. */
export function disposeAttached({ attachments, shared }: Attached): void {
  for (const attachment of attachments.values()) disposeAttachment(attachment)
  for (const { tensor } of Object.values(shared)) tensor.dispose()
}

/** Options of {@link attachMethod}. */
export interface AttachSettings {
  readonly seed: number
  readonly signal?: AbortSignal | undefined
  readonly onProgress?: ((progress: AttachProgress) => void) | undefined
  /** A file will bring the tensors. */
  readonly isLoading?: boolean
}

/** What the method has at every site that it acts on, or trains parts of, initialised; all freed where that fails. */
export async function attachMethod(
  model: Network,
  method: Parametrization,
  settings: AttachSettings,
): Promise<Attached> {
  const { seed } = settings
  const targets = selectSites(networkSites(model), method.targetModules, method.targetFilter)
  const shared = await madeShared(method.shared?.(targets) ?? {}, seed)
  const attached: Attached = { attachments: new Map(), shared }
  try {
    await attachSites(model, method, { ...settings, ...attached, targets: new Set(targets) })
    await initialise([...attached.attachments.values()], seed)
    return attached
  } catch (error) {
    disposeAttached(attached)
    throw error
  }
}

/** Adds one site's attachment after the other. */
async function attachSites(
  model: Network,
  method: Parametrization,
  { targets, attachments, signal, onProgress, ...source }: AttachSettings & Attached & { readonly targets: Set<Site> },
): Promise<void> {
  const masked = new Set(method.maskedModules)
  let [stream, done] = [0, 0]
  for (const site of networkSites(model)) {
    const parts = method.trainedParts?.(site, targets.has(site)) ?? []
    if (!targets.has(site) && parts.length === 0 && !masked.has(site.path)) continue
    throwIfAborted(signal, `Adapter.attach: ${method.name}`)
    const plan = targets.has(site) ? method.plan(site) : undefined
    const attachment = await attachTo(site, { ...source, plan, parts, stream })
    attachments.set(site.path, masked.has(site.path) ? withMask(attachment) : attachment)
    if (plan) {
      stream += Object.keys(plan.parameters).length + 1
      done += 1
      if (plan.prepare) onProgress?.({ method: method.name, unit: 'modules', done, total: targets.size })
    }
    await pause()
  }
}

/** With room for the mask of the module's weight. */
const withMask = (attachment: Attachment): Attachment => ({
  ...attachment,
  buffers: { ...attachment.buffers, [maskName]: zeros([maskBytes(attachment.site)], 'u8') },
})

/** What {@link attachTo} makes an attachment of. */
export interface AttachmentSource extends Pick<AttachSettings, 'seed' | 'isLoading'> {
  /** Absent where only parts of the site are trained. */
  readonly plan: SitePlan | undefined
  readonly parts: readonly SitePart[]
  readonly stream: number
  readonly shared: SharedTensors
}

/** A site's tensors, prepared where the plan says so and otherwise zero: see {@link initialise}. All freed where that fails. */
export const attachTo = (site: Site, source: AttachmentSource): Promise<Attachment> =>
  freedOnFailure(async (own) => {
    const { plan, parts, stream } = source
    const originals = parts.flatMap((part) => (site[part] ? [[part, site[part]] as const] : []))
    const trained = own(await copiesOf(Object.fromEntries(originals)))
    const tensors = plan ? await prepared(plan, site, source, own) : { parameters: {}, buffers: {} }
    return { site, ...(plan ? { plan } : {}), stream, trained, ...tensors }
  })

/** Room for a site's parameters, with what has to be known before the others are initialised. */
async function prepared(
  plan: SitePlan,
  site: Site,
  { seed, stream, shared, isLoading }: AttachmentSource,
  own: Own,
): Promise<Pick<Attachment, 'parameters' | 'buffers' | 'prepared' | 'weight' | 'initial'>> {
  const common = Object.fromEntries(Object.entries(shared).map(([name, { tensor }]) => [name, tensor]))
  const prepare = isLoading && plan.restoredWeight ? undefined : plan.prepare
  const { values = {}, weight } = (await prepare?.({ weight: site.weight, seed, stream, shared: common })) ?? {}
  own(values)
  if (weight) own(weight)
  const filledBy = (name: string, { shape, dtype }: BufferDeclaration): Tensor => {
    const value = values[name]
    if (value && !sameShape(value.shape, shape))
      throw new HeddleError('ERR_HEDDLE_SHAPE', {
        place: `${site.path}.${name}`,
        expected: shapeText(shape),
        got: shapeText(value.shape),
        hint: 'Was the method made for another model?',
      })
    return value ?? own(zeros(shape, dtype))
  }
  const each = (declared: Readonly<Record<string, BufferDeclaration>>): Record<string, Tensor> =>
    Object.fromEntries(Object.entries(declared).map(([name, one]) => [name, filledBy(name, one)]))
  const [parameters, buffers] = [each(plan.parameters), each(plan.buffers ?? {})]
  const names = new Set(Object.keys(values))
  if (!weight) return { parameters, buffers, prepared: names }
  const initial = Object.fromEntries(Object.entries(parameters).filter(([name]) => names.has(name)))
  return { parameters, buffers, prepared: names, weight, initial: await copiesOf(initial) }
}

/** Gives the parameters that are not prepared yet their declared initial values. */
export async function initialise(attachments: readonly Attachment[], seed: number): Promise<void> {
  using words = seedTensor(seed)
  await computed(
    async (seedSym) => {
      for (const attachment of attachments) {
        traceInitial(attachment, seedSym!)
        await pause()
      }
      return []
    },
    [words],
  )
}

function traceInitial(attachment: Attachment, seed: Sym): void {
  const { site, plan, parameters, stream, weight = site.weight, prepared: known } = attachment
  const values: Record<string, Sym> = {}
  for (const [i, [name, { init }]] of Object.entries(plan?.parameters ?? {}).entries()) {
    const target = parameters[name]!
    if (known?.has(name)) {
      values[name] = read(target)
      continue
    }
    if (!init)
      throw new HeddleError('ERR_HEDDLE_INTERNAL', {
        place: `${site.path}.${name}`,
        expected: 'an initial value, declared or prepared',
        got: 'none',
      })
    values[name] = init({ seed, stream: stream + i, weight: () => read(weight), values })
    assign(target, values[name])
  }
}

/** The site with the adapter's tensors in the place of its own; the site itself where there are none. */
export function replaced(site: Site, { trained, weight }: Attachment): Site {
  const own = trained.weight ?? weight
  if (!own && !trained.bias) return site
  return { ...site, bias: trained.bias ?? site.bias, ...(own ? { weight: own, structure: undefined } : {}) }
}

/** Frees an attachment's tensors. */
export function disposeAttachment({ parameters, buffers, trained, weight, initial = {} }: Attachment): void {
  const all = [parameters, buffers, trained, initial].flatMap((tensors) => Object.values(tensors))
  for (const value of all) value.dispose()
  weight?.dispose()
}
