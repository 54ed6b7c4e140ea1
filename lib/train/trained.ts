/** What a run trains: an adapter's tensors, or all weights of the network, and the optimizer bound to them. */
import type { Adapter, AttachOptions } from '../adapters/adapter.js'
import type { Parametrization } from '../adapters/parametrization.js'
import { methodOf } from '../adapters/registry.js'
import { HeddleError } from '../errors.js'
import { copied } from '../graph/computed.js'
import type { Precision } from '../graph/ops/matmul.js'
import { pause } from '../graph/pause.js'
import type { Network } from '../nn/network.js'
import type { Site, SiteHook } from '../nn/site.js'
import type { Objective, TrainingData } from '../objectives/objective.js'
import { calibrationOf } from '../observers/calibration.js'
import { clipByGlobalNorm } from '../optim/clip.js'
import { chain, type GradientTransform } from '../optim/gradient_transform.js'
import { loraPlusGroups, type ParameterGroup, withParameterGroups } from '../optim/parameter_groups.js'
import { restoreStructured } from '../structured/saved_matrices.js'
import { type StructuredMatrix, savedStructure } from '../structured/structured_matrix.js'
import type { Tensor } from '../tensor/tensor.js'
import type { TrainSettings } from './options.js'
import type { Trainable } from './trainable.js'

/** What is trained. */
export interface Trained {
  readonly parameters: Readonly<Record<string, Tensor>>
  /** Frozen tensors that a checkpoint keeps with them. */
  readonly buffers: Readonly<Record<string, Tensor>>
  readonly adapter: Adapter | undefined
  readonly hook: SiteHook | undefined
  /** Groups that follow from what is trained; the user's own come before them. */
  readonly groups: readonly ParameterGroup[]
  /** For the comparison at resume. */
  readonly description: unknown
}

/**
 * Finds or makes what the settings say is to be trained.
 * @param data what a method that learns from data before it is attached is shown
 * @throws ERR_HEDDLE_ARGUMENT
 */
export const trainedPart = (
  model: Trainable,
  settings: TrainSettings,
  data: TrainingData<unknown>,
): Promise<Trained> => (settings.full ? wholeModel(model.network) : oneAdapter(model, settings, data))

/** The update rule of a run: clipping, then the user's optimizer with its groups, and around it what the method does. */
export function optimizerOf(
  settings: TrainSettings,
  { parameters, groups, adapter }: Trained,
  totalSteps: number,
): GradientTransform {
  const { optimizer, clip, loraplusLrRatio, parameterGroups } = settings
  if (loraplusLrRatio !== undefined && !optimizer.learningRate)
    throw misuse('train.loraplusLrRatio', 'an optimizer with a learning rate', optimizer.name)
  const all = [
    ...parameterGroups,
    ...(loraplusLrRatio === undefined ? [] : loraPlusGroups(optimizer.learningRate!, loraplusLrRatio)),
    ...(optimizer.withWeightDecay ? groups : []),
  ]
  const names = Object.keys(parameters)
  const grouped = withParameterGroups(optimizer, all, names)
  const rule = adapter?.method.optimizer?.(grouped, { names, totalSteps }) ?? grouped
  return clip > 0 ? chain(clipByGlobalNorm(clip), rule) : rule
}

async function oneAdapter(model: Trainable, settings: TrainSettings, data: TrainingData<unknown>): Promise<Trained> {
  const adapter = settings.adapter ?? (await attachedOrFresh(model, settings, data))
  if (adapter.model !== model.network)
    throw misuse('train.adapter', 'an adapter of the model that is trained', "another model's")
  if (adapter.isMerged) throw misuse('train.adapter', 'an adapter that is not merged', 'a merged one')
  const { name, config } = adapter.method
  return {
    parameters: Object.fromEntries(adapter.parameters()),
    buffers: Object.fromEntries(adapter.buffers()),
    adapter,
    hook: adapter.hook,
    groups: [],
    description: { name, config },
  }
}

