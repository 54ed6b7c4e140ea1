/** What goes into the sites of a network while data runs through it. */
import { pause } from '../graph/pause.js'
import { program } from '../graph/program.js'
import type { Sym } from '../graph/sym.js'
import type { Network } from '../nn/network.js'
import type { Forward, Site, SiteHook } from '../nn/site.js'
import { arrayTensors, namedInputs } from '../objectives/batch_tensors.js'
import type { BatchArray } from '../objectives/objective.js'
import type { Tensor } from '../tensor/tensor.js'
import type { Calibration, Watch } from './calibration.js'

/** Sites that the very same value goes into, such as q, k and v, and that value. */
export interface SharedInput {
  readonly sites: readonly Site[]
  /** `[..., in]`, as it goes into the first of them; freed after the visit. */
  readonly input: Tensor
  /** The batch's arrays, by the objective's names. */
  readonly arrays: Readonly<Record<string, BatchArray>>
  /** Counts from 0. */
  readonly batch: number
}

/** Options of {@link observeInputs}. */
export interface ObserveOptions extends Watch {
  /** An adapter's part in the forward pass. */
  readonly hook?: SiteHook | undefined
}

/**
 * Runs the batches through the network, without dropout, and shows the inputs of the sites, one group of sites after
 * the other. A visit may return `stop`.
 */
export async function observeInputs(
  network: Network,
  sites: readonly Site[],
  { objective, batches, batchCount = 0, precision = 'f32' }: Calibration,
  visit: (shared: SharedInput) => Promise<'stop' | undefined>,
  { hook, signal, onBatch }: ObserveOptions = {},
): Promise<void> {
  const groups: Site[][] = []
  const observed = program(
    async (...arrays) => {
      const recorder = recording(new Set(sites), hook)
      const forward: Forward = { precision, training: false, hook: recorder.hook }
      await objective.loss(network, namedInputs(objective, arrays), forward)
      groups.splice(0, groups.length, ...recorder.seen.values())
      return [...recorder.seen.keys()]
    },
    { device: network.device },
  )
  try {
    let batch = 0
    for await (const each of batches()) {
      const arrays = objective.arrays(each)
      const inputs = arrayTensors(objective, arrays)
      const values = await observed.run(inputs, { signal }).finally(() => {
        for (const used of inputs) used.dispose()
      })
      if (!(await visitAll(values, groups, (shared) => visit({ ...shared, arrays, batch })))) return
      batch += 1
      onBatch?.(batch, batchCount)
    }
  } finally {
    observed.dispose()
  }
}

async function visitAll(
  values: readonly Tensor[],
  groups: readonly (readonly Site[])[],
  visit: (shared: Pick<SharedInput, 'sites' | 'input'>) => Promise<'stop' | undefined>,
): Promise<boolean> {
  try {
    for (const [index, input] of values.entries()) {
      if ((await visit({ sites: groups[index]!, input })) === 'stop') return false
      input.dispose()
      await pause()
    }
    return true
  } finally {
    for (const input of values) input.dispose()
  }
}

/** A hook that notes what goes into the sites, around another one. */
function recording(
  sites: ReadonlySet<Site>,
  inner: SiteHook | undefined,
): { readonly hook: SiteHook; readonly seen: ReadonlyMap<Sym, Site[]> } {
  const seen = new Map<Sym, Site[]>()
  const hook: SiteHook = {
    targets: (site) => sites.has(site) || (inner?.targets(site) ?? false),
    apply: (site, x, base, forward) => {
      if (sites.has(site)) seen.set(x, [...(seen.get(x) ?? []), site])
      return inner?.targets(site) ? inner.apply(site, x, base, forward) : base()
    },
  }
  return { hook, seen }
}
