/** What LQ-LoRA learns from the whole network and from data: bits under a budget, and errors weighed by gradients. */
import { throwIfAborted } from '../../errors.js'
import { computed } from '../../graph/computed.js'
import { copy } from '../../graph/ops/index.js'
import { max } from '../../graph/ops/reduce.js'
import { pause } from '../../graph/pause.js'
import { read } from '../../graph/sym.js'
import type { Site } from '../../nn/site.js'
import { weightGradients } from '../../observers/weight_gradients.js'
import { allocateBits, type Choice } from '../../quant/allocate_bits.js'
import { bitsPerWeight } from '../../quant/normal_float.js'
import { elementCount } from '../../tensor/dtype.js'
import type { Tensor } from '../../tensor/tensor.js'
import { asMatrix, matrixShape } from '../low_rank_change.js'
import { foundValues, type Values } from '../owned_values.js'
import type { ResolveContext } from '../parametrization.js'
import { unsuited } from '../targeting.js'
import { configOf, defaultCandidates, type LqLoraCandidate, type LqLoraConfig } from './lq_lora_config.js'
import { decomposedWeight, missedBy, packedWeight } from './lq_lora_packed.js'

/** What was decided. */
export interface Decided {
  /** With the configuration of every module. */
  readonly config: LqLoraConfig
  /** Where data decided: the decomposition of every module's weight, by path. */
  readonly found?: ReadonlyMap<string, Decomposed>
}

/** A weight's decomposition, and how far it is from that weight, see {@link missedBy}. */
export interface Decomposed {
  readonly values: Values
  readonly missed: number
}

/** The bits of the modules are to be found. */
export const isToAllocate = ({ budget, configurations }: LqLoraConfig): boolean =>
  budget !== undefined && configurations === undefined

/** Without a budget each module is decomposed as soon as its gradients are known, and they are held no longer. */
export async function decided(config: LqLoraConfig, context: ResolveContext): Promise<Decided> {
  if (!config.data_aware) return { config: await withBits(config, context, new Map()) }
  if (isToAllocate(config)) return await decidedWithBits(config, context)
  const found = await decompositions(config, (visit) =>
    squaredGradients(context, async (site, fisher) => {
      using own = fisher
      await visit(site, own)
    }),
  )
  return { config, found }
}

/** The gradients of all modules at once: whose bits they are spent on depends on them all. */
async function decidedWithBits(config: LqLoraConfig, context: ResolveContext): Promise<Decided> {
  const fisher = new Map<Site, Tensor>()
  try {
    await squaredGradients(context, async (site, own) => {
      fisher.set(site, own)
    })
    const known = await withBits(config, context, fisher)
    const found = await decompositions(known, async (visit) => {
      for (const [site, own] of fisher) {
        throwIfAborted(context.watch.signal, 'lq_lora')
        await visit(site, own)
      }
    })
    return { config: known, found }
  } finally {
    for (const each of fisher.values()) each.dispose()
  }
}

/** The decompositions of the weights that `visitAll` comes to. */
async function decompositions(
  config: LqLoraConfig,
  visitAll: (visit: (site: Site, fisher: Tensor) => Promise<void>) => Promise<void>,
): Promise<ReadonlyMap<string, Decomposed>> {
  const missed = new Map<string, number>()
  const found = await foundValues((add) =>
    visitAll(async (site, fisher) => {
      const packed = await packedWeight(site, site.weight, config, fisher)
      using _ = packed.weight
      add(site.path, packed.values)
      missed.set(site.path, await missedBy(site, site.weight, config, packed))
    }),
  )
  return new Map([...found].map(([path, values]) => [path, { values, missed: missed.get(path)! }]))
}

/** Shows the mean of the squared gradients of each site's weight, `[out, in]`, which the visitor owns. */
function squaredGradients(
  { network, sites, calibration, watch }: ResolveContext,
  visit: (site: Site, fisher: Tensor) => Promise<void>,
): Promise<void> {
  const take = async (site: Site, squares: Tensor): Promise<void> => {
    const own = await computed(() => ({
      fisher: copy(asMatrix(read(squares), matrixShape('lq_lora', site))),
      top: max(read(squares)),
    }))
    using top = own.top
    if (!(top.item() > 0)) throw unsuited('lq_lora', site, 'a gradient from the calibration', 'zeros')
    await visit(site, own.fisher)
  }
  return weightGradients(network, sites, calibration(), take, { of: 'squares', ...watch })
}

/** With the candidate for every module with which the sum of the squared errors is least under the budget. */
async function withBits(
  config: LqLoraConfig,
  { sites, watch, report }: ResolveContext,
  fisher: ReadonlyMap<Site, Tensor>,
): Promise<LqLoraConfig> {
  const { candidates = defaultCandidates, budget = 0 } = config
  const choices = []
  for (const site of sites) {
    choices.push(await choicesAt(site, config, { candidates, fisher: fisher.get(site), signal: watch.signal }))
    report({ unit: 'modules', done: choices.length, total: sites.length })
  }
  const total = sites.reduce((sum, { weight }) => sum + elementCount(weight.shape), 0)
  const { chosen } = await allocateBits(choices, budget * total)
  return { ...config, configurations: Object.fromEntries(sites.map(({ path }, i) => [path, candidates[chosen[i]!]!])) }
}

/** Options of {@link choicesAt}. */
export interface ChoiceOptions {
  readonly candidates: readonly LqLoraCandidate[]
  /** `[out, in]`: weighs the errors. */
  readonly fisher?: Tensor | undefined
  readonly signal?: AbortSignal | undefined
}

/** What each candidate would cost at a module, in squared error and in bits. */
export async function choicesAt(
  site: Site,
  config: LqLoraConfig,
  { candidates, fisher, signal }: ChoiceOptions,
): Promise<Choice[]> {
  const own: Choice[] = []
  for (const each of candidates) {
    throwIfAborted(signal, 'lq_lora')
    const quantisation = configOf(each)
    const { parts, error } = await decomposedWeight(site, site.weight, config, { quantisation, fisher })
    for (const used of Object.values(parts)) used.dispose()
    own.push({ error: error * error, bits: bitsPerWeight(quantisation) * elementCount(site.weight.shape) })
    await pause()
  }
  return own
}
