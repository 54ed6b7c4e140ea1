/** A server under mixed load for a while: memory, streams that stall, and the longest hold of its event loop. */
import { fork } from 'node:child_process'
import { once } from 'node:events'
import { mkdtemp, rm } from 'node:fs/promises'
import { arch, cpus, platform, tmpdir } from 'node:os'
import { join } from 'node:path'
import { setTimeout as after } from 'node:timers/promises'
import { fileURLToPath } from 'node:url'
import { loadModel, lora } from '../lib/index.js'
import { fetchModel } from '../test/models/fetch.js'
import type { Fare } from './workers/serve.js'

/** One line for `npm run bench -- --list`. */
export const purpose = 'a served model under mixed load: memory flat, no stalled stream, event loop held < 20 ms'

const ranks = [2, 4, 8, 16, 2, 4, 8, 16]
const streams = 12
const embedders = 2
const sampleSeconds = 10
/** A stream that says nothing for so long has stalled. */
const stallSeconds = 20
const heldLimit = 20

interface Counts {
  finished: number
  aborted: number
  embedded: number
  refused: number
  stalled: number
  broken: number
}

/** Takes minutes (default 15) and a model: `tiny` (default) or `smollm2`. */
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
  const counts: Counts = { finished: 0, aborted: 0, embedded: 0, refused: 0, stalled: 0, broken: 0 }
  const names = ['base', ...ranks.map((_, i) => `a${i}`)]
  const until = performance.now() + 1000 * seconds
  const isOver = (): boolean => performance.now() >= until
  const clients = [
    ...Array.from({ length: streams }, (_, i) =>
      streamer({ url: server.url, names, counts, isOver, random: randoms(i + 1) }),
    ),
    ...Array.from({ length: embedders }, (_, i) =>
      embedder({ url: server.url, names, counts, isOver, random: randoms(100 + i) }),
    ),
  ]
  const fares = await sampled(server.ask, isOver, counts)
  await Promise.all(clients)
  const end = await settled(server.ask)
  server.stop()
  summarise(fares, end, counts)
}

/** Saves adapters of several ranks. @returns bytes of all */
async function makeAdapters(source: string, folder: string): Promise<number> {
  const model = await loadModel(source)
  let bytes = 0
  for (const [i, r] of ranks.entries()) {
    const adapter = await model.attach(lora({ r, target_modules: 'all-linear' }), { seed: i })
    bytes += 4 * adapter.parameterCount
    await adapter.save(join(folder, `a${i}`))
    adapter.dispose()
  }
  await model.dispose()
  return bytes
}

async function startServer(model: string, adapters: string, data: string, bytes: number) {
  const script = fileURLToPath(new URL('./workers/serve.js', import.meta.url))
  const child = fork(script, [model, adapters, data, `${bytes}`])
  const [{ url }] = (await once(child, 'message')) as [{ readonly url: string }]
  const ask = async (): Promise<Fare> => {
    const answer = once(child, 'message')
    child.send('ask')
    return (await answer)[0] as Fare
  }
  return { url, ask, stop: () => child.disconnect() }
}

/** A row for every interval. */
async function sampled(ask: () => Promise<Fare>, isOver: () => boolean, counts: Counts): Promise<Fare[]> {
  const fares: Fare[] = []
  const started = performance.now()
  await ask()
  console.log(
    '   time   resident     heap    running waiting   held ms (own)   finished aborted embedded stalled broken',
  )
  while (!isOver()) {
    await after(1000 * sampleSeconds)
    const fare = await ask()
    fares.push(fare)
    const { residentBytes, heapBytes, state, held, own } = fare
    const megabytes = (value: number): string => `${(value / 2 ** 20).toFixed(1)} MB`.padStart(10)
    console.log(
      `${((performance.now() - started) / 1000).toFixed(0).padStart(5)} s ${megabytes(residentBytes)} ${megabytes(heapBytes)} ${`${state.running}`.padStart(8)} ${`${state.waiting}`.padStart(7)} ${held.toFixed(1).padStart(9)} (${own?.toFixed(1) ?? '-'}) ${[counts.finished, counts.aborted, counts.embedded, counts.stalled, counts.broken].map((n) => `${n}`.padStart(8)).join('')}`,
    )
  }
  return fares
}

interface ClientOptions {
  readonly url: string
  readonly names: readonly string[]
  readonly counts: Counts
  readonly isOver: () => boolean
  readonly random: () => number
}

