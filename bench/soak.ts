/** A server under mixed load for a while: its memory, streams that stall, and the longest hold of its event loop. */
import { fork } from 'node:child_process'
import { once } from 'node:events'
import { mkdtemp, rm } from 'node:fs/promises'
import { arch, cpus, platform, tmpdir } from 'node:os'
import { join } from 'node:path'
import { setTimeout as after } from 'node:timers/promises'
import { fileURLToPath } from 'node:url'
import { loadModel, lora } from '../lib/index.js'
import { fetchModel } from '../test/models/fetch.js'
import { type Counts, load, noCounts, stallSeconds } from './soak/load.js'
import type { Fare } from './workers/serve.js'

/** One line for `npm run bench -- --list`. */
export const purpose = 'a served model under mixed load: memory flat, no stalled stream, event loop held < 20 ms'

const ranks = [2, 4, 8, 16, 2, 4, 8, 16]
const longestInterval = 30
/** Until then everything has been used once: what grows later goes on to grow. */
const warmUpShare = 1 / 3
/** Most growth of resident memory from the end of the warm-up to the end. */
const growthLimit = 0.05
/** Longest hold of the event loop by the server itself, in milliseconds. */
const heldLimit = 20

/** Takes minutes (default 15) and a model: `tiny` (default) or `smollm2`. The exit code is 1 when a bar fails. */
export async function run([minutes = '15', name = 'tiny']: readonly string[]): Promise<void> {
  const model =
    name === 'tiny' ? fileURLToPath(new URL('../../models/heddle-tiny', import.meta.url)) : await fetchModel('smollm2')
  const folder = await mkdtemp(join(tmpdir(), 'heddle-soak-'))
  try {
    await soak({ model, folder, seconds: 60 * Number(minutes) })
  } finally {
    await rm(folder, { recursive: true, force: true })
  }
}

async function soak({ model, folder, seconds }: { model: string; folder: string; seconds: number }): Promise<void> {
  const adapters = join(folder, 'adapters')
  // Room for three of the eight, so that they come and go.
  const bytes = Math.ceil((await makeAdapters(model, adapters)) * (3 / ranks.length))
  const server = await startServer(model, adapters, join(folder, 'data'), bytes)
  const counts = noCounts()
  const until = performance.now() + 1000 * seconds
  const isOver = (): boolean => performance.now() >= until
  const names = ['base', ...ranks.map((_, index) => `a${index}`)]
  const clients = load({ url: server.url, names, counts, isOver })
  const interval = Math.min(longestInterval, seconds / 4)
  const [samples] = await Promise.all([sampled(server.ask, { interval, isOver, counts }), clients])
  const end = await settled(server.ask)
  await server.stop()
  judge(samples, end, counts)
}

/** Saves adapters of several ranks. @returns bytes of all */
async function makeAdapters(source: string, folder: string): Promise<number> {
  const model = await loadModel(source)
  let bytes = 0
  for (const [index, r] of ranks.entries()) {
    const adapter = await model.attach(lora({ r, target_modules: 'all-linear' }), { seed: index })
    bytes += 4 * adapter.parameterCount
    await adapter.save(join(folder, `a${index}`))
    adapter.dispose()
  }
  await model.dispose()
  return bytes
}

async function startServer(model: string, adapters: string, data: string, bytes: number) {
  const script = fileURLToPath(new URL('./workers/serve.js', import.meta.url))
  // The second as `heddle serve` sets it.
  const execArgv = ['--expose-gc', '--no-parallel-scavenge']
  const child = fork(script, [model, adapters, data, `${bytes}`], { execArgv })
  child.once('exit', (code, signal) => {
    if (code !== 0) throw new Error(`The server ended with ${signal ?? code}.`)
  })
  const [{ url }] = (await once(child, 'message')) as [{ readonly url: string }]
  const ask = async (): Promise<Fare> => {
    const answer = once(child, 'message')
    child.send('ask')
    return (await answer)[0] as Fare
  }
  const stop = async (): Promise<void> => {
    const exit = once(child, 'exit')
    child.disconnect()
    await exit
  }
  return { url, ask, stop }
}

/** How the server fared in an interval, and when. */
interface Sample extends Fare {
  readonly seconds: number
}

/** A row for every interval. */
async function sampled(
  ask: () => Promise<Fare>,
  { interval, isOver, counts }: { readonly interval: number; readonly isOver: () => boolean; readonly counts: Counts },
): Promise<Sample[]> {
  const samples: Sample[] = []
  const started = performance.now()
  await ask()
  printHeader()
  while (!isOver()) {
    await after(1000 * interval)
    const sample = { ...(await ask()), seconds: (performance.now() - started) / 1000 }
    samples.push(sample)
    printRow(sample, counts)
  }
  return samples
}