function attachedOrFresh(
  model: Trainable,
  { method, onAttachProgress: onProgress, ...settings }: TrainSettings,
  data: TrainingData<unknown>,
): Adapter | Promise<Adapter> {
  const [only, ...more] = model.adapters
  if (method || !only)
    return attachShown(model, method ?? methodOf({ method: 'lora' }), {
      ...settings,
      data,
      onProgress,
    })
  if (more.length === 0) return only
  throw misuse('train.adapter', 'the adapter to train', `none, and the model has ${model.adapters.length}`)
}

/** Options of {@link attachShown}: those of the training to come. */
export interface ShownOptions extends Pick<AttachOptions, 'seed' | 'signal' | 'onProgress' | 'onWarning'> {
  readonly objective: Objective
  readonly data: TrainingData<unknown>
  readonly batchSize?: number
  readonly precision?: Precision | undefined
}

/** Attaches a method, which may learn from the first batches of what it will be trained on. @throws as `attach` */
export function attachShown(
  model: Trainable,
  method: Parametrization,
  { objective, data, batchSize = 4, precision = model.precision, seed = 0, ...options }: ShownOptions,
): Promise<Adapter> {
  const calibration = calibrationOf(objective, data, { batches: calibrationBatches, batchSize, seed, precision })
  const { signal, onProgress, onWarning } = options
  return model.attach(method, { seed, calibration, signal, onProgress, onWarning })
}

/** Most batches that a method sees of the training data before it is attached. */
const calibrationBatches = 64

/** Gives the sites of the network writable tensors of their own: those of a file are read-only. */
async function wholeModel(network: Network): Promise<Trained> {
  const sites = new Set([...network.sites.values(), ...(network.outputSite ? [network.outputSite] : [])])
  const own = new Map<Tensor, Tensor>()
  const ownOf = async (original: Tensor): Promise<Tensor> => {
    const made = own.get(original) ?? (await copied(original))
    own.set(original, made)
    return made
  }
  for (const site of sites) {
    if (site.structure) site.structure = await ownStructure(site.structure, ownOf)
    else site.weight = await ownOf(site.weight)
    if (site.bias) site.bias = await ownOf(site.bias)
    await pause()
  }
  for (const original of own.keys()) original.dispose()
  const writable = new Set(own.values())
  const named = network
    .weights()
    .flatMap(({ name, tensor }) => (writable.has(tensor) && tensor.dtype === 'f32' ? [[name, tensor] as const] : []))
  const parameters = Object.fromEntries(named)
  return {
    parameters,
    buffers: {},
    adapter: undefined,
    hook: undefined,
    groups: undecayed(Object.keys(parameters), sites),
    description: 'all weights',
  }
}

/** The matrix over tensors of its own, of which those of floats are trained. */
async function ownStructure(
  structure: StructuredMatrix,
  ownOf: (original: Tensor) => Promise<Tensor>,
): Promise<StructuredMatrix> {
  const parameters = new Map<string, Tensor>()
  for (const [name, tensor] of [...structure.parameters(), ...structure.buffers()])
    parameters.set(name, await ownOf(tensor))
  return restoreStructured(savedStructure(structure), parameters)
}

/** Norms, embeddings and biases have no weight decay unless a group of the user says so. */
function undecayed(names: readonly string[], sites: ReadonlySet<Site>): ParameterGroup[] {
  const spared = new Set(
    [...sites].flatMap(({ path, kind }) => (kind === 'norm' || kind === 'embedding' ? [`${path}.weight`] : [])),
  )
  const chosen = names.filter((name) => spared.has(name) || name.endsWith('.bias'))
  if (chosen.length === 0) return []
  return [
    { params: `^(?:${chosen.map((name) => name.replace(/[.*+?^${}()|[\]\\]/g, '\\$&')).join('|')})$`, weightDecay: 0 },
  ]
}

const misuse = (place: string, expected: string, got: string): HeddleError =>
  new HeddleError('ERR_HEDDLE_ARGUMENT', { place, expected, got })
