/** Which adapters take part in a call: none, one, or several whose updates add up. */
import { HeddleError } from '../errors.js'
import type { Network } from '../nn/network.js'
import type { SiteHook } from '../nn/site.js'
import type { Tensor } from '../tensor/tensor.js'
import { Adapter } from './adapter.js'

/** The adapter of a call, or several that are active at once. */
export type ActiveAdapters = Adapter | readonly Adapter[]

/** What a call needs of the adapters that are active in it. */
export interface ActiveAdapter {
  readonly model: Network
  readonly isMerged: boolean
  readonly hook: SiteHook
  /** Everything that is trained, by name. */
  parameters(): ReadonlyMap<string, Tensor>
}

/** True for an adapter and for a list of adapters. */
export const isActiveAdapters = (value: unknown): value is ActiveAdapters =>
  value instanceof Adapter || (Array.isArray(value) && value.every((each) => each instanceof Adapter))

/** Lists in use, by their first adapter: the same adapters are the same thing, and what was compiled for them is kept. */
const lists = new WeakMap<Adapter, { readonly adapters: readonly Adapter[]; readonly active: ActiveAdapter }[]>()

/**
 * These adapters as one; undefined for none. Several add up, as with PEFT's `set_adapter` of a list: each takes the
 * output of those before it for the base's. DoRA therefore scales what comes before it.
 * @throws ERR_HEDDLE_ARGUMENT when they are of different models, or two of them put a tensor of their own in the place
 *   of the same one
 */
export function activeOf(choice: ActiveAdapters | undefined): ActiveAdapter | undefined {
  const adapters = choice === undefined ? [] : [choice].flat()
  const [first, ...others] = adapters
  if (!first || others.length === 0) return first
  const known = lists.get(first) ?? []
  lists.set(first, known)
  const same = known.find(
    (list) => list.adapters.length === adapters.length && list.adapters.every((each, i) => each === adapters[i]),
  )
  if (same) return same.active
  const active = together(first, adapters)
  known.push({ adapters, active })
  return active
}

function together(first: Adapter, adapters: readonly Adapter[]): ActiveAdapter {
  expectCompatible(adapters)
  // What replaces the site's own tensors is the base of the others.
  const ordered = adapters.toSorted((a, b) => Number(replacesAny(b)) - Number(replacesAny(a)))
  return {
    model: first.model,
    get isMerged() {
      return adapters.some(({ isMerged }) => isMerged)
    },
    hook: ordered.map(({ hook }) => hook).reduce(after),
    parameters: () =>
      new Map(adapters.flatMap((each, i) => [...each.parameters()].map(([name, value]) => [`${i}.${name}`, value]))),
  }
}

/** Both hooks, the second on the output of the first. */
function after(first: SiteHook, second: SiteHook): SiteHook {
  return {
    targets: (site) => first.targets(site) || second.targets(site),
    apply: (site, x, base, forward) => {
      const inner = (): ReturnType<typeof base> => (first.targets(site) ? first.apply(site, x, base, forward) : base())
      if (!second.targets(site)) return inner()
      const onInner: typeof base = (part = site, input = x) =>
        part === site && input === x ? inner() : base(part, input)
      return second.apply(site, x, onInner, forward)
    },
  }
}

const replacesAny = ({ attachments }: Adapter): boolean =>
  [...attachments.values()].some(({ weight, trained }) => weight !== undefined || Object.keys(trained).length > 0)

/** The tensors that an adapter puts in the place of the model's. */
const replacedBy = ({ attachments }: Adapter): string[] =>
  [...attachments.values()].flatMap(({ site, weight, trained }) => [
    ...(weight ? [`${site.path}.weight`] : []),
    ...Object.keys(trained).map((part) => `${site.path}.${part}`),
  ])

function expectCompatible(adapters: readonly Adapter[]): void {
  if (new Set(adapters.map(({ model }) => model)).size > 1) throw misuse('adapters of one model', 'of several')
  const taken = new Set<string>()
  for (const adapter of adapters)
    for (const name of replacedBy(adapter)) {
      if (taken.has(name)) throw misuse('adapters that can be active together', `two with a ${name} of their own`)
      taken.add(name)
    }
}

const misuse = (expected: string, got: string): HeddleError =>
  new HeddleError('ERR_HEDDLE_ARGUMENT', { place: 'adapter', expected, got })
