/** The clients of the soak: they stream, hang up, embed, fine-tune, and send what no server should be sent. */
import { setTimeout as after } from 'node:timers/promises'
import OpenAI, { toFile } from 'openai'

/** A stream that says nothing for so long has stalled. */
export const stallSeconds = 20

/** What came of all requests. */
export interface Counts {
  finished: number
  /** Streams that their client left. */
  aborted: number
  embedded: number
  /** Fine-tuning jobs whose adapter has answered. */
  trained: number
  /** Requests that no server should answer, and that were refused with the right status. */
  refused: number
  stalled: number
  /** Streams that ended without `[DONE]`. */
  broken: number
  /** Answers with another status than the one that was due. */
  wrong: number
}

export const noCounts = (): Counts => ({
  finished: 0,
  aborted: 0,
  embedded: 0,
  trained: 0,
  refused: 0,
  stalled: 0,
  broken: 0,
  wrong: 0,
})

/** What every client is told. */
export interface LoadOptions {
  readonly url: string
  /** The base and the adapters; a fine-tuned one joins them. */
  readonly names: string[]
  readonly counts: Counts
  readonly isOver: () => boolean
}

/** Runs all clients until it is over. */
export async function load(options: LoadOptions, { streams = 12, embedders = 2 } = {}): Promise<void> {
  const range = (count: number): number[] => Array.from({ length: count }, (_, index) => index)
  await Promise.all([
    ...range(streams).map((index) => stream(options, randoms(index + 1))),
    ...range(embedders).map((index) => embed(options, randoms(index + 100))),
    misbehave(options, randoms(200)),
    fineTune(options),
  ])
}

/** Asks for one text after the other, with any adapter, and leaves every third. */
async function stream({ url, names, counts, isOver }: LoadOptions, random: () => number): Promise<void> {
  while (!isOver()) {
    const isChat = random() < 0.5
    const prompt = 'A loom holds the warp threads under tension. '.repeat(1 + Math.floor(4 * random()))
    const body = {
      model: names[Math.floor(random() * names.length)],
      ...(isChat ? { messages: [{ role: 'user', content: prompt }] } : { prompt }),
      max_tokens: 16 + Math.floor(100 * random()),
      temperature: random() < 0.5 ? 0 : 0.8,
      stream: true,
    }
    const mostBytes = random() < 1 / 3 ? 500 + 3000 * random() : Number.POSITIVE_INFINITY
    counts[await readStream(`${url}/v1/${isChat ? 'chat/' : ''}completions`, body, mostBytes)] += 1
  }
}

/** Reads a stream to its end, or hangs up once so many bytes have come. */
async function readStream(
  url: string,
  body: unknown,
  mostBytes: number,
): Promise<'finished' | 'aborted' | 'stalled' | 'broken' | 'wrong'> {
  const hangUp = new AbortController()
  let stalled = false
  const stall = setTimeout(() => {
    stalled = true
    hangUp.abort()
  }, 1000 * stallSeconds)
  try {
    const answer = await fetch(url, { ...post(body), signal: hangUp.signal })
    if (!answer.ok) return 'wrong'
    let [seen, end] = [0, '']
    for await (const chunk of answer.body!) {
      stall.refresh()
      seen += chunk.length
      end = (end + Buffer.from(chunk).toString('latin1')).slice(-20)
      if (seen <= mostBytes) continue
      hangUp.abort()
      return 'aborted'
    }
    return end.endsWith('data: [DONE]\n\n') ? 'finished' : 'broken'
  } catch {
    if (stalled) return 'stalled'
    return hangUp.signal.aborted ? 'aborted' : 'broken'
  } finally {
    clearTimeout(stall)
  }
}

async function embed({ url, counts, isOver }: LoadOptions, random: () => number): Promise<void> {
  while (!isOver()) {
    await after(200 + 600 * random())
    const status = await statusOf(`${url}/v1/embeddings`, post({ model: 'base', input: ['A loom', 'holds the warp'] }))
    counts[status === undefined ? 'stalled' : status === 200 ? 'embedded' : 'wrong'] += 1
  }
}