const columns = ['finished', 'aborted', 'embedded', 'trained', 'refused', 'stalled', 'broken', 'wrong'] as const

const printHeader = (): void =>
  console.log(
    `    time   resident       heap  handles  running  waiting  tokens/s  evicted  held ms (own) ${columns.map((name) => name.padStart(9)).join('')}`,
  )

function printRow({ seconds, state, held, own, ...fare }: Sample, counts: Counts): void {
  const cells = [
    `${seconds.toFixed(0)} s`.padStart(8),
    megabytes(fare.residentBytes).padStart(11),
    megabytes(fare.heapBytes).padStart(11),
    ...[fare.handles, state.running, state.waiting].map((count) => `${count}`.padStart(9)),
    fare.tokensPerSecond.toFixed(0).padStart(10),
    `${fare.evictions}`.padStart(9),
    `${held.toFixed(1)} (${own?.toFixed(1) ?? '-'})`.padStart(15),
    ...columns.map((name) => `${counts[name]}`.padStart(9)),
  ]
  console.log(cells.join(''))
}

const megabytes = (bytes: number): string => `${(bytes / 2 ** 20).toFixed(1)} MB`

/** How the server fares once nothing runs, or after a while in which something still does. */
async function settled(ask: () => Promise<Fare>): Promise<Fare> {
  const until = performance.now() + 1000 * stallSeconds
  let fare = await ask()
  while (fare.state.running + fare.state.waiting > 0 && performance.now() < until) {
    await after(100)
    fare = await ask()
  }
  return fare
}

/** Says which bars held. */
function judge(samples: readonly Sample[], end: Fare, counts: Counts): void {
  const late = samples.slice(Math.floor(warmUpShare * samples.length))
  const growth = (pick: (fare: Fare) => number): number => grown(late.map((each) => [each.seconds, pick(each)]))
  const [resident, heap] = [growth((fare) => fare.residentBytes), growth((fare) => fare.heapBytes)]
  const held = Math.max(...samples.map((sample) => sample.held))
  const own = Math.max(...samples.map((sample) => sample.own ?? sample.held))
  const { running, waiting, cache } = end.state
  const bars: readonly (readonly [what: string, holds: boolean])[] = [
    [`resident memory after the warm-up: ${percent(resident)}, limit ${percent(growthLimit)}`, resident < growthLimit],
    [`streams without a token for ${stallSeconds} s: ${counts.stalled}`, counts.stalled === 0],
    [`streams that broke off: ${counts.broken}`, counts.broken === 0],
    [`answers of another status than was due: ${counts.wrong}`, counts.wrong === 0],
    [`event loop held by the server itself: ${own.toFixed(1)} ms, limit ${heldLimit} ms`, own < heldLimit],
    [
      `left at the end: ${running} running, ${waiting} waiting, ${cache.usedBytes} bytes of cache`,
      running + waiting + cache.usedBytes === 0,
    ],
  ]
  for (const [what, holds] of bars) console.log(`${holds ? 'ok     ' : 'FAILED '} ${what}`)
  const machine = `${cpus()[0]?.model.trim()}, ${cpus().length} cores, ${platform()} ${arch()}`
  const ratios = { residentGrowth: resident, heapGrowth: heap }
  const limitShare = { eventLoop: own / heldLimit, eventLoopWithWaiting: held / heldLimit }
  console.log(JSON.stringify({ bench: 'soak', ratios, limitShare, counts, machine }))
  if (bars.some(([, holds]) => !holds)) process.exitCode = 1
}

const percent = (share: number): string => `${share >= 0 ? '+' : ''}${(100 * share).toFixed(1)} %`

/** How much of its mean a value grew from the first point to the last, by the line that fits best. */
function grown(points: readonly (readonly [x: number, y: number])[]): number {
  const mean = (values: readonly number[]): number => values.reduce((sum, value) => sum + value, 0) / values.length
  const [x, y] = [mean(points.map(([x]) => x)), mean(points.map(([, y]) => y))]
  const slope =
    mean(points.map((point) => (point[0] - x) * (point[1] - y))) /
    (mean(points.map((point) => (point[0] - x) ** 2)) || 1)
  return (slope * (points.at(-1)![0] - points[0]![0])) / y
}
