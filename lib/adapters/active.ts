/** Which adapters take part in a call: none, one, or several whose updates add up. */
import { HeddleError } from '../errors.js'
import type { SiteHook } from '../nn/site.js'
import type { Adapter } from './adapter.js'

/** The adapter of a call, or several that are active at once. */
export type ActiveAdapters = Adapter | readonly Adapter[]

/**
 * The part of these adapters in a forward pass; undefined for none. Several add up, as with PEFT's `set_adapter` of a
 * list: each takes the output of those before it for the base's. DoRA therefore scales what comes before it.
 * @throws ERR_HEDDLE_ARGUMENT when two of them put a tensor of their own in the place of the same one
 */
export function hookOf(active: ActiveAdapters | undefined): SiteHook | undefined {
  const adapters = active === undefined ? [] : [active].flat()
  if (adapters.length <= 1) return adapters[0]?.hook
  expectCompatible(adapters)
  // What replaces the site's own tensors is the base of the others.
  const ordered = adapters.toSorted((a, b) => Number(replacesAny(b)) - Number(replacesAny(a)))
  return ordered.map(({ hook }) => hook).reduce(after)
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
  const taken = new Set<string>()
  for (const adapter of adapters)
    for (const name of replacedBy(adapter)) {
      if (taken.has(name))
        throw new HeddleError('ERR_HEDDLE_ARGUMENT', {
          place: 'adapter',
          expected: 'adapters that can be active together',
          got: `two with a ${name} of their own`,
        })
      taken.add(name)
    }
}
