/** Many requests on one model, each with an adapter of its own, chosen by name. */
import type { GeneratedToken, Model, Prompt } from '../model.js'
import { BatchingEngine } from './batching_engine.js'
import type { EngineListener, EngineState } from './events.js'
import { type EngineOptions, type EngineRequestOptions, parseEngineOptions } from './options.js'

/** Serves requests of many callers with one model; made by {@link createEngine}. */
export interface Engine {
  readonly model: Model
  /** Names of all adapters that can be asked for, in memory or not. */
  readonly adapterNames: readonly string[]
  /**
   * Yields text as it is made.
   * @throws ERR_HEDDLE_BUSY when too many requests wait, ERR_HEDDLE_ARGUMENT on a name that is unknown or an option that
   *   is out of range, ERR_HEDDLE_ABORTED
   */
  generate(prompt: Prompt, options?: EngineRequestOptions): AsyncGenerator<string, void, void>
  /** Yields every token as it is made, as `Model.generateTokens` does. @throws as {@link Engine.generate} */
  generateTokens(prompt: Prompt, options?: EngineRequestOptions): AsyncGenerator<GeneratedToken, void, void>
  /** The tokens that a prompt is for the model. @throws ERR_HEDDLE_ARGUMENT when there are none or too many */
  promptTokens(prompt: Prompt, options?: Pick<EngineRequestOptions, 'chat'>): Promise<Int32Array>
  /**
   * Makes the adapter in a folder available under a name, in place of one that had it; requests that use that one end
   * with it.
   * @throws ERR_HEDDLE_ARGUMENT on a name that is no plain file name, ERR_HEDDLE_IO, ERR_HEDDLE_FORMAT
   */
  addAdapter(name: string, folder: string): Promise<void>
  /** Takes a name away; its memory is freed when its last request has ended. */
  removeAdapter(name: string): void
  /** What runs and waits now, and how much of the memory is in use. */
  state(): EngineState
  /** Tells of everything that happens from now on. @returns stops it */
  watch(listener: EngineListener): () => void
  /**
   * Takes no more requests and lets go of everything but the model, once those that run and wait have ended, or at once
   * where the signal is set: they then end with ERR_HEDDLE_ABORTED.
   */
  close(signal?: AbortSignal): Promise<void>
}

/** Makes an engine of a model, which it does not own. @throws ERR_HEDDLE_ARGUMENT, ERR_HEDDLE_IO */
export const createEngine = async (model: Model, options: EngineOptions = {}): Promise<Engine> =>
  BatchingEngine.create(model, parseEngineOptions(options))
