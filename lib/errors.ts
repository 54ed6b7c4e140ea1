/** What went wrong, as a stable code: switch on it, never on the message. */
export type HeddleErrorCode =
  | 'ERR_HEDDLE_SHAPE'
  | 'ERR_HEDDLE_DTYPE'
  | 'ERR_HEDDLE_FORMAT'
  | 'ERR_HEDDLE_OOM'
  | 'ERR_HEDDLE_ABORTED'
  | 'ERR_HEDDLE_BUSY'
  | 'ERR_HEDDLE_ARGUMENT'
  | 'ERR_HEDDLE_IO'
  | 'ERR_HEDDLE_DEVICE'
  | 'ERR_HEDDLE_GRAD'
  | 'ERR_HEDDLE_NETWORK'
  | 'ERR_HEDDLE_INTERNAL'

/** The parts of a {@link HeddleError}. */
export interface HeddleErrorOptions {
  /** Operator, module path, file or argument that the failure belongs to. */
  readonly place: string
  readonly expected: string
  readonly got: string
  /** The next step a user can take, where there is one. */
  readonly hint?: string
  readonly cause?: unknown
}

/** Every failure that Heddle reports, native ones included. */
export class HeddleError extends Error {
  override readonly name = 'HeddleError'
  readonly code: HeddleErrorCode
  readonly place: string
  readonly expected: string
  readonly got: string
  /** The next step a user can take, where there is one; the message ends with it. */
  readonly hint?: string

  constructor(code: HeddleErrorCode, { place, expected, got, hint, cause }: HeddleErrorOptions) {
    super(`${place}: expected ${expected}, got ${got}${hint ? `. ${hint}` : ''}`, cause === undefined ? {} : { cause })
    this.code = code
    this.place = place
    this.expected = expected
    this.got = got
    if (hint !== undefined) this.hint = hint
  }
}

/** @throws ERR_HEDDLE_ABORTED, naming the work that was stopped, once the signal is set */
export function throwIfAborted(signal: AbortSignal | undefined, place: string): void {
  if (signal?.aborted)
    throw new HeddleError('ERR_HEDDLE_ABORTED', {
      place,
      expected: 'to run to its end',
      got: 'an abort signal',
      cause: signal.reason,
    })
}
