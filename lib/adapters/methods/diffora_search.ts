/** The search of DiffoRA: gates on a LoRA of every candidate module, trained on other data than the LoRAs themselves. */
import { HeddleError } from '../../errors.js'
import { computed } from '../../graph/computed.js'
import { add, constant, mul, sigmoid, sqrt } from '../../graph/ops/elementwise.js'
import { stack } from '../../graph/ops/gather.js'
import { slice } from '../../graph/ops/index.js'
import { matmul } from '../../graph/ops/matmul.js'
import { reshape, sum } from '../../graph/ops/reduce.js'
import { softmax } from '../../graph/ops/softmax.js'
import { pause } from '../../graph/pause.js'
import { read, type Sym } from '../../graph/sym.js'
import type { Site, SiteHook } from '../../nn/site.js'
import type { Calibration } from '../../observers/calibration.js'
import { adamw } from '../../optim/adamw.js'
import { trainingStep } from '../../optim/training_step.js'
import { type Tensor, zeros } from '../../tensor/tensor.js'
import { type Attachment, attachTo, disposeAttachment, initialise } from '../attachment.js'
import type { Parametrization, ResolveContext } from '../parametrization.js'

/** What the search found: rows are layers, columns module types; null where a layer has no such module. */
export interface DifforaSearch {
  /** Paths of the layers, e.g. `model.layers.3`. */
  readonly layers: readonly string[]
  /** Paths of the modules within a layer, e.g. `self_attn.q_proj`. */
  readonly modules: readonly string[]
  /** The trained gates before sigmoid or softmax. */
  readonly theta: readonly (readonly (number | null)[])[]
  /** 1 where the module gets a LoRA of its own. */
  readonly gamma: readonly (readonly (0 | 1 | null)[])[]
}

/** The part of the config that the search needs. */
export interface SearchConfig {
  readonly relaxation: 'sigmoid' | 'softmax'
  readonly select: 'per-layer' | 'global' | 'threshold'
  readonly ratio: number
  readonly search_steps: number
  readonly warmup_steps: number
  readonly lr_w: number
  readonly lr_theta: number
  readonly valid_fraction: number
  readonly normalise: boolean
  readonly r: number
  readonly lora_alpha: number
}

/** The candidate modules as a matrix. */
export interface Candidates {
  readonly layers: readonly string[]
  readonly modules: readonly string[]
  /** Rows of layers; undefined where a layer has no such module. */
  readonly sites: readonly (readonly (Site | undefined)[])[]
}

/** Layer and place in it of a module path; undefined for modules outside of layers. */
export function placeInLayer(path: string): { readonly layer: string; readonly module: string } | undefined {
  const [, layer, module] = /^(.*?\.\d+)\.(.+)$/u.exec(path) ?? []
  return layer !== undefined && module !== undefined ? { layer, module } : undefined
}

/** The sites that are in layers. @throws ERR_HEDDLE_ARGUMENT where there is nothing to choose between */
export function candidatesOf(sites: readonly Site[]): Candidates {
  const placed = sites.flatMap((site) => {
    const place = placeInLayer(site.path)
    return place ? [{ site, ...place }] : []
  })
  if (placed.length < 2)
    throw misuse('diffora', 'at least two modules in layers to choose from', `${sites.map(({ path }) => path)}`)
  const layers = [...new Set(placed.map(({ layer }) => layer))]
  const modules = [...new Set(placed.map(({ module }) => module))]
  const at = new Map(placed.map(({ site, layer, module }) => [`${layer}.${module}`, site]))
  return { layers, modules, sites: layers.map((layer) => modules.map((module) => at.get(`${layer}.${module}`))) }
}

/**
 * 1 for the largest scores: ⌊ratio · candidates⌋ of each layer, or of all layers together; with `threshold` those above
 * it. Of equal scores the first counts.
 * @param scores rows of layers; null where there is no module
 * @throws ERR_HEDDLE_ARGUMENT when nothing would be chosen
 */
