/** EVA's search: principal components of what goes into modules, batch by batch until those that count have converged. */
import { HeddleError } from '../../errors.js'
import { computed, copied } from '../../graph/computed.js'
import { mul } from '../../graph/ops/elementwise.js'
import { gatherRows } from '../../graph/ops/index.js'
import { reshape, sum } from '../../graph/ops/reduce.js'
import { pause } from '../../graph/pause.js'
import { IncrementalSvd } from '../../linalg/incremental_svd.js'
import type { Site } from '../../nn/site.js'
import type { BatchArray } from '../../objectives/objective.js'
import { observeInputs, type SharedInput } from '../../observers/site_inputs.js'
import { type Tensor, tensor } from '../../tensor/tensor.js'
import type { ResolveContext } from '../parametrization.js'

/** Modules that the same value goes into, and its components. */
export interface EvaGroup {
  /** The first owns the components: its rank is never below the others'. */
  readonly sites: readonly Site[]
  readonly svd: IncrementalSvd
  /** How many components there are. */
  readonly most: number
  /** Which of them were the same in the last two batches; none before two. */
  converged: readonly boolean[]
  /** Share of the variance along each; none before a batch. */
  ratios: readonly number[]
}

/** What {@link principalComponents} is asked for. */
export interface EvaSearch {
  readonly rho: number
  readonly tau: number
  readonly use_label_mask: boolean
  readonly max_batches: number
  /** Subspace iterations of a randomised decomposition; undefined: exact. */
  readonly iterations: number | undefined
  /** The rank that a module has without redistribution. */
  readonly rankOf: (site: Site) => number
}

/**
 * Runs batches, over and over, until the components that the ranks call for have converged. The caller frees the groups.
 * @throws ERR_HEDDLE_ARGUMENT when there is no batch, or a whole pass has too few tokens for a module
 */
export async function principalComponents(
  { network, calibration, watch: { signal }, report, warn }: ResolveContext,
  sites: readonly Site[],
  search: EvaSearch,
): Promise<{ readonly groups: readonly EvaGroup[]; readonly ranks: ReadonlyMap<Site, number> }> {
  const groups = new Map<Site, EvaGroup>()
  let ranks: ReadonlyMap<Site, number> = new Map()
  let [seen, current] = [0, -1]
  const isDone = ({ sites: [owner], converged, most }: EvaGroup): boolean => {
    const needed = ranks.get(owner!) ?? most
    return needed === 0 || (converged.length > 0 && converged.slice(0, needed).every(Boolean))
  }
  /** Between two batches: the ranks by what is known now, and whether anything is left to do. */
  const isSettled = (): boolean => {
    const all = [...groups.values()]
    if (all.length === 0 || all.some(({ ratios }) => ratios.length === 0)) return false
    ranks = redistributed(all, search)
    return all.every(isDone) || seen >= search.max_batches
  }
  const modulesWhere = (is: (group: EvaGroup) => boolean): number =>
    [...groups.values()].filter(is).reduce((count, group) => count + group.sites.length, 0)
  const onBatch = (): void => report({ unit: 'modules', done: modulesWhere(isDone), total: sites.length })
  const visit = async (shared: SharedInput): Promise<'stop' | undefined> => {
    if (shared.batch !== current) {
      await pause()
      if (isSettled()) return 'stop'
      await pause()
      current = shared.batch
      seen += 1
    }
    const owner = shared.sites[0]!
    const group = groups.get(owner) ?? groupOf(shared.sites, search)
    groups.set(owner, group)
    if (!isDone(group)) await take(group, shared, search, signal)
    return undefined
  }
  try {
    do {
      const before = seen
      current = -1
      await observeInputs(network, sites, calibration(), visit, { signal, onBatch })
      const poor = [...groups.values()].find(({ ratios }) => ratios.length === 0)
      if (seen === 0 || poor) throw tooLittle(poor)
      if (before === seen) break
    } while (!isSettled())
    const open = modulesWhere((group) => !isDone(group))
    if (open > 0) warn(notConverged(open, sites.length, seen))
    return { groups: [...groups.values()], ranks }
  } catch (error) {
    for (const { svd } of groups.values()) svd.dispose()
    throw error
  }
}

function groupOf(sites: readonly Site[], { rho, rankOf, iterations }: EvaSearch): EvaGroup {
  const most = Math.max(...sites.map((site) => roundHalfEven(rankOf(site) * rho)))
  return { sites, most, svd: new IncrementalSvd({ rank: most, iterations }), converged: [], ratios: [] }
}

