/** A server in a process of its own, which tells on request how it fares. Run with --expose-gc. */
import { setTimeout as after } from 'node:timers/promises'
import type { EngineState } from '../../lib/engine/events.js'
import { startServer } from '../../lib/serve/server.js'
import { type Held, watchEventLoop } from '../../test/support/event_loop.js'

/** What the process answers to any message, about the time since the last one. */
export interface Fare extends Held {
  /** After garbage was collected. */
  readonly residentBytes: number
  readonly heapBytes: number
  /** Sockets, timers and the like that keep a process alive. */
  readonly handles: number
  readonly tokensPerSecond: number
  /** Adapters that have made room for others. */
  readonly evictions: number
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
  // Little enough to be full soon: pages are kept until there is no other room.
  engine: { memory: { cache: 2 ** 26, adapters: Number(adapterBytes) } },
})
let [tokens, evictions, since] = [0, 0, performance.now()]
server.engine.watch({
  onStep: ({ newTokens }) => {
    tokens += newTokens
  },
  onEvict: () => {
    evictions += 1
  },
})
const look = watchEventLoop()

async function fare(): Promise<Fare> {
  const seen = look()
  const tokensPerSecond = (1000 * tokens) / (performance.now() - since)
  ;[tokens, since] = [0, performance.now()]
  global.gc!()
  // Finalizers run after the collection.
  await after(50)
  const { rss, heapUsed } = process.memoryUsage()
  const handles = process.getActiveResourcesInfo().length
  // The collection itself is not the server's.
  look()
  return {
    ...seen,
    residentBytes: rss,
    heapBytes: heapUsed,
    handles,
    tokensPerSecond,
    evictions,
    state: server.engine.state(),
  }
}

process.on('message', async () => process.send?.(await fare()))
process.once('disconnect', () => void server.close(AbortSignal.timeout(5000)).then(() => process.exit(0)))
process.send?.({ url: server.url })
