/** How cases start their kernels: what the emulation writes down instead of running them. */
import { execFileSync } from 'node:child_process'
import { readFile, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { readableNames } from './resources.js'

/** A kernel, or a call of one of NVIDIA's libraries, which has no shape of its own. */
export interface Launch {
  readonly name: string
  /** Such as `softmax.cu`, of a kernel that only this file has. */
  readonly file?: string
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
  const place = kind === 'library' ? { name: what! } : (functions().get(Number(what)) ?? { name: `code at ${what}` })
  return { ...place, blocks: Number(blocks), threads: Number(threads), dynamicBytes: Number(dynamicBytes) }
}

interface Place {
  readonly name: string
  readonly file?: string
}

let known: ReadonlyMap<number, Place> | undefined

/** Functions of the emulation's addon, by where their code begins. */
function functions(): ReadonlyMap<number, Place> {
  known ??= readFunctions(process.env.HEDDLE_CUDA_ADDON!)
  return known
}

/** A table of symbols names a source file before the functions that are its own. */
function readFunctions(addon: string): Map<number, Place> {
  const table = execFileSync('readelf', ['-sW', addon], { encoding: 'utf8', maxBuffer: 2 ** 28 })
  const found: { readonly address: number; readonly symbol: string; readonly file: string }[] = []
  let file = ''
  for (const [, address, type, name] of table.matchAll(/^ *\d+: ([0-9a-f]+) +\d+ (FILE|FUNC) .* (\S+)$/gm))
    if (type === 'FILE') file = name!
    else found.push({ address: Number.parseInt(address!, 16), symbol: name!, file })
  const names = readableNames(found.map(({ symbol }) => symbol))
  return new Map(
    found.map(({ address, symbol, file }, i) => [
      address,
      symbol.includes('_GLOBAL__N_') ? { name: names[i]!, file } : { name: names[i]! },
    ]),
  )
}
