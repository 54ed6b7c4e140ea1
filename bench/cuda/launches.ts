/** How cases start their kernels: what the emulation writes down instead of running them. */
import { execFileSync } from 'node:child_process'
import { readFile, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { readableNames } from './resources.js'

/** A kernel, or a call of one of NVIDIA's libraries, which has no shape of its own. */
export interface Launch {
  readonly name: string
  readonly blocks: number
  readonly threads: number
  readonly dynamicBytes: number
}

/** Calls `run` with the emulation writing instead of running. */
export async function launchesOf(run: () => Promise<void>): Promise<Launch[]> {
  const file = join(tmpdir(), `heddle-launches-${process.pid}`)
  process.env.HEDDLE_CUDA_HOST_LAUNCHES = file
  try {
    await run()
    return (await readFile(file, 'utf8').catch(() => '')).split('\n').filter(Boolean).map(parsed)
  } finally {
    delete process.env.HEDDLE_CUDA_HOST_LAUNCHES
    await rm(file, { force: true })
  }
}

function parsed(line: string): Launch {
  const [kind, what, blocks = 0, threads = 0, dynamicBytes = 0] = line.split(' ')
  const name = kind === 'library' ? what! : (functionNames().get(Number(what)) ?? `code at ${what}`)
  return { name, blocks: Number(blocks), threads: Number(threads), dynamicBytes: Number(dynamicBytes) }
}

let known: ReadonlyMap<number, string> | undefined

/** Functions of the emulation's addon, by where their code begins. */
function functionNames(): ReadonlyMap<number, string> {
  known ??= readFunctionNames(process.env.HEDDLE_CUDA_ADDON!)
  return known
}

function readFunctionNames(addon: string): Map<number, string> {
  const table = execFileSync('nm', [addon], { encoding: 'utf8', maxBuffer: 2 ** 28 })
  const functions = [...table.matchAll(/^([0-9a-f]+) [tTwW] (_Z\S+)$/gm)]
  const names = readableNames(functions.map(([, , symbol]) => symbol!))
  return new Map(functions.map(([, address], i) => [Number.parseInt(address!, 16), names[i]!]))
}
