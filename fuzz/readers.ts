/**
 * Coverage-guided fuzzing of the TypeScript readers of weight files. V8 says which blocks of lib/formats an input runs;
 * an input that runs a new block, or one clearly more often, joins the corpus, and mutations of the corpus are tried
 * until the time is over. Ends with 1, and leaves the input in `.cache/fuzz`, when a reader fails with anything but
 * ERR_HEDDLE_FORMAT or takes longer than a second.
 *
 * Usage: readers.js <safetensors | gguf> <seconds> [seed]
 */
import { mkdirSync, readdirSync, readFileSync, writeFileSync } from 'node:fs'
import { type Profiler, Session } from 'node:inspector'
import { dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { HeddleError } from '../lib/errors.js'
import { sourceOf } from '../lib/formats/byte_source.js'
import { readGgufHeader } from '../lib/formats/gguf.js'
import { readSafetensorsHeader } from '../lib/formats/safetensors.js'

type Format = 'safetensors' | 'gguf'

const [format, seconds, seed = '1'] = process.argv.slice(2) as [Format, string, string?]
const root = join(dirname(fileURLToPath(import.meta.url)), '..', '..')
const readers = { safetensors: readSafetensorsHeader, gguf: readGgufHeader } as const
const interesting = [0, 1, 2, 3, 7, 8, 9, 12, 31, 32, 64, 127, 128, 255, 2 ** 16, 2 ** 31, 2 ** 32 - 1]
const maxBytes = 1 << 14
const batchSize = 32

let state = Number(seed) >>> 0
/** An integer below the limit (mulberry32). */
function below(limit: number): number {
  state = (state + 0x6d2b79f5) >>> 0
  let word = Math.imul(state ^ (state >>> 15), state | 1)
  word ^= word + Math.imul(word ^ (word >>> 7), word | 61)
  return Math.floor((((word ^ (word >>> 14)) >>> 0) / 2 ** 32) * limit)
}
const pick = <T>(values: readonly T[]): T => values[below(values.length)]!

const session = new Session()
session.connect()

function post<T>(method: string, parameters?: object): T {
  let answer: T | undefined
  session.post(method, parameters ?? {}, (error, result) => {
    if (error) throw error
    answer = result as T
  })
  return answer!
}

/** What an input ran: each block with the magnitude of how often. */
function coverage(): string[] {
  const { result } = post<Profiler.TakePreciseCoverageReturnType>('Profiler.takePreciseCoverage')
  return result
    .filter(({ url }) => url.includes('/lib/formats/'))
    .flatMap(({ scriptId, functions }) =>
      functions.flatMap(({ ranges }) =>
        ranges
          .filter(({ count }) => count > 0)
          .map(({ startOffset, endOffset, count }) => `${scriptId}:${startOffset}:${endOffset}:${Math.clz32(count)}`),
      ),
    )
}

function mutated(corpus: readonly Uint8Array[]): Uint8Array {
  let bytes = Buffer.from(pick(corpus))
  for (let times = 1 + below(4); times > 0; times--) {
    const at = below(bytes.length + 1)
    const count = 1 + below(8)
    switch (below(8)) {
      case 0:
        bytes = Buffer.concat([bytes.subarray(0, at), bytes.subarray(at + count)])
        break
      case 1:
        bytes = Buffer.concat([bytes.subarray(0, at), bytes.subarray(at, at + 4 * count), bytes.subarray(at)])
        break
      case 2: {
        const other = Buffer.from(pick(corpus))
        bytes = Buffer.concat([bytes.subarray(0, at), other.subarray(below(other.length + 1))])
        break
      }
      case 3:
        if (at + 4 <= bytes.length) bytes.writeUInt32LE(pick(interesting), at)
        break
      case 4:
        if (at + 8 <= bytes.length) bytes.writeBigUInt64LE(BigInt(pick(interesting)) << BigInt(below(33)), at)
        break
      case 5:
        if (at < bytes.length) bytes[at]! ^= 1 << below(8)
        break
      case 6:
        bytes = bytes.subarray(0, at)
        break
      default:
        if (at < bytes.length) bytes[at] = below(256)
    }
  }
  return Uint8Array.from(bytes.subarray(0, maxBytes))
}

/** Why the input is a finding, if it is one. */
async function attempt(bytes: Uint8Array): Promise<string | undefined> {
  const read = (offset: number, length: number) => Uint8Array.from(bytes.subarray(offset, offset + length)).buffer
  const started = performance.now()
  try {
    await readers[format](sourceOf('fuzz', { size: bytes.length, read }))
  } catch (error) {
    if (!(error instanceof HeddleError) || error.code !== 'ERR_HEDDLE_FORMAT') return String((error as Error).stack)
  }
  const taken = performance.now() - started
  return taken < 1000 ? undefined : `took ${taken} ms`
}

const seeds = join(root, 'fuzz', 'seeds', format)
const corpus: Uint8Array[] = readdirSync(seeds).map((name) => Uint8Array.from(readFileSync(join(seeds, name))))
const seen = new Set<string>()
post('Profiler.enable')
post('Profiler.startPreciseCoverage', { callCount: true, detailed: true })
let tried = 0

/** Reads an input; a finding ends the process. */
async function tryOut(bytes: Uint8Array): Promise<void> {
  tried += 1
  const finding = await attempt(bytes)
  if (finding === undefined) return
  const path = join(root, '.cache', 'fuzz', `${format}-finding`)
  mkdirSync(dirname(path), { recursive: true })
  writeFileSync(path, bytes)
  process.stdout.write(`${format}: ${finding}\nThe input: ${path}\n`)
  process.exit(1)
}

/** Says whether something new was run since the last call. */
function isNew(): boolean {
  const fresh = coverage().filter((block) => !seen.has(block))
  for (const block of fresh) seen.add(block)
  return fresh.length > 0
}

for (const bytes of corpus) await tryOut(bytes)
isNew()
for (const end = performance.now() + 1000 * Number(seconds); performance.now() < end; ) {
  // Asking V8 costs more than reading: one question for many inputs, and again for each of them when the answer is yes.
  const batch = Array.from({ length: batchSize }, () => mutated(corpus))
  for (const bytes of batch) await tryOut(bytes)
  const news = coverage().filter((block) => !seen.has(block))
  if (news.length === 0) continue
  for (const bytes of batch) {
    await tryOut(bytes)
    if (isNew()) corpus.push(bytes)
  }
}
process.stdout.write(`${format}: ${tried} inputs, ${seen.size} blocks, ${corpus.length} inputs kept\n`)
