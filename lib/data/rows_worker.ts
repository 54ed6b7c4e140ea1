/** The worker thread of one `openRows`: gives a block for each request, and reads the next one meanwhile. */
import { parentPort, workerData } from 'node:worker_threads'
import { toPlainError } from '../tokenize/protocol.js'
import { fileBlocks } from './row_blocks.js'
import type { RowBlock, RowsWorkerData, RowsWorkerReply } from './rows.js'

const { paths, settings } = workerData as RowsWorkerData
const blocks = fileBlocks(paths, settings)
let next = read()

parentPort!.on('message', async () => {
  parentPort!.postMessage(await reply())
})

async function reply(): Promise<RowsWorkerReply> {
  try {
    const { value, done } = await next
    next = read()
    return { block: done ? undefined : (value as RowBlock) }
  } catch (error) {
    return { error: toPlainError(error) }
  }
}

function read(): ReturnType<typeof blocks.next> {
  const result = blocks.next()
  // Reported when it is asked for; until then a failure must not count as unhandled.
  result.catch(() => {})
  return result
}
