/** An engine's throughput: one stream and sixteen, the base and a hundred adapters, and node-llama-cpp beside it. */
import { fileURLToPath } from 'node:url'
import { fetchModel } from '../test/models/fetch.js'
import { llamaCppModule } from './peers/llama_cpp.js'
import { type Stepper, startStepper } from './peers/stepper.js'
import { machineText } from './train-lora.js'

/** One line for `npm run bench -- --list`. */
export const purpose =
  'concurrent streams on one model, with a hundred adapters and without, against node-llama-cpp with as many sequences'

/** What each round measures, in tokens per second. */
const columns = ['one', 'sixteen', 'base', 'adapters', 'mixed'] as const

/** @param args threads, rounds, precision of the engine's weights (`stored`, `bf16`) */
export async function run([threads = '2', rounds = '3', precision = 'bf16']: readonly string[]): Promise<void> {
  const path = await fetchModel('smollm2')
  const peer = await llamaCppModule()
  const workerOf = (name: string): string => fileURLToPath(new URL(`./workers/${name}.js`, import.meta.url))
  const ours = await startStepper(process.execPath, [workerOf('serve_engine'), path, precision], Number(threads))
  const theirs = await startStepper(
    process.execPath,
    [workerOf('serve_llama_cpp'), peer, path, threads],
    Number(threads),
  )
  const measured: Record<string, number>[] = []
  for (let round = 0; round < Number(rounds); round += 1)
    measured.push({ ...(await ours.measure()), llamaCpp: (await theirs.measure()).sixteen! })
  const median = (name: string): number =>
    measured.map((each) => each[name]!).toSorted((a, b) => a - b)[Math.floor(measured.length / 2)]!
  for (const name of [...columns, 'llamaCpp'])
    console.log(`${name.padEnd(10)} ${median(name).toFixed(0).padStart(6)} tok/s`)
  for (const [name, side] of Object.entries({ heddle: ours, 'node-llama-cpp': theirs })) await reportMemory(name, side)
  const ratios = {
    'sixteen streams / one': median('sixteen') / median('one'),
    '100 adapters r 8 / base, 64 streams': median('adapters') / median('base'),
    '100 adapters of r 4 to 32 / base, 64 streams': median('mixed') / median('base'),
    'sixteen streams / node-llama-cpp': median('sixteen') / median('llamaCpp'),
  }
  console.log(JSON.stringify({ bench: 'serve', precision, ratios, machine: machineText(Number(threads)) }))
}

async function reportMemory(name: string, side: Stepper): Promise<void> {
  console.log(`${name.padEnd(14)} peak ${((await side.peakBytes()) / 1e6).toFixed(0)} MB`)
  side.stop()
}
