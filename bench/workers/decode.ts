/** Heddle's side of `decode` and `load`: a GGUF file's prefill and greedy decoding, per line on standard input. */
import { createInterface } from 'node:readline'
import { type DrawSettings, Session } from '../../lib/generate/session.js'
import { loadModel } from '../../lib/index.js'

const [path, promptTokens, newTokens, profiles] = process.argv.slice(2) as [string, string, string, string?]
const settings: DrawSettings = {
  temperature: 0,
  topK: 0,
  topP: 1,
  minP: 0,
  repetitionPenalty: 1,
  presencePenalty: 0,
  frequencyPenalty: 0,
  seed: 0,
  stream: 0,
}
const precision = 'stored'
const model = await loadModel(path, { precision })
const session = await Session.create(model.network, { precision }, 1024)
const prompt = Int32Array.from({ length: Number(promptTokens) }, (_, i) => 100 + ((i * 37) % 5000))

async function next(tokens: Int32Array): Promise<Int32Array> {
  const [drawn] = await session.next([{ tokens, settings }])
  return Int32Array.of(drawn!.token)
}

async function measure(): Promise<Record<string, number>> {
  session.truncate(0)
  const start = performance.now()
  let token = await next(prompt)
  const middle = performance.now()
  for (let count = 0; count < Number(newTokens); count += 1) token = await next(token)
  return { prefill: (middle - start) / 1000, decode: (performance.now() - middle) / 1000, token: token[0]! }
}

const first = await measure()
console.log(JSON.stringify({ ready: true, ...first }))
for await (const line of createInterface({ input: process.stdin })) {
  if (line === 'report') console.log(JSON.stringify({ peak_bytes: process.resourceUsage().maxRSS * 1024 }))
  else console.log(JSON.stringify(await measure()))
}
if (profiles) console.error(session.profile())
session.dispose()
await model.dispose()