export function discretise(
  scores: readonly (readonly (number | null)[])[],
  { select, ratio, threshold }: Pick<SearchConfig, 'select' | 'ratio'> & { readonly threshold: number },
): (0 | 1 | null)[][] {
  const places = scores.flatMap((row, l) =>
    row.flatMap((score, n) => (score === null ? [] : [{ l, n, score, key: `${l},${n}` }])),
  )
  const leading = (among: typeof places, place: string): typeof places => {
    const count = Math.floor(ratio * among.length)
    if (count < 1) throw misuse(`diffora.${place}`, `a share that makes one of ${among.length} modules`, `${ratio}`)
    return among.toSorted((a, b) => b.score - a.score).slice(0, count)
  }
  const chosen = {
    threshold: () => places.filter(({ score }) => score > threshold),
    global: () => leading(places, 'ratio'),
    'per-layer': () =>
      scores.flatMap((_, row) =>
        leading(
          places.filter(({ l }) => l === row),
          'ratio',
        ),
      ),
  }[select]()
  if (chosen.length === 0) throw misuse('diffora.select', 'a gate above its start', 'none')
  const keys = new Set(chosen.map(({ key }) => key))
  return scores.map((row, l) => row.map((score, n) => (score === null ? null : keys.has(`${l},${n}`) ? 1 : 0)))
}

/**
 * Trains the LoRAs on one part of the batches and the gates on the other, in turns (first order), and discretises.
 * @param pair a plain LoRA for every candidate
 * @throws ERR_HEDDLE_ARGUMENT when either part has no batch, or a loss is not finite
 */
export async function searchGates(
  config: SearchConfig,
  pair: Parametrization,
  context: ResolveContext,
): Promise<DifforaSearch> {
  const candidates = candidatesOf(context.sites)
  const batches = await splitBatches(context.calibration(), config.valid_fraction)
  const attachments = await pairs(candidates, pair, context.seed)
  const { layers, modules } = candidates
  using theta = zeros([layers.length, modules.length])
  try {
    await trainGates(config, context, {
      batches,
      hook: gatedHook(config, candidates, attachments, theta),
      attachments,
      theta,
    })
    const scores = await gateScores(config, candidates, attachments, theta)
    const gamma = discretise(scores, { ...config, threshold: startOf(config) })
    return { layers, modules, theta: inPlaces(candidates, [...((await theta.data()) as Float32Array)]), gamma }
  } finally {
    for (const attachment of attachments.values()) {
      disposeAttachment(attachment)
      await pause()
    }
  }
}

interface Searched {
  /** To train on, and held out. */
  readonly batches: readonly [readonly unknown[], readonly unknown[]]
  readonly hook: SiteHook
  readonly attachments: ReadonlyMap<Site, Attachment>
  readonly theta: Tensor
}

/** A step of the LoRAs and one of the gates, in turns. */
async function trainGates(
  config: SearchConfig,
  context: ResolveContext,
  { batches: [training, held], hook, attachments, theta }: Searched,
): Promise<void> {
  const weights = [...attachments.values()].flatMap(({ parameters }) => Object.values(parameters))
  const ofWeights = await searchStep(context, hook, { parameters: weights, lr: config.lr_w, weightDecay: 0.01 })
  // A gate that decays goes to one half, not to zero.
  const ofGates = await searchStep(context, hook, { parameters: [theta], lr: config.lr_theta, weightDecay: 0 })
  try {
    for (let step = 0; step < config.search_steps; step += 1) {
      await ofWeights.run(training[step % training.length])
      // Before B has left zero the gradient of its gate is zero, and the first updates would be noise.
      const gateStep = step - config.warmup_steps
      if (gateStep >= 0) await ofGates.run(held[gateStep % held.length])
      context.report({ unit: 'steps', done: step + 1, total: config.search_steps })
    }
  } finally {
    ofWeights.dispose()
    ofGates.dispose()
  }
}

/** Every so many batches one is held out for the gates. */
async function splitBatches({ batches }: Calibration, held: number): Promise<readonly [unknown[], unknown[]]> {
  const parts: readonly [unknown[], unknown[]] = [[], []]
  let index = 0
  for await (const batch of batches()) {
    const isHeld = Math.floor((index + 1) * held) > Math.floor(index * held)
    parts[isHeld ? 1 : 0].push(batch)
    index += 1
  }
  if (parts[0].length > 0 && parts[1].length > 0) return parts
  throw misuse('diffora', 'batches to train on and others to hold out', `${parts[0].length} and ${parts[1].length}`)
}

/** A fresh LoRA for each candidate. */
async function pairs({ sites }: Candidates, pair: Parametrization, seed: number): Promise<Map<Site, Attachment>> {
  const attachments = new Map<Site, Attachment>()
  try {
    for (const [i, site] of sites.flat().entries()) {
      if (!site) continue
      const source = { plan: pair.plan(site), parts: [], seed, stream: 3 * i, shared: {} }
      attachments.set(site, await attachTo(site, source))
      await pause()
    }
    await initialise([...attachments.values()], seed)
    return attachments
  } catch (error) {
    for (const attachment of attachments.values()) disposeAttachment(attachment)
    throw error
  }
}

