/** Gives the event loop a turn during long synchronous work such as tracing a large model. */
import { setImmediate as nextTurn } from 'node:timers/promises'

const sliceMilliseconds = 2
let sliceStart = 0
let queue = Promise.resolve()

/** True when the current slice of work is used up and the caller should await {@link turn}. */
export const due = (): boolean => performance.now() - sliceStart > sliceMilliseconds

/** Lets pending events run, then starts a new slice. Several callers take turns: one slice per turn of the loop. */
export async function turn(): Promise<void> {
  queue = queue.then(() => nextTurn())
  await queue
  sliceStart = performance.now()
}

/** Lets the event loop turn if the current slice of work is used up. */
export async function pause(): Promise<void> {
  if (due()) await turn()
}