/** Asks for one text after the other with any adapter, and hangs up on every third. */
async function streamer({ url, names, counts, isOver, random }: ClientOptions): Promise<void> {
  while (!isOver()) {
    const hangUp = new AbortController()
    const willHangUp = random() < 1 / 3
    const body = {
      model: names[Math.floor(random() * names.length)],
      prompt: 'A loom holds the warp threads under tension. '.repeat(1 + Math.floor(4 * random())),
      max_tokens: 16 + Math.floor(100 * random()),
      temperature: random() < 0.5 ? 0 : 0.8,
      stream: true,
    }
    const lengthBeforeHangUp = 500 + 3000 * random()
    let seen = ''
    let stalled = false
    const stall = (): void => {
      stalled = true
      hangUp.abort()
    }
    let timer = setTimeout(stall, 1000 * stallSeconds)
    try {
      const answer = await fetch(`${url}/v1/completions`, { ...post(body), signal: hangUp.signal })
      const decoder = new TextDecoder()
      for await (const chunk of answer.body!) {
        clearTimeout(timer)
        timer = setTimeout(stall, 1000 * stallSeconds)
        seen += decoder.decode(chunk as Uint8Array, { stream: true })
        if (willHangUp && seen.length > lengthBeforeHangUp) {
          hangUp.abort()
          break
        }
      }
      if (hangUp.signal.aborted) counts.aborted += 1
      else if (!answer.ok) counts.refused += 1
      else if (seen.endsWith('data: [DONE]\n\n')) counts.finished += 1
      else counts.broken += 1
    } catch {
      if (stalled) counts.stalled += 1
      else if (hangUp.signal.aborted) counts.aborted += 1
      else counts.broken += 1
    } finally {
      clearTimeout(timer)
    }
  }
}

async function embedder({ url, counts, isOver, random }: ClientOptions): Promise<void> {
  while (!isOver()) {
    await after(200 + 600 * random())
    const request = post({ model: 'base', input: ['A loom', 'holds the warp'] })
    try {
      const answer = await fetch(`${url}/v1/embeddings`, {
        ...request,
        signal: AbortSignal.timeout(1000 * stallSeconds),
      })
      await answer.text()
      if (answer.ok) counts.embedded += 1
      else counts.refused += 1
    } catch {
      counts.stalled += 1
    }
  }
}

const post = (body: unknown) => ({
  method: 'POST',
  headers: { 'content-type': 'application/json' },
  body: JSON.stringify(body),
})

/** Memory of the last quarter against that of the second, when everything has been used once. */
function summarise(fares: readonly Fare[], end: Fare, counts: Counts): void {
  const medianOf = (from: number, to: number, pick: (fare: Fare) => number): number => {
    const values = fares.slice(Math.floor(from * fares.length), Math.ceil(to * fares.length)).map(pick)
    return values.toSorted((a, b) => a - b)[Math.floor(values.length / 2)] ?? 0
  }
  const growth = (pick: (fare: Fare) => number): number => medianOf(0.75, 1, pick) / medianOf(0.25, 0.5, pick)
  const [resident, heap] = [growth((fare) => fare.residentBytes), growth((fare) => fare.heapBytes)]
  const held = Math.max(...fares.map((fare) => fare.held))
  const own = Math.max(...fares.map((fare) => fare.own ?? fare.held))
  console.log(
    `Memory, last quarter / second: resident ${resident.toFixed(3)}, heap ${heap.toFixed(3)}. Streams stalled: ${counts.stalled}, broken: ${counts.broken}. Event loop held at most ${held.toFixed(1)} ms, ${own.toFixed(1)} ms of them by the server itself. Left at the end: ${end.state.running} running, ${end.state.waiting} waiting, ${(end.state.cache.usedBytes / 2 ** 20).toFixed(1)} MB of cache, ${end.state.adapters.loaded.length} adapters.`,
  )
  const machine = `${cpus()[0]?.model.trim()}, ${cpus().length} cores, ${platform()} ${arch()}`
  console.log(
    JSON.stringify({
      bench: 'soak',
      ratios: { resident, heap },
      limitShare: { eventLoop: own / heldLimit, eventLoopWithWaiting: held / heldLimit },
      counts,
      machine,
    }),
  )
}

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

/** A reproducible sequence (Park and Miller's). */
function randoms(seed: number): () => number {
  let state = seed
  return () => {
    state = (state * 48271) % 2147483647
    return state / 2147483647
  }
}
