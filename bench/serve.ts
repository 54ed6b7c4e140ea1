/**
 * An engine's throughput: one stream against sixteen, a hundred adapters against the base alone, and node-llama-cpp beside
 * it. `npm run bench -- serve [case or all] [rounds] [precision] [threads]`.
 */
import { fileURLToPath } from 'node:url'
import { fetchModel } from '../test/models/fetch.js'
import { llamaCppModule } from './peers/llama_cpp.js'
import { type Stepper, startStepper } from './peers/stepper.js'
import { machineText } from './train-lora.js'

/** One line for `npm run bench -- --list`. */
export const purpose =
  'concurrent streams on one model, with a hundred adapters and without, against node-llama-cpp with as many sequences'

/** So many streams at once, each with so many new tokens, on the base alone or each with an adapter of its own. */
interface Load {
  readonly streams: number
  readonly tokens: number
  readonly adapters?: boolean
  readonly side?: 'heddle' | 'node-llama-cpp'
}

/** Two loads of which the first is to be so many times as fast. */
interface Claim {
  readonly name: string
  readonly loads: readonly [Load, Load]
}

const one: Load = { streams: 1, tokens: 64 }
const sixteen: Load = { streams: 16, tokens: 64 }
/** The other side takes ten seconds for sixteen texts of 64 tokens. */
const shorter = (load: Load): Load => ({ ...load, tokens: 32 })
const many: Load = { streams: 64, tokens: 32 }
const others = (load: Load): Load => ({ ...load, side: 'node-llama-cpp' })
const adapted = (load: Load): Load => ({ ...load, adapters: true })

const cases: Readonly<Record<string, readonly Claim[]>> = {
  streams: [{ name: '16 streams / 1', loads: [sixteen, one] }],
  adapters: [
    { name: '100 adapters / base, 16 streams', loads: [adapted(sixteen), sixteen] },
    { name: '100 adapters / base, 64 streams', loads: [adapted(many), many] },
  ],
  llama: [
    { name: 'heddle / node-llama-cpp, 1 stream', loads: [shorter(one), others(shorter(one))] },
    { name: 'heddle / node-llama-cpp, 16 streams', loads: [shorter(sixteen), others(shorter(sixteen))] },
  ],
}

/** @param args one of the cases or `all`, rounds, precision of the engine's products, threads */
export async function run([
  wanted = 'all',
  rounds = '3',
  precision = 'stored',
  threads = '2',
]: readonly string[]): Promise<void> {
  const claims = wanted === 'all' ? Object.values(cases).flat() : cases[wanted]
  if (!claims) throw new Error(`There is no case "${wanted}". There are: all, ${Object.keys(cases).join(', ')}.`)
  const loads = [...new Map(claims.flatMap(({ loads }) => loads).map((load) => [lineOf(load), load])).values()]
  const sides = new Map<string, Stepper>()
  for (const side of new Set(loads.map(sideOf))) sides.set(side, await started(side, precision, threads))
  const medians = await measured(loads, sides, Number(rounds))
  for (const load of loads) console.log(textOf(load, medians.get(lineOf(load))!))
  for (const [name, side] of sides) {
    console.log(`${name.padEnd(15)} peak ${((await side.peakBytes()) / 1e6).toFixed(0)} MB`)
    side.stop()
  }
  const speed = (load: Load): number => medians.get(lineOf(load))!.speed!
  const ratios = Object.fromEntries(claims.map(({ name, loads: [a, b] }) => [name, speed(a) / speed(b)]))
  console.log(JSON.stringify({ bench: 'serve', precision, ratios, machine: machineText(Number(threads)) }))
}

const sideOf = ({ side = 'heddle' }: Load): string => side

/** What the process is asked for; also tells loads apart, with its side. */
const lineOf = (load: Load): string =>
  [load.streams, load.tokens, load.adapters ? 'adapters' : 'base', sideOf(load)].join(' ')

async function started(side: string, precision: string, threads: string): Promise<Stepper> {
  const path = await fetchModel('smollm2')
  const workerOf = (name: string): string => fileURLToPath(new URL(`./workers/${name}.js`, import.meta.url))
  const args =
    side === 'heddle'
      ? [workerOf('serve_engine'), path, precision]
      : [workerOf('serve_llama_cpp'), await llamaCppModule(), path, threads]
  return startStepper(process.execPath, args, Number(threads))
}

/** Medians over rounds in which the loads take turns, after one that does not count: programs are compiled in it. */
async function measured(
  loads: readonly Load[],
  sides: ReadonlyMap<string, Stepper>,
  rounds: number,
): Promise<Map<string, Record<string, number>>> {
  const results = new Map(loads.map((load) => [lineOf(load), [] as Record<string, number>[]]))
  for (let round = 0; round <= rounds; round += 1)
    for (const load of loads) {
      const result = await sides.get(sideOf(load))!.ask(lineOf(load))
      console.error(`round ${round} of ${rounds}: ${textOf(load, result)}`)
      if (round > 0) results.get(lineOf(load))!.push(result)
    }
  const median = (each: readonly Record<string, number>[], name: string): number =>
    each.map((result) => result[name]!).toSorted((a, b) => a - b)[Math.floor(each.length / 2)]!
  return new Map(
    [...results].map(([line, each]) => [
      line,
      Object.fromEntries(Object.keys(each[0]!).map((name) => [name, median(each, name)])),
    ]),
  )
}

function textOf(load: Load, { speed, first }: Record<string, number>): string {
  const name = `${sideOf(load).padEnd(15)} ${`${load.streams}`.padStart(2)} × ${load.tokens}, ${load.adapters ? 'adapters' : 'base'}`
  return `${name.padEnd(38)} ${speed!.toFixed(0).padStart(5)} tok/s   first token ${(1000 * first!).toFixed(0).padStart(5)} ms`
}
