/** What the server and the process that trains say to each other. */

/** The first message of the server: what to train. */
export interface WorkerTask {
  readonly kind: 'train'
  /** What `loadModel` takes. */
  readonly source: string
  readonly precision: 'f32' | 'bf16'
  /** Gets checkpoints and, at the end, the adapter in a folder `adapter`. */
  readonly folder: string
  readonly trainingPath: string
  readonly validationPath: string | undefined
  /** An objective by its name in the registry. */
  readonly objective: { readonly name: string; readonly options: Readonly<Record<string, unknown>> }
  readonly seed: number
  readonly epochs: number | undefined
  readonly maxSteps: number | undefined
  readonly batchSize: number
  readonly accumulation: number
  readonly maxLength: number
  readonly learningRate: number
  readonly checkpointEvery: number
  /** Name and config of the adapter's method. */
  readonly adapter: Readonly<Record<string, unknown>> & { readonly method: string }
  /** The largest adapter that can be served. */
  readonly mostRank: number
}

/** What a step did. */
export interface StepReport {
  /** Counts from 1. */
  readonly step: number
  readonly total_steps: number
  readonly epoch: number
  readonly train_loss: number
  readonly valid_loss?: number
  readonly learning_rate: number
  readonly tokens: number
  readonly tokens_per_second: number
}

/** What the server says: what to train, or to stop after the running step and its checkpoint. */
export type ServerMessage = WorkerTask | { readonly kind: 'stop' }

/** What the process that trains says; after all but `step` it ends. */
export type WorkerMessage =
  | { readonly kind: 'step'; readonly report: StepReport }
  | { readonly kind: 'done' }
  | { readonly kind: 'stopped' }
  | { readonly kind: 'failed'; readonly code: string; readonly message: string }

/** How the process ended, as its thread tells the server. */
export interface ProcessEnd {
  readonly kind: 'ended'
  readonly code: number | null
  readonly signal: NodeJS.Signals | null
  /** The end of what it wrote there. */
  readonly stderr: string
}
