/** The end of a server: no new requests, running ones finish within a limit, and what outlasts it is cut off. */
import type { FastifyInstance } from 'fastify'
import type { Engine } from '../engine/engine.js'

/**
 * Stops listening, waits for requests that run, and closes the engine; once the signal is set, what still runs is
 * aborted and its connections end. Jobs checkpoint in their own `preClose` hook.
 */
export async function shutDown(app: FastifyInstance, engine: Engine, signal?: AbortSignal): Promise<void> {
  const cut = (): void => app.server.closeAllConnections()
  // Texts that were aborted get a moment to say so on their streams.
  const onAbort = (): void => void setTimeout(cut, 100).unref()
  if (signal?.aborted) onAbort()
  signal?.addEventListener('abort', onAbort, { once: true })
  // A connection whose last answer ends after the server stopped to listen would rest until its client lets go of it.
  const sweep = setInterval(() => app.server.closeIdleConnections(), 50)
  try {
    await Promise.all([app.close(), engine.close(signal)])
  } finally {
    clearInterval(sweep)
    signal?.removeEventListener('abort', onAbort)
  }
}

/** What {@link closeOnSignals} needs. */
export interface ClosingOptions {
  /** Must end soon after its signal is set. */
  readonly close: (signal: AbortSignal) => Promise<void>
  /** How long running requests may take. */
  readonly seconds: number
  /** Told when a signal came. */
  readonly onSignal?: (name: NodeJS.Signals) => void
}

/** Waits for SIGTERM or SIGINT, then closes; a second signal ends the process at once. @returns the first signal */
export async function closeOnSignals({ close, seconds, onSignal }: ClosingOptions): Promise<NodeJS.Signals> {
  const name = await firstSignal()
  onSignal?.(name)
  await close(AbortSignal.timeout(1000 * seconds))
  return name
}

const firstSignal = (): Promise<NodeJS.Signals> =>
  new Promise((resolve) => {
    let isFirst = true
    const receive = (name: NodeJS.Signals): void => {
      if (isFirst) resolve(name)
      else process.exit(name === 'SIGINT' ? 130 : 143)
      isFirst = false
    }
    for (const name of ['SIGTERM', 'SIGINT'] as const) process.on(name, receive)
  })
