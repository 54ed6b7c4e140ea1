/**
 * The CUDA kernels against the roofline of the card that runs them, and LoRA training steps of networks of two sizes.
 * `npm run bench -- cuda [part of an operator's name, lora or all] [runs] [full | tiny]`.
 */
import { addon, type CudaInfo } from '../lib/native.js'
import { bytesOf, type CudaCase, casesAt, type Scale } from './cuda/cases.js'
import { cards, roofline } from './cuda/chips.js'
import { loraShapes, loraTokensPerSecond } from './cuda/lora.js'
import { instructionSeconds } from './cuda/run_case.js'

/** One line for `npm run bench -- --list`. */
export const purpose = 'CUDA kernels against the roofline of the card, and tokens/s of LoRA steps (needs a GPU)'

/**
 * @param args part of an operator's name, `lora`, or `all`; runs of each program; `tiny` to see that everything runs
 * @throws ERR_HEDDLE_DEVICE that says what is missing where there is no GPU
 */
export async function run([part = 'all', runs = '7', scale = 'full']: readonly string[]): Promise<void> {
  const info = addon.cudaInfo()
  console.log(`${info.name}, compute capability ${info.capability}, ${(info.memory / 1e9).toFixed(0)} GB`)
  const chosen = casesAt(scale as Scale).filter(({ op }) => part === 'all' || op.includes(part))
  const kernels: Record<string, object> = {}
  for (const each of chosen) {
    const found = await measured(each, info, { runs: Number(runs), mostCopies: scale === 'full' ? 64 : 1 })
    kernels[`${each.op} ${each.name}`] = found
    console.log(lineOf(each, found))
  }
  const tokens: Record<string, number> = {}
  if (part === 'all' || part === 'lora')
    for (const shape of loraShapes(scale as Scale))
      for (const precision of ['f32', 'bf16'] as const) {
        const speed = await loraTokensPerSecond(shape, precision, Number(runs))
        tokens[`${shape.name} ${precision}`] = speed
        console.log(
          `LoRA r ${shape.r}, ${shape.name}, ${shape.rows} × ${shape.length} tokens, ${precision}: ${speed.toFixed(0)} tok/s`,
        )
      }
  console.log(JSON.stringify({ bench: 'cuda', card: info.name, scale, kernels, tokensPerSecond: tokens }))
}

interface Found {
  readonly seconds: number
  readonly flopsPerSecond: number
  readonly bytesPerSecond: number
  /** Of the card's roofline; undefined for cards whose numbers are not in bench/cuda/chips.ts. */
  readonly share?: number | undefined
  readonly bound?: string | undefined
}

/** Enough copies for some milliseconds. */
const [leastCopies, wantedSeconds] = [4, 3e-3]

async function measured(
  each: CudaCase,
  { name }: CudaInfo,
  { runs, mostCopies }: { readonly runs: number; readonly mostCopies: number },
): Promise<Found> {
  const work = { flops: each.flops, bytes: bytesOf(each), unit: each.unit ?? 'f32' }
  const card = cards.find(({ pattern }) => pattern.test(name))
  const limit = card && roofline(card, work)
  const estimate = limit?.seconds ?? work.bytes / 1e12
  const copies = Math.min(mostCopies, Math.max(leastCopies, Math.ceil(wantedSeconds / estimate)))
  const seconds = await instructionSeconds(each, { copies, runs })
  return {
    seconds,
    flopsPerSecond: work.flops / seconds,
    bytesPerSecond: work.bytes / seconds,
    share: limit && limit.seconds / seconds,
    bound: limit?.bound,
  }
}

function lineOf({ op, name }: CudaCase, { seconds, flopsPerSecond, bytesPerSecond, share, bound }: Found): string {
  const speed = `${(bytesPerSecond / 1e9).toFixed(0).padStart(5)} GB/s ${(flopsPerSecond / 1e9).toFixed(0).padStart(7)} GFLOP/s`
  const roof = share === undefined ? '' : `  ${(100 * share).toFixed(0).padStart(3)} % of the roofline (${bound})`
  return `${op.padEnd(24)} ${(1e6 * seconds).toFixed(1).padStart(10)} µs ${speed}${roof}  ${name}`
}
