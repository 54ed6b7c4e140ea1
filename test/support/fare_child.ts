/**
 * A server that tells, whenever it is asked, what it holds: `fare_child.js <model> <data>`. Run with --expose-gc.
 */
import { readdirSync } from 'node:fs'
import { setTimeout as after } from 'node:timers/promises'
import type { EngineState } from '../../lib/engine/events.js'
import { startServer } from '../../lib/serve/server.js'

/** What a server holds once nothing runs. */
export interface Holding {
  readonly residentBytes: number
  readonly heapBytes: number
  readonly connections: number
  /** Open files of the process, sockets among them; undefined where the system does not tell. */
  readonly files: number | undefined
  readonly state: EngineState
}

const [model, data] = process.argv.slice(2) as [string, string]
const limits = { requestsPerMinute: 1e6, concurrency: 1000, bodyBytes: 2 ** 20 }
const engine = { memory: { cache: 2 ** 20 } }
const server = await startServer({ model, modelName: 'tiny', data, port: 0, logger: false, limits, engine })

const connections = (): Promise<number> =>
  new Promise((resolve) => server.app.server.getConnections((_, count) => resolve(count)))

async function holding(): Promise<Holding> {
  const isBusy = async (): Promise<boolean> => {
    const { running, waiting } = server.engine.state()
    return running + waiting + (await connections()) > 0
  }
  while (await isBusy()) await after(5)
  for (let i = 0; i < 3; i += 1) {
    global.gc!()
    // Finalizers run after the collection.
    await after(20)
  }
  const { rss, heapUsed } = process.memoryUsage()
  return {
    residentBytes: rss,
    heapBytes: heapUsed,
    connections: await connections(),
    files: process.platform === 'linux' ? readdirSync('/proc/self/fd').length : undefined,
    state: server.engine.state(),
  }
}

process.on('message', async () => process.send?.(await holding()))
process.once('disconnect', () => void server.close().then(() => process.exit(0)))
process.send?.({ url: server.url })
