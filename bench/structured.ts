/**
 * The structured numerical core against torch: every case of bench/structured/*.ts, with its twin of the same name in
 * bench/peers/structured/*.py. `npm run bench -- structured [part of a case's name] [pairs] [threads]`.
 */
import { arch, cpus, platform } from 'node:os'
import { setTimeout } from 'node:timers/promises'
import { fileURLToPath } from 'node:url'
import { peerPython } from './peers/python.js'
import { type Stepper, startStepper } from './peers/stepper.js'
import { loadCases, type StructuredCase } from './structured/cases.js'

/** One line for `npm run bench -- --list`. */
export const purpose = 'factorisations and structured products, against torch on the same threads'

/** Alternates single runs of both libraries, case by case, and prints the ratios of the medians. */
export async function run([part = '', pairs = '5', threads = '2']: readonly string[]): Promise<void> {
  const cases = (await loadCases()).filter(({ name }) => name.includes(part))
  const root = fileURLToPath(new URL('../../', import.meta.url))
  const worker = fileURLToPath(new URL('./workers/structured.js', import.meta.url))
  const heddle = await startStepper(process.execPath, [worker], Number(threads))
  const torch = await startStepper(
    await peerPython(root),
    [`${root}bench/peers/structured.py`, threads],
    Number(threads),
  )
  const limits = (await heddle.ask('limits')) as unknown as Limits
  const ratios: Record<string, number> = {}
  const limitShare: Record<string, number> = {}
  for (const each of cases) {
    const [ours, theirs] = await alternate(each.name, [heddle, torch], Number(pairs))
    ratios[each.name] = theirs! / ours!
    limitShare[each.name] = limitOf(each, limits) / ours!
    console.log(
      `${each.name.padEnd(34)} heddle ${milliseconds(ours!)}   torch ${milliseconds(theirs!)}   ` +
        `${ratios[each.name]!.toFixed(2)}×   ${(100 * limitShare[each.name]!).toFixed(0)} % of the limit`,
    )
  }
  heddle.stop()
  torch.stop()
  const machine = `${cpus()[0]?.model.trim()}, ${threads} threads, ${platform()} ${arch()}`
  console.log(JSON.stringify({ bench: 'structured', ratios, limitShare, machine }))
}

/** What the machine reached in this run: a dense f32 product, and a copy. */
interface Limits {
  readonly flopsPerSecond: number
  readonly bytesPerSecond: number
}

const limitOf = ({ flops, bytes }: StructuredCase, { flopsPerSecond, bytesPerSecond }: Limits): number =>
  Math.max(flops / flopsPerSecond, bytes / bytesPerSecond)

/** After its work an OpenMP team spins for 0.2 s, on cores that the other side needs. */
const restMilliseconds = 250

/** Medians of the seconds that a case takes on each side, after one run of each that does not count. */
async function alternate(name: string, sides: readonly Stepper[], pairs: number): Promise<number[]> {
  const seconds = sides.map((): number[] => [])
  for (let i = -1; i < pairs; i += 1)
    for (const [side, stepper] of sides.entries()) {
      await setTimeout(restMilliseconds)
      const answer = await stepper.ask(`step ${name}`)
      if (i >= 0) seconds[side]!.push(answer.seconds!)
    }
  return seconds.map((all) => all.toSorted((x, y) => x - y)[Math.floor(all.length / 2)]!)
}

const milliseconds = (seconds: number): string => `${(seconds * 1000).toFixed(2).padStart(9)} ms`
