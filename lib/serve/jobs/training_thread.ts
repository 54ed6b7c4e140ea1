/**
 * The main module of a thread that starts a process that trains, and passes on what the two sides say. Starting a process
 * holds the loop that does it until the server's memory is mapped a second time and the other program has begun.
 */
import { fork } from 'node:child_process'
import { fileURLToPath } from 'node:url'
import { parentPort } from 'node:worker_threads'
import type { ProcessEnd, ServerMessage, WorkerMessage } from './worker_messages.js'

/** Characters of what it prints that are kept for the log: the last ones. */
const mostSaid = 2000

const port = parentPort!
const script = fileURLToPath(new URL('./worker.js', import.meta.url))
const child = fork(script, [], { stdio: ['ignore', 'ignore', 'pipe', 'ipc'], execArgv: [] })

let said = ''
const hear = (text: string): void => {
  said = (said + text).slice(-mostSaid)
}

const end = (code: number | null, signal: NodeJS.Signals | null): void => {
  const ended: ProcessEnd = { kind: 'ended', code, signal, stderr: said }
  port.postMessage(ended)
  port.close()
}

port.on('message', (message: ServerMessage | { readonly kind: 'kill' }) => {
  if (message.kind === 'kill') child.kill('SIGKILL')
  // One that has just ended cannot be told anything; that it ended is heard elsewhere.
  else if (child.connected) child.send(message, () => {})
})
child.on('message', (message: WorkerMessage) => port.postMessage(message))
child.stderr?.setEncoding('utf8').on('data', hear)
child.once('error', (error) => {
  hear(error.message)
  if (child.pid === undefined) end(null, null)
})
child.once('close', end)
