/** `heddle serve` as a process of its own. */
import { type ChildProcess, spawn } from 'node:child_process'
import { once } from 'node:events'
import { text } from 'node:stream/consumers'
import { fileURLToPath } from 'node:url'

const script = fileURLToPath(new URL('../../lib/cli/heddle.js', import.meta.url))

const children = new Set<ChildProcess>()
process.on('exit', () => {
  for (const child of children) child.kill('SIGKILL')
})

/** How a process ended. */
export interface Ended {
  /** Null when a signal ended it. */
  readonly code: number | null
  readonly signal: NodeJS.Signals | null
  readonly stdout: string
  readonly stderr: string
}

/** A server that listens. */
export interface ServeProcess {
  readonly child: ChildProcess
  readonly url: string
  readonly ended: Promise<Ended>
}

/** Runs `heddle` to its end. */
export const heddle = (...args: readonly string[]): Promise<Ended> => endOf(started(args))

/** Starts `heddle serve` and waits until it listens. @throws what it printed, if it ends before */
export async function serveProcess(...args: readonly string[]): Promise<ServeProcess> {
  const child = started(['serve', '--json', '--port', '0', ...args])
  const ended = endOf(child)
  const url = await Promise.race([
    listening(child),
    ended.then(({ code, stderr }) => Promise.reject(new Error(`ended with ${code}: ${stderr}`))),
  ])
  return { child, url, ended }
}

const started = (args: readonly string[]): ChildProcess => {
  const child = spawn(process.execPath, [script, ...args], { stdio: ['ignore', 'pipe', 'pipe'] })
  children.add(child)
  child.once('exit', () => children.delete(child))
  return child
}

async function endOf(child: ChildProcess): Promise<Ended> {
  const [stdout, stderr, [code, signal]] = await Promise.all([
    text(child.stdout!),
    text(child.stderr!),
    once(child, 'exit') as Promise<[number | null, NodeJS.Signals | null]>,
  ])
  return { code, signal, stdout, stderr }
}

/** The address in its first event. */
const listening = (child: ChildProcess): Promise<string> =>
  new Promise((resolve) => {
    let seen = ''
    child.stdout!.on('data', (chunk: Buffer) => {
      seen += chunk.toString()
      const line = seen.split('\n').find((each) => each.includes('"event":"listening"'))
      if (line?.endsWith('}')) resolve((JSON.parse(line) as { readonly url: string }).url)
    })
  })
