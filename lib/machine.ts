/** What this machine can do for Heddle, measured: products per second, bytes per second, memory left. */
import { readFile } from 'node:fs/promises'
import { freemem, totalmem } from 'node:os'
import { computed } from './graph/computed.js'
import type { Precision } from './graph/ops/matmul.js'
import { matmul } from './graph/ops/matmul.js'
import { randomUniform } from './graph/ops/random.js'
import { sum } from './graph/ops/reduce.js'
import { program } from './graph/program.js'
import { read } from './graph/sym.js'
import { addon } from './native.js'
import { seedTensor } from './tensor/seed.js'
import type { Tensor } from './tensor/tensor.js'

/** Side of the square matrices that {@link measureProducts} multiplies. */
const side = 1024

/** Numbers that {@link measureReads} adds up: more than any cache holds. */
const readCount = 1 << 26

const repetitions = 5

/** Speed of matrix products with a packed right operand, in operations per second (the best of five). */
export async function measureProducts(precision: Precision): Promise<number> {
  const [a, b] = [await randomMatrix([side, side]), await randomMatrix([side, side])]
  const multiply = program((x) => matmul(x!, read(b), { precision }))
  const seconds = await bestTime(async () => (await multiply(a)).dispose())
  multiply.dispose()
  for (const each of [a, b]) each.dispose()
  return (2 * side ** 3) / seconds
}

/** Speed of reading memory, in bytes per second (the best of five). */
export async function measureReads(): Promise<number> {
  const values = await randomMatrix([readCount >> 12, 1 << 12])
  const total = program((x) => sum(x!, { axes: [1] }))
  const seconds = await bestTime(async () => (await total(values)).dispose())
  total.dispose()
  values.dispose()
  return (4 * readCount) / seconds
}

/** Bytes that a new allocation may count on: what the system has left, or this process's control group, if less. */
export async function availableMemory(): Promise<number> {
  const text = await readFile('/proc/meminfo', 'utf8').catch(() => '')
  const kibibytes = /^MemAvailable:\s+(\d+) kB/m.exec(text)?.[1]
  const system = kibibytes === undefined ? freemem() : Number(kibibytes) * 1024
  const group = process.constrainedMemory?.() ?? 0
  if (group <= 0 || group >= totalmem()) return system
  return Math.min(system, Math.max(0, group - process.memoryUsage.rss()))
}

/** The kernels' instruction set, whether it multiplies bf16 in hardware, cores, and threads in use. */
export const cpu = (): ReturnType<typeof addon.cpuInfo> & { readonly threads: number } => ({
  ...addon.cpuInfo(),
  threads: addon.threads(),
})

async function randomMatrix(shape: readonly number[]): Promise<Tensor> {
  using seed = seedTensor(1)
  return await computed((words) => randomUniform(words!, 0, shape), [seed])
}

/** Seconds of the fastest run; the first one, which packs and warms up, does not count. */
async function bestTime(run: () => Promise<void>): Promise<number> {
  await run()
  let best = Number.POSITIVE_INFINITY
  for (let i = 0; i < repetitions; i++) {
    const started = performance.now()
    await run()
    best = Math.min(best, performance.now() - started)
  }
  return best / 1000
}
