/** A server in a process of its own, which tells on request how it fares. */
import type { EngineState } from '../../lib/engine/events.js'
import { startServer } from '../../lib/serve/server.js'
import { watchEventLoop } from '../../test/support/event_loop.js'

/** What the process answers to any message. */
export interface Fare {
  readonly residentBytes: number
  readonly heapBytes: number
  /** Longest holds of the event loop since the last answer, in milliseconds. */
  readonly held: number
  readonly own: number | undefined
  readonly state: EngineState
}

const [model, adapters, data, adapterBytes] = process.argv.slice(2) as [string, string, string, string]
const server = await startServer({
  model,
  modelName: 'base',
  adapters,
  data,
  port: 0,
  logger: false,
  limits: { requestsPerMinute: 1e9, concurrency: 1000 },
  engine: { memory: { adapters: Number(adapterBytes) } },
})
const look = watchEventLoop()
process.on('message', () => {
  const { rss, heapUsed } = process.memoryUsage()
  process.send?.({ residentBytes: rss, heapBytes: heapUsed, ...look(), state: server.engine.state() } satisfies Fare)
})
process.once('disconnect', () => process.exit(0))
process.send?.({ url: server.url })