/** y = base(x) + s B (γ A x): the gate is on the narrow side, where its gradient is a product of `[tokens, r]`. */
export function gatedHook(
  config: SearchConfig,
  candidates: Candidates,
  attachments: ReadonlyMap<Site, Attachment>,
  theta: Tensor,
): SiteHook {
  const scale = config.lora_alpha / config.r
  return {
    targets: (site) => attachments.has(site),
    apply(site, x, base, { precision }) {
      const { parameters } = attachments.get(site)!
      const inner = matmul(x, read(parameters['lora_A.weight']!), { transposeB: true, precision })
      const gated = mul(inner, gateOf(config, candidates, theta, site))
      return add(
        base(),
        matmul(gated, read(parameters['lora_B.weight']!), { transposeB: true, alpha: scale, precision }),
      )
    },
  }
}

/** The gate of a site, `[1]`. Read from a tensor in every run: nothing is traced again when it moves. */
function gateOf(config: SearchConfig, { sites }: Candidates, theta: Tensor, site: Site): Sym {
  const l = sites.findIndex((row) => row.includes(site))
  const n = sites[l]!.indexOf(site)
  const gates = allGates(config, read(theta))
  const row = slice(gates, [{ axis: 0, start: l, end: l + 1 }])
  return reshape(slice(row, [{ axis: 1, start: n, end: n + 1 }]), [1])
}

const allGates = ({ relaxation }: SearchConfig, theta: Sym): Sym =>
  relaxation === 'sigmoid' ? sigmoid(theta) : mul(softmax(theta), theta.shape[1]!)

/** The value of a gate at θ = 0. */
const startOf = ({ relaxation }: SearchConfig): number => (relaxation === 'sigmoid' ? 0.5 : 1)

interface SearchStepOptions {
  readonly parameters: readonly Tensor[]
  readonly lr: number
  readonly weightDecay: number
}

/** AdamW on some of the tensors; the others stay. */
async function searchStep(
  { network, calibration, watch: { signal } }: ResolveContext,
  hook: SiteHook,
  { parameters, lr, weightDecay }: SearchStepOptions,
) {
  const { objective, precision = 'f32' } = calibration()
  const optimizer = adamw({ lr, weightDecay })
  const inner = await trainingStep({ network, objective, precision, hook, parameters, optimizer })
  let step = 0
  return {
    async run(batch: unknown): Promise<void> {
      step += 1
      const { loss } = await inner.run({ batches: [batch], step, learningRate: lr, signal })
      if (!Number.isFinite(loss)) throw misuse(`diffora: step ${step} of the search`, 'a finite loss', `${loss}`)
    },
    dispose: () => inner.dispose(),
  }
}

/** The gates, or gate · ‖B A‖: a gate that halves while B doubles is the same function. */
async function gateScores(
  config: SearchConfig,
  candidates: Candidates,
  attachments: ReadonlyMap<Site, Attachment>,
  theta: Tensor,
): Promise<(number | null)[][]> {
  using scores = await computed(async () => {
    const gates = allGates(config, read(theta))
    if (!config.normalise) return gates
    const norms: Sym[] = []
    for (const site of candidates.sites.flat()) {
      norms.push(site ? productNorm(attachments.get(site)!) : constant(0))
      await pause()
    }
    return mul(gates, reshape(stack(norms), gates.shape))
  })
  return inPlaces(candidates, [...((await scores.data()) as Float32Array)])
}

/** ‖B A‖ of Frobenius without the product: √⟨Bᵀ B, A Aᵀ⟩. */
function productNorm({ parameters }: Attachment): Sym {
  const [a, b] = [read(parameters['lora_A.weight']!), read(parameters['lora_B.weight']!)]
  return sqrt(sum(mul(matmul(b, b, { transposeA: true }), matmul(a, a, { transposeB: true }))))
}

/** Row by row; null where there is no module. */
const inPlaces = ({ sites }: Candidates, values: readonly number[]): (number | null)[][] =>
  sites.map((row, l) => row.map((site, n) => (site ? values[l * row.length + n]! : null)))

const misuse = (place: string, expected: string, got: string): HeddleError =>
  new HeddleError('ERR_HEDDLE_ARGUMENT', { place, expected, got })
