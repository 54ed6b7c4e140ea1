/** A LoRA training step (r 16, all seven linears, SmolLM2-135M shape, 4×256 tokens) against PEFT + torch. */
import { arch, cpus, platform } from 'node:os'
import { setTimeout } from 'node:timers/promises'
import { fileURLToPath } from 'node:url'
import { peerPython } from './peers/python.js'
import { type Stepper, startStepper } from './peers/stepper.js'

/** One line for `npm run bench -- --list`. */
export const purpose = 'LoRA training step, tokens/s and peak memory, against PEFT + torch on the same threads'

const tokens = 4 * 256

/** After its step an OpenMP team spins for 0.2 s, on cores that the other side needs. */
const restMilliseconds = 250

interface Side {
  readonly tokensPerSecond: number
  readonly peakBytes: number
}

/** Alternates single steps of both libraries in one run and prints the ratios of the medians: [threads] [pairs] [precision]. */
export async function run(args: readonly string[]): Promise<void> {
  const threads = Number(args[0] ?? 2)
  const pairs = Number(args[1] ?? 5)
  const precisions = args[2] === undefined ? ['f32', 'bf16'] : [args[2]]
  const root = fileURLToPath(new URL('../../', import.meta.url))
  const python = await peerPython(root)
  const ratios: Record<string, number> = {}
  for (const precision of precisions) {
    const worker = fileURLToPath(new URL('./workers/train_lora.js', import.meta.url))
    const peer = `${root}bench/peers/peft_lora.py`
    const [heddle, peft] = await Promise.all([
      startStepper(process.execPath, [worker, precision], threads),
      startStepper(python, [peer, '--dtype', precision, '--threads', `${threads}`, '--serve'], threads),
    ])
    Object.assign(ratios, await compared(precision, [heddle, peft], pairs))
  }
  // Both limits: the frozen matmuls alone, with packed weights, measured on the machine of docs/performance.md.
  console.log(JSON.stringify({ bench: 'train-lora', ratios, machine: machineText(threads) }))
}

/** Prints what both sides do, and gives the ratios of speed and memory under the precision's name. */
export async function compared(
  precision: string,
  [heddle, peft]: readonly [Stepper, Stepper],
  pairs: number,
): Promise<Record<string, number>> {
  const [ours, theirs] = await alternate(heddle, peft, pairs)
  console.log(line('heddle', precision, ours))
  console.log(line('peft', precision, theirs))
  return {
    [precision]: ours.tokensPerSecond / theirs.tokensPerSecond,
    [`${precision}Memory`]: ours.peakBytes / theirs.peakBytes,
  }
}

/** Where the numbers come from. */
export const machineText = (threads: number): string =>
  `${cpus()[0]?.model.trim()}, ${threads} threads, ${platform()} ${arch()}`

/** Medians of single steps of both, taken in turns; both are stopped then. */
async function alternate(a: Stepper, b: Stepper, pairs: number): Promise<[Side, Side]> {
  const seconds: [number[], number[]] = [[], []]
  for (let i = 0; i < pairs; i += 1) {
    for (const [side, stepper] of [a, b].entries()) {
      seconds[side]!.push(await stepper.step())
      await setTimeout(restMilliseconds)
    }
  }
  const sides = [await sideOf(a, seconds[0]), await sideOf(b, seconds[1])] as [Side, Side]
  a.stop()
  b.stop()
  return sides
}

async function sideOf(stepper: Stepper, seconds: readonly number[]): Promise<Side> {
  const median = seconds.toSorted((x, y) => x - y)[Math.floor(seconds.length / 2)]!
  return { tokensPerSecond: tokens / median, peakBytes: await stepper.peakBytes() }
}

/** A line of the table. */
const line = (name: string, precision: string, { tokensPerSecond, peakBytes }: Side): string =>
  `${name.padEnd(7)} ${precision.padEnd(5)} ${tokensPerSecond.toFixed(0).padStart(5)} tok/s   peak ${(peakBytes / 1e9).toFixed(2)} GB`
