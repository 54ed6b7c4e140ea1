/**
 * The seam of objectives: what a task must say so that the training loop, the training step and the evaluation can work
 * on it. They know no task; an objective is one file here.
 */
import type { SkippedRow } from '../data/rows.js'
import type { Precision } from '../graph/ops/matmul.js'
import type { Sym } from '../graph/sym.js'
import type { Network } from '../nn/network.js'
import type { Forward } from '../nn/site.js'
import type { TypedArray } from '../tensor/dtype.js'
import type { Tokenizer } from '../tokenize/tokenizer.js'

/** An array of a batch, row-major. */
export interface BatchArray {
  readonly data: TypedArray
  readonly shape: readonly number[]
}

/** Values of a traced program by name. */
export type Syms = Readonly<Record<string, Sym>>

/** Numbers that an evaluation gave, by metric; also whatever else belongs to it, such as a confusion matrix. */
export interface EvaluationResult {
  /** Mean over everything that was scored; what training minimises, without dropout. */
  readonly loss: number
}

/** A traced score, off the device. */
export type ScoreArray = Float32Array | Int32Array

/** Adds up what the batches of an evaluation gave. */
export interface Scoreboard<B, E extends EvaluationResult> {
  /** Takes the outputs that {@link Objective.scores} traced, for one batch. */
  add(batch: B, outputs: Readonly<Record<string, ScoreArray>>): void
  /** What all batches taken so far amount to. */
  result(): E | Promise<E>
}

/**
 * A task: batches of type B, of which a network of type N is to minimise a loss, and which is judged by results of
 * type E. Losses are summed over a batch and divided by the sum of the batches' weights, so that a step on several
 * batches is a step on one batch of all their rows.
 */
export interface Objective<N extends Network = Network, B = unknown, E extends EvaluationResult = EvaluationResult> {
  /** Registry name. */
  readonly name: string
  /** What decides its numbers; a run is only resumed with the same. */
  readonly config: Readonly<Record<string, unknown>>
  /** Inputs of the traced loss, in order. */
  readonly inputs: readonly string[]
  /** The arrays of a batch for {@link inputs}, by name. Few distinct shapes: each is compiled once. */
  arrays(batch: B): Readonly<Record<string, BatchArray>>
  /** What the loss is a mean over: targets, rows or pairs of this batch. */
  weight(batch: B): number
  /** Tokens that go through the network, padding not counted. */
  tokens(batch: B): number
  /** Traces the sum of the batch's losses, `f32 []`. May run the network several times, with and without a hook. */
  loss(network: N, inputs: Syms, forward: Forward): Promise<Sym>
  /** Traces what {@link scoreboard} takes; `loss` among it is the sum that {@link loss} gives. */
  scores(network: N, inputs: Syms, forward: Forward): Promise<Syms>
  /** An empty board for one evaluation of this network. */
  scoreboard(network: N): Scoreboard<B, E>
  /** Reads a data file into batches of this task. */
  open(path: string, options: OpenOptions<N>): Promise<TrainingData<B>>
  /** Called once before training starts, e.g. to note what the untrained network says about the data. */
  prepare?(network: N, data: TrainingData<B>, options: PrepareOptions): Promise<void>
}

/** What {@link Objective.open} gets. */
export interface OpenOptions<N extends Network = Network> {
  readonly tokenizer: Tokenizer
  readonly network: N
  /** Most tokens of a sequence. */
  readonly maxLength: number
  /** Share of the examples to set aside, 0 to 0.5. */
  readonly evaluationFraction: number
  /** Decides which examples are set aside. */
  readonly seed: number
  readonly signal?: AbortSignal | undefined
  /** Called with the share of the file that has been read. */
  onProgress?(share: number): void
}

/** What {@link Objective.prepare} gets. */
export interface PrepareOptions {
  readonly batchSize: number
  readonly precision: Precision
  readonly signal?: AbortSignal | undefined
}

/** Which batches to give, in which order. */
export interface BatchOrder {
  readonly batchSize: number
  /** Default true. */
  readonly shuffle?: boolean
  /** The order is a function of seed and epoch. Defaults 0. */
  readonly seed?: number
  readonly epoch?: number
  /** Index of the first batch to give, for resuming. Default 0. */
  readonly start?: number
}

/** Data that training can go through again and again, in an order that depends on the seed alone. */
export interface TrainingData<B> {
  /** Number of examples. */
  readonly size: number
  /** Number of tokens of all examples. */
  readonly tokens: number
  /** Most tokens of an example. */
  readonly maxLength: number
  /** What was set aside, if anything. */
  readonly evaluation?: TrainingData<B> | undefined
  /** What the rows are and how many, in words. */
  readonly description?: string
  /** Rows that could not be used, or the first of them. */
  readonly skipped?: readonly SkippedRow[]
  /** Number of batches of an epoch. */
  batchCount(batchSize: number): number
  /** The batches of one epoch. */
  batches(order: BatchOrder): AsyncGenerator<B>
}
