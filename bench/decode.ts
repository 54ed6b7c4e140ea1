/** SmolLM2-135M Q4_1: prefill of 512 tokens and greedy decoding of 64, against node-llama-cpp on the same threads. */
import { arch, cpus, platform } from 'node:os'
import { fileURLToPath } from 'node:url'
import { fetchModel } from '../test/models/fetch.js'
import { llamaCppModule } from './peers/llama_cpp.js'
import { type Stepper, startStepper } from './peers/stepper.js'

/** One line for `npm run bench -- --list`. */
export const purpose = 'prefill and decode, tokens/s, of a Q4_1 GGUF against node-llama-cpp on the same threads'

const promptTokens = 512
const newTokens = 64
/** Bytes of weights that each decoded token must read, and what this kind of machine reads per second. */
const bytesPerToken = 98e6
const bytesPerSecond = 55e9

/** Alternates rounds of both libraries in one run and prints the ratios of the medians. */
export async function run(args: readonly string[]): Promise<void> {
  const threads = Number(args[0] ?? 2)
  const rounds = Number(args[1] ?? 5)
  const path = await fetchModel('smollm2')
  const peer = await llamaCppModule()
  const workerOf = (name: string): string => fileURLToPath(new URL(`./workers/${name}.js`, import.meta.url))
  const tokens = [`${promptTokens}`, `${newTokens}`]
  const sides = [
    await startStepper(process.execPath, [workerOf('decode'), path, ...tokens], threads),
    await startStepper(process.execPath, [workerOf('decode_llama_cpp'), peer, path, ...tokens, `${threads}`], threads),
  ] as const
  const seconds = sides.map(() => [] as Record<string, number>[])
  for (let round = 0; round < rounds; round += 1)
    for (const [index, side] of sides.entries()) seconds[index]!.push(await side.measure())
  const [ours, theirs] = await Promise.all(sides.map((side, index) => summary(side, seconds[index]!)))
  for (const [name, side] of [
    ['heddle', ours!],
    ['node-llama-cpp', theirs!],
  ] as const)
    console.log(
      `${name.padEnd(14)} prefill ${side.prefill.toFixed(0).padStart(5)} tok/s   decode ${side.decode.toFixed(1).padStart(6)} tok/s   peak ${(side.peakBytes / 1e6).toFixed(0)} MB`,
    )
  const ratios = {
    prefill: ours!.prefill / theirs!.prefill,
    decode: ours!.decode / theirs!.decode,
    memory: ours!.peakBytes / theirs!.peakBytes,
  }
  const limitShare = { decode: (ours!.decode * bytesPerToken) / bytesPerSecond }
  const machine = `${cpus()[0]?.model.trim()}, ${threads} threads, ${platform()} ${arch()}`
  console.log(JSON.stringify({ bench: 'decode', ratios, limitShare, machine }))
}

async function summary(side: Stepper, rounds: readonly Record<string, number>[]) {
  const medianOf = (name: string): number =>
    rounds.map((round) => round[name]!).toSorted((a, b) => a - b)[Math.floor(rounds.length / 2)]!
  const peakBytes = await side.peakBytes()
  side.stop()
  return { prefill: promptTokens / medianOf('prefill'), decode: newTokens / medianOf('decode'), peakBytes }
}