/** What clients send that have broken down or mean harm, and the status that is due. */
const misdeeds: readonly (readonly [path: string, request: RequestInit, status: number])[] = [
  ['/v1/completions', post({ model: '../../etc', prompt: 'a' }), 404],
  ['/v1/completions', post({ model: 'base', prompt: 'warp '.repeat(2 ** 18) }), 413],
  ['/v1/completions', { ...post(null), body: '{"model":' }, 400],
  ['/v1/chat/completions', post({ model: 'base', messages: [{ role: 'weaver', content: 'x' }] }), 400],
  ['/v1/completions', post({ model: 'base', prompt: 'warp and weft '.repeat(2000) }), 400],
  ['/v1/models/..%2f..%2fetc', {}, 404],
]

async function misbehave({ url, counts, isOver }: LoadOptions, random: () => number): Promise<void> {
  while (!isOver()) {
    await after(500 * random())
    const [path, request, due] = misdeeds[Math.floor(random() * misdeeds.length)]!
    const status = await statusOf(`${url}${path}`, request)
    counts[status === undefined ? 'stalled' : status === due ? 'refused' : 'wrong'] += 1
  }
}

/** The status of an answer; undefined where none came in time. */
async function statusOf(url: string, request: RequestInit): Promise<number | undefined> {
  try {
    const answer = await fetch(url, { ...request, signal: AbortSignal.timeout(1000 * stallSeconds) })
    await answer.arrayBuffer()
    return answer.status
  } catch {
    return undefined
  }
}

const chats = Array.from({ length: 24 }, (_, index) =>
  JSON.stringify({
    messages: [
      { role: 'user', content: `What colour has cloth ${index}?` },
      { role: 'assistant', content: ['blue', 'green', 'red'][index % 3] },
    ],
  }),
).join('\n')

/** Fine-tunes one adapter after the other, asks each once, and puts it among those that all clients ask for. */
async function fineTune({ url, names, counts, isOver }: LoadOptions): Promise<void> {
  const client = new OpenAI({ baseURL: `${url}/v1`, apiKey: 'none', maxRetries: 0 })
  while (!isOver()) {
    const file = await client.files.create({ file: await toFile(Buffer.from(chats), 'c.jsonl'), purpose: 'fine-tune' })
    const { id } = await client.fineTuning.jobs.create({
      model: 'base',
      training_file: file.id,
      heddle: { r: 4, training: { max_steps: 40, max_length: 64, checkpoint_every: 10 } },
    } as never)
    const job = await ended(client, id, isOver)
    if (job === undefined) return
    await client.files.delete(file.id)
    if (job.fine_tuned_model === null) counts.wrong += 1
    else {
      await client.completions.create({ model: job.fine_tuned_model, prompt: 'A loom', max_tokens: 4 })
      names.push(job.fine_tuned_model)
      counts.trained += 1
    }
    for (let waited = 0; waited < 30 && !isOver(); waited += 1) await after(1000)
  }
}

/** The job once it is over; undefined, and cancelled, where the soak is over before. */
async function ended(
  client: OpenAI,
  id: string,
  isOver: () => boolean,
): Promise<OpenAI.FineTuning.FineTuningJob | undefined> {
  for (;;) {
    const job = await client.fineTuning.jobs.retrieve(id)
    if (job.status !== 'queued' && job.status !== 'running') return job
    if (isOver()) {
      await client.fineTuning.jobs.cancel(id)
      return undefined
    }
    await after(500)
  }
}

function post(body: unknown) {
  return { method: 'POST', headers: { 'content-type': 'application/json' }, body: JSON.stringify(body) }
}

/** A reproducible sequence (Park and Miller's). */
function randoms(seed: number): () => number {
  let state = seed
  return () => {
    state = (state * 48271) % 2147483647
    return state / 2147483647
  }
}
