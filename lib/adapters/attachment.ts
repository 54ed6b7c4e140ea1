/** What an adapter has at one site, and how its tensors begin. */
import { HeddleError } from '../errors.js'
import { computed, copied } from '../graph/computed.js'
import { pause } from '../graph/pause.js'
import { assign, read, type Sym } from '../graph/sym.js'
import type { Network } from '../nn/network.js'
import type { Site } from '../nn/site.js'
import { seedTensor } from '../tensor/seed.js'
import { type Tensor, zeros } from '../tensor/tensor.js'
import type { SharedDeclaration, SitePart, SitePlan } from './parametrization.js'

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
export async function madeShared(
  declared: Readonly<Record<string, SharedDeclaration>>,
  seed: number,
): Promise<SharedTensors> {
  const made: Record<string, SharedTensors[string]> = {}
  for (const [index, [name, { make, isTrained, isStored = true }]] of Object.entries(declared).entries())
    made[name] = { isTrained, isStored, tensor: await make({ seed, stream: firstSharedStream + index }) }
  return made
}

/** What {@link attachTo} makes an attachment of. */
export interface AttachmentSource {
  /** Absent where only parts of the site are trained. */
  readonly plan: SitePlan | undefined
  readonly parts: readonly SitePart[]
  readonly seed: number
  readonly stream: number
  readonly shared: SharedTensors
  /** A file will bring the tensors. */
  readonly isLoading?: boolean
}

/** A site's tensors, prepared where the plan says so and otherwise zero: see {@link initialise}. */
export async function attachTo(site: Site, source: AttachmentSource): Promise<Attachment> {
  const { plan, parts, stream } = source
  const trained = await copiesOf(site, parts)
  const own = plan ? await prepared(plan, site, source) : { parameters: {}, buffers: {} }
  return { site, ...(plan ? { plan } : {}), stream, trained, ...own }
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
  { seed, stream, shared, isLoading }: AttachmentSource,
): Promise<Pick<Attachment, 'parameters' | 'buffers' | 'prepared' | 'weight' | 'initial'>> {
  const common = Object.fromEntries(Object.entries(shared).map(([name, { tensor }]) => [name, tensor]))
  const prepare = isLoading && plan.restoredWeight ? undefined : plan.prepare
  const { values = {}, weight } = (await prepare?.({ weight: site.weight, seed, stream, shared: common })) ?? {}
  const parameters = Object.fromEntries(
    Object.entries(plan.parameters).map(([name, { shape }]) => [name, values[name] ?? zeros(shape)]),
  )
  const buffers = Object.fromEntries(
    Object.entries(plan.buffers ?? {}).map(([name, { shape, dtype }]) => [name, values[name] ?? zeros(shape, dtype)]),
  )
  const names = new Set(Object.keys(values))
  if (!weight) return { parameters, buffers, prepared: names }
  const initial: Record<string, Tensor> = {}
  for (const name of Object.keys(parameters)) if (names.has(name)) initial[name] = await copied(parameters[name]!)
  return { parameters, buffers, prepared: names, weight, initial }
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
