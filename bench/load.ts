/** Time from the start of a Node process to the first token of SmolLM2-135M Q4_1, against node-llama-cpp. */
import { arch, cpus, platform } from 'node:os'
import { fileURLToPath } from 'node:url'
import { fetchModel } from '../test/models/fetch.js'
import { llamaCppModule } from './peers/llama_cpp.js'
import { startStepper } from './peers/stepper.js'

/** One line for `npm run bench -- --list`. */
export const purpose = 'seconds from a cold start of the process to the first token, against node-llama-cpp'

/** Starts fresh processes of both libraries in turn; the file is in the page cache. */
export async function run(args: readonly string[]): Promise<void> {
  const threads = Number(args[0] ?? 2)
  const rounds = Number(args[1] ?? 5)
  const path = await fetchModel('smollm2')
  const workerOf = (name: string): string => fileURLToPath(new URL(`./workers/${name}.js`, import.meta.url))
  const tokens = ['1', '0']
  const sides = {
    heddle: [workerOf('decode'), path, ...tokens],
    'node-llama-cpp': [workerOf('decode_llama_cpp'), await llamaCppModule(), path, ...tokens, `${threads}`],
  }
  const seconds: Record<string, number[]> = { heddle: [], 'node-llama-cpp': [] }
  for (let round = 0; round < rounds; round += 1)
    for (const [name, command] of Object.entries(sides)) {
      const start = performance.now()
      const stepper = await startStepper(process.execPath, command, threads)
      seconds[name]!.push((performance.now() - start) / 1000)
      stepper.stop()
      await stepper.ended
    }
  const medianOf = (name: string): number => seconds[name]!.toSorted((a, b) => a - b)[Math.floor(rounds / 2)]!
  for (const name of Object.keys(sides))
    console.log(`${name.padEnd(14)} ${medianOf(name).toFixed(2)} s to the first token`)
  const ratios = { firstToken: medianOf('node-llama-cpp') / medianOf('heddle') }
  const machine = `${cpus()[0]?.model.trim()}, ${threads} threads, ${platform()} ${arch()}`
  console.log(JSON.stringify({ bench: 'load', ratios, machine }))
}
