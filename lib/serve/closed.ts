/** The end of an answer, whether it was sent whole or its client went away. */
import type { FastifyReply } from 'fastify'

/** Calls back once an answer's connection is done with it: at once for a client that is gone already. */
export function onClosed({ raw }: FastifyReply, then: () => void): void {
  if (raw.destroyed) then()
  else raw.once('close', then)
}
