/** One optimizer step over one or more batches, as compiled programs that update parameters and moments in place. */
import { throwIfAborted } from '../errors.js'
import type { RecomputePolicy } from '../graph/compile.js'
import { gradients } from '../graph/grad.js'
import { add, div, mul, select } from '../graph/ops/elementwise.js'
import type { Precision } from '../graph/ops/matmul.js'
import { type Program, type ProgramPlan, program } from '../graph/program.js'
import { assign, read, type Sym } from '../graph/sym.js'
import type { Network } from '../nn/network.js'
import type { SiteHook } from '../nn/site.js'
import { batchTensors, namedInputs } from '../objectives/batch_tensors.js'
import type { Objective } from '../objectives/objective.js'
import { type Tensor, tensor } from '../tensor/tensor.js'
import { globalNorm } from './clip.js'
import { type GradientTransform, mapParameters, type TransformState, zerosLike } from './gradient_transform.js'

/** Options of {@link trainingStep}. */
export interface TrainingStepOptions<N extends Network = Network, B = unknown> {
  readonly network: N
  /** What the network is trained to do. */
  readonly objective: Objective<N, B>
  /** What is trained: writable f32 tensors that the forward pass reads, the adapter's or the network's own. */
  readonly parameters: readonly Tensor[]
  readonly optimizer: GradientTransform
  /** The adapter's part in the forward pass. */
  readonly hook?: SiteHook | undefined
  /** Traced: what is added to the mean loss, `f32 []`. */
  readonly penalty?: (() => Sym | undefined) | undefined
  readonly precision?: Precision
  /** What the backward pass computes again, see {@link RecomputePolicy}; default: cheap values only. */
  readonly recompute?: RecomputePolicy | undefined
  /** Batches per step. Above 1, gradients are summed in tensors of their own. Default 1. */
  readonly accumulation?: number
}

/** One optimizer step. */
export interface StepRequest<B = unknown> {
  /** At most `accumulation` batches. */
  readonly batches: readonly B[]
  /** Counts from 1. */
  readonly step: number
  readonly learningRate: number
  /** Seeds dropout, together with step and batch. Default 0. */
  readonly seed?: number
  /** Looked at between the batches of a step: parameters are those of before the step or of after it. */
  readonly signal?: AbortSignal | undefined
}

/** What an optimizer step measured. */
export interface StepResult {
  /** Mean over all that the objective weighs in the step: targets, rows or pairs. */
  readonly loss: number
  /** √Σ‖g‖² before any clipping. */
  readonly gradientNorm: number
}

/** A compiled training step with its optimizer state. */
export interface TrainingStep<B = unknown> {
  /** @throws ERR_HEDDLE_ABORTED, with parameters and optimizer state as they were */
  run(request: StepRequest<B>): Promise<StepResult>
  /** What a step on batches of this size needs, without running it. */
  plan(batch: B): Promise<ProgramPlan>
  /** {@link ProgramPlan.peakBytes} of the largest batch of the last step. */
  readonly plannedBytes: number
  /** Optimizer state under stable names. */
  readonly state: Readonly<Record<string, Tensor>>
  /** Seconds per operator so far. */
  profile: Program<unknown>['profile']
  /** Frees programs, optimizer state and gradient sums; the parameters stay. */
  dispose(): void
}

/** Prepares training: allocates optimizer state; programs are compiled when a batch shape is first seen. */
export function trainingStep<N extends Network, B>(options: TrainingStepOptions<N, B>): Promise<TrainingStep<B>> {
  return (options.accumulation ?? 1) > 1 ? accumulatingStep(options) : singleStep(options)
}

/** One program does it all: forward, backward, update. */
async function singleStep<N extends Network, B>(options: TrainingStepOptions<N, B>): Promise<TrainingStep<B>> {
  const { objective } = options
  const state = await options.optimizer.init(options.parameters)
  const whole = program(
    async (normaliser, seed, learningRate, step, ...arrays) => {
      const { loss, gradients: found } = await lossAndGradients(options, { normaliser, seed, arrays } as ForwardInputs)
      return { loss, gradientNorm: await applyUpdate(options, state.update, found, learningRate!, step!) }
    },
    { ...onNetwork(options), recompute: options.recompute ?? true, activations: activationsOf(options) },
  )
  const inputsOf = (batch: B, request: Omit<StepRequest, 'batches'>): Tensor[] => [
    scalar(Math.max(1, objective.weight(batch))),
    tensor(seedWords(request, 0)),
    ...updateInputs(request),
    ...batchTensors(objective, batch),
  ]
  let plannedBytes = 0
  return {
    state: state.tensors,
    get plannedBytes() {
      return plannedBytes
    },
    async run({ batches, signal, ...request }) {
      throwIfAborted(signal, 'train')
      return await consuming(inputsOf(batches[0]!, request), async (inputs) => {
        const { loss, gradientNorm } = await whole(...inputs)
        plannedBytes = (await whole.plan(inputs)).peakBytes
        return { loss: taken(loss), gradientNorm: taken(gradientNorm) }
      })
    },
    plan: (batch) => consuming(inputsOf(batch, { step: 1, learningRate: 0 }), (inputs) => whole.plan(inputs)),
    profile: () => whole.profile(),
    dispose() {
      whole.dispose()
      disposeAll(Object.values(state.tensors))
    },
  }
}

