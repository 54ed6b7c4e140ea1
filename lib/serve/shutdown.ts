/** The end of a server: no new requests, running ones finish within a limit, and what outlasts it is cut off. */
import type { Server } from 'node:http'
import type { Socket } from 'node:net'
import type { FastifyInstance } from 'fastify'
import type { Engine } from '../engine/engine.js'

/**
 * Stops listening, waits for requests that run, and closes the engine; once the signal is set, what still runs is
 * aborted and its connections end. Jobs checkpoint in their own `preClose` hook.
 */
export async function shutDown(app: FastifyInstance, engine: Engine, signal?: AbortSignal): Promise<void> {
  let hurry = (): void => {}
  const hurried = new Promise<void>((resolve) => {
    hurry = resolve
  })
  const onAbort = (): void => {
    hurry()
    // Texts that were aborted get a moment to say so on their streams.
    setTimeout(() => app.server.closeAllConnections(), 100).unref()
  }
  if (signal?.aborted) onAbort()
  signal?.addEventListener('abort', onAbort, { once: true })
  // A connection whose last answer ends after the server stopped to listen would rest until its client lets go of it.
  const sweep = setInterval(() => {
    app.server.closeIdleConnections()
    closeSilent(app.server)
  }, 50)
  try {
    const closed = app.close()
    // A request that was taken may have texts yet to begin: the engine is there for them.
    await Promise.race([closed.catch(() => {}), hurried])
    await Promise.all([closed, engine.close(signal)])
  } finally {
    clearInterval(sweep)
    signal?.removeEventListener('abort', onAbort)
  }
}

const sockets = new WeakMap<Server, Set<Socket>>()

/** Notes a server's connections from now on, for {@link shutDown}. */
export function watchConnections(server: Server): void {
  const open = new Set<Socket>()
  sockets.set(server, open)
  server.on('connection', (socket) => {
    open.add(socket)
    socket.once('close', () => open.delete(socket))
  })
}

/** A connection that has not said anything yet is a busy one to Node, which would wait for its request. */
function closeSilent(server: Server): void {
  for (const socket of sockets.get(server) ?? []) if (socket.bytesRead === 0) socket.destroy()
}