/** Python's round. */
function roundHalfEven(value: number): number {
  const below = Math.floor(value)
  return value - below === 0.5 ? below + (below % 2) : Math.round(value)
}

/** A step of a group's components; batches with fewer tokens than components are left out, as in PEFT. */
async function take(
  group: EvaGroup,
  { input, arrays }: SharedInput,
  { tau, ...search }: EvaSearch,
  signal: AbortSignal | undefined,
): Promise<void> {
  const { svd, most } = group
  using rows = await rowsOf(input, arrays, search.use_label_mask)
  if (rows.shape[0]! < most || rows.shape[1]! < most) return
  using before = svd.rows > 0 ? await copied(svd.vh) : undefined
  await svd.update(rows, { signal })
  if (before) {
    using cosines = await computed((old, now) => sum(mul(old!, now!), { axes: [1] }), [before, svd.vh])
    group.converged = [...(await cosines.data())].map((cosine) => Number(cosine) >= tau)
  }
  using ratios = await svd.explainedVarianceRatio()
  // Without any variance the shares are no numbers.
  group.ratios = [...(await ratios.data())].map((ratio) => Number(ratio) || 0)
}

/** The input's rows `[tokens, in]` that count. */
async function rowsOf(
  input: Tensor,
  arrays: Readonly<Record<string, BatchArray>>,
  useLabels: boolean,
): Promise<Tensor> {
  const width = input.shape.at(-1)!
  const counted = countedTokens(arrays, useLabels)
  if (!counted || counted.length !== input.size / width) return computed((x) => reshape(x!, [-1, width]), [input])
  using index = tensor(Int32Array.from(counted.flatMap((counts, i) => (counts ? [i] : []))))
  return await computed((x, rows) => gatherRows(reshape(x!, [-1, width]), rows!), [input, index])
}

/** No padding, and of texts with targets only what is a target; undefined where the arrays do not say. */
function countedTokens(
  { segments, mask, targets }: Readonly<Record<string, BatchArray>>,
  useLabels: boolean,
): boolean[] | undefined {
  const all = segments ?? mask
  if (!all) return undefined
  const length = all.shape.at(-1)!
  const isToken = Array.from(all.data as Int32Array, (value) => (segments ? Number(value) >= 0 : Number(value) !== 0))
  if (!useLabels || !segments || targets?.data.length !== isToken.length) return isToken
  // Targets stand one place before their tokens; the first token of a text is none, and goes with the second.
  const isFirst = (i: number): boolean => i % length === 0 || segments.data[i] !== segments.data[i - 1]
  return isToken.map((counts, i) => counts && Number(targets.data[isFirst(i) ? i : i - 1]) >= 0)
}

/** As many components in all as ranks, those of the largest shares. */
function redistributed(groups: readonly EvaGroup[], { rankOf }: EvaSearch): ReadonlyMap<Site, number> {
  const owned = groups.flatMap((group) => group.sites.map((site, i) => ({ site, group, isOwner: i === 0 })))
  const inOrder = [...owned.filter(({ isOwner }) => isOwner), ...owned.filter(({ isOwner }) => !isOwner)]
  const budget = owned.reduce((total, { site }) => total + rankOf(site), 0)
  const shares = inOrder.flatMap(({ site, group }) => group.ratios.map((ratio) => ({ site, ratio })))
  const ranks = new Map(owned.map(({ site }) => [site, 0]))
  for (const { site } of shares.sort((a, b) => b.ratio - a.ratio).slice(0, budget))
    ranks.set(site, ranks.get(site)! + 1)
  for (const { sites } of groups)
    for (const site of sites.slice(1)) {
      const [own, first] = [ranks.get(site)!, ranks.get(sites[0]!)!]
      if (first < own) ranks.set(sites[0]!, own).set(site, first)
    }
  return ranks
}

const notConverged = (open: number, all: number, batches: number): string =>
  `${open} of ${all} modules have components that had not converged after ${batches} batches; they begin with them as ` +
  'they are. Give more data, a higher eva_config.max_batches, or a lower eva_config.tau.'

const tooLittle = (poor: EvaGroup | undefined): HeddleError =>
  new HeddleError('ERR_HEDDLE_ARGUMENT', {
    place: poor ? `eva: ${poor.sites[0]!.path}` : 'eva: calibration',
    expected: poor ? `a batch of at least ${poor.most} tokens, and as many channels` : 'a batch',
    got: poor ? 'none' : 'no data',
    hint: 'Give larger batches, or smaller r or eva_config.rho.',
  })