/** Two programs: one adds a batch's gradients to their sums, the other updates the parameters from the sums. */
async function accumulatingStep<N extends Network, B>(options: TrainingStepOptions<N, B>): Promise<TrainingStep<B>> {
  const { parameters, optimizer, objective, accumulation = 1 } = options
  const state = await optimizer.init(parameters)
  const sums = await zerosLike(parameters)
  const collect = program(
    async (normaliser, seed, isFirst, ...arrays) => {
      const { loss, gradients: found } = await lossAndGradients(options, {
        normaliser,
        seed,
        arrays,
        isFirst,
      } as ForwardInputs)
      // The first batch overwrites, whatever a step that was aborted or diverged left in the sums.
      await mapParameters(found, (gradient, i) =>
        assign(sums[i]!, select(isFirst!, gradient, add(read(sums[i]!), gradient))),
      )
      return loss
    },
    { ...onNetwork(options), recompute: options.recompute ?? true, activations: activationsOf(options) },
  )
  const update = program(
    (learningRate, step) => applyUpdate(options, state.update, sums.map(read), learningRate!, step!),
    onNetwork(options),
  )
  const collectInputs = (batch: B, normaliser: number, index: number, request: Pick<StepRequest, 'step' | 'seed'>) => [
    scalar(normaliser),
    tensor(seedWords(request, index, accumulation)),
    scalar(index === 0 ? 1 : 0),
    ...batchTensors(objective, batch),
  ]
  let plannedBytes = 0
  return {
    state: state.tensors,
    get plannedBytes() {
      return plannedBytes
    },
    async run({ batches, signal, ...request }) {
      const normaliser = Math.max(
        1,
        batches.reduce((total, batch) => total + objective.weight(batch), 0),
      )
      let loss = 0
      plannedBytes = 0
      for (const [index, batch] of batches.entries())
        await consuming(collectInputs(batch, normaliser, index, request), async (inputs) => {
          loss += taken(await collect.run(inputs, { signal }))
          plannedBytes = Math.max(plannedBytes, (await collect.plan(inputs)).peakBytes)
        })
      throwIfAborted(signal, 'train')
      return { loss, gradientNorm: taken(await consuming(updateInputs(request), (given) => update(...given))) }
    },
    plan: (batch) => consuming(collectInputs(batch, 1, 0, { step: 1 }), (inputs) => collect.plan(inputs)),
    profile: () => [...collect.profile(), ...update.profile()],
    dispose() {
      collect.dispose()
      update.dispose()
      disposeAll([...Object.values(state.tensors), ...sums])
    },
  }
}

/** Where products are computed on bf16 numbers, the backward pass does with bf16 activations. */
const activationsOf = ({ precision = 'f32' }: { readonly precision?: Precision | undefined }): 'f32' | 'bf16' =>
  precision === 'f32' ? 'f32' : 'bf16'

/** Batch lengths come in buckets: 32, 48, 64, … gives 15 up to 4096 tokens. */
const cacheSize = 16

/** Where and how programs of a step are compiled. */
const onNetwork = ({ network }: Pick<TrainingStepOptions, 'network'>) => ({
  cacheSize,
  device: network.device,
  recorded: true,
})

interface ForwardInputs {
  readonly normaliser: Sym
  readonly seed: Sym
  /** In the order of the objective's inputs. */
  readonly arrays: readonly Sym[]
  /** 1 in the one batch of a step that carries the penalty, 0 in the others; absent where there is only one. */
  readonly isFirst?: Sym
}

async function lossAndGradients<N extends Network, B>(
  { network, objective, parameters, hook, penalty, precision = 'f32' }: TrainingStepOptions<N, B>,
  { normaliser, seed, arrays, isFirst }: ForwardInputs,
): Promise<{ readonly loss: Sym; readonly gradients: readonly Sym[] }> {
  const forward = { precision, training: true, seed, hook }
  const loss = div(await objective.loss(network, namedInputs(objective, arrays), forward), normaliser)
  const added = penalty?.()
  const minimised = added ? add(loss, isFirst ? mul(added, isFirst) : added) : loss
  return { loss, gradients: await gradients(minimised, parameters.map(read)) }
}

/** Traces the update and gives the norm of the gradients. */
async function applyUpdate(
  { parameters }: { readonly parameters: readonly Tensor[] },
  update: TransformState['update'],
  found: readonly Sym[],
  learningRate: Sym,
  step: Sym,
): Promise<Sym> {
  const values = parameters.map(read)
  const updates = await update(found, { step, learningRate, parameters: values })
  await mapParameters(parameters, (parameter, i) => assign(parameter, add(values[i]!, updates[i]!)))
  return globalNorm(found)
}

/** Dropout's seed: its own for every batch of every step, the same however often a run is resumed. */
const seedWords = (
  { step, seed = 0 }: Pick<StepRequest, 'step' | 'seed'>,
  index: number,
  accumulation = 1,
): Uint32Array => Uint32Array.of(seed, (step - 1) * accumulation + index)

const updateInputs = ({ learningRate, step }: Pick<StepRequest, 'learningRate' | 'step'>): Tensor[] => [
  scalar(learningRate),
  scalar(step),
]

const scalar = (value: number): Tensor => tensor([value], [])

async function consuming<T>(inputs: readonly Tensor[], use: (inputs: readonly Tensor[]) => Promise<T>): Promise<T> {
  try {
    return await use(inputs)
  } finally {
    disposeAll(inputs)
  }
}

/** The number in a scalar result, which is freed. */
function taken(result: Tensor): number {
  const value = result.item()
  result.dispose()
  return value
}

function disposeAll(tensors: readonly Tensor[]): void {
  for (const each of tensors) each.dispose()
}
