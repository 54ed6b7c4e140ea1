/** What the assembler says about each kernel, as `npm run build:cuda` leaves it in `.cache/cuda/kernels`. */
import { execFileSync } from 'node:child_process'
import { existsSync } from 'node:fs'
import { readdir, readFile } from 'node:fs/promises'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'

export const root = fileURLToPath(new URL('../../../', import.meta.url))

/** Of one kernel on one architecture. */
export interface Usage {
  readonly registers: number
  /** Bytes of shared memory whose size the compiler knows. */
  readonly sharedBytes: number
  /** Bytes of local memory for arrays whose indices it does not know. */
  readonly stackBytes: number
  /** Bytes of registers that are written to memory for want of more. */
  readonly spilledBytes: number
}

export interface KernelResources {
  /** Its name in C++, with template arguments, without namespaces. */
  readonly name: string
  /** Such as `cuda/kernels/softmax.cu`. */
  readonly file: string
  /** By architecture: `80`, … */
  readonly usage: ReadonlyMap<string, Usage>
}

const entry =
  /entry function '(\S+)' for 'sm_(\d+)'[\s\S]*?(\d+) bytes stack frame, (\d+) bytes spill stores[\s\S]*?Used (\d+) registers(.*)/g

/** @throws Error where no kernel has been compiled */
export async function kernelResources(): Promise<KernelResources[]> {
  const folder = join(root, '.cache', 'cuda', 'kernels')
  const accounts = await readdir(folder).catch(() => [] as string[])
  // Those of files that are gone stay behind.
  const files = accounts.filter((file) => existsSync(join(root, sourceOf(file)))).sort()
  if (files.length === 0) throw new Error('No kernel has been compiled: npm run build:cuda')
  const kernels = await Promise.all(
    files.map(async (file) => inAccount(await readFile(join(folder, file), 'utf8'), sourceOf(file))),
  )
  return kernels.flat()
}

/** `cuda.kernels.softmax.cu.txt` is the account of `cuda/kernels/softmax.cu`. */
const sourceOf = (account: string): string => {
  const [folder, room, ...rest] = account.replace(/\.txt$/, '').split('.')
  return `${folder}/${room}/${rest.join('.')}`
}

function inAccount(text: string, file: string): KernelResources[] {
  const usages = new Map<string, Map<string, Usage>>()
  for (const [, symbol, architecture, stack, spilled, registers, rest] of text.matchAll(entry)) {
    const usage = {
      registers: Number(registers),
      sharedBytes: Number(/(\d+) bytes smem/.exec(rest!)?.[1] ?? 0),
      stackBytes: Number(stack),
      spilledBytes: Number(spilled),
    }
    usages.set(symbol!, (usages.get(symbol!) ?? new Map<string, Usage>()).set(architecture!, usage))
  }
  const names = readableNames([...usages.keys()])
  return [...usages.values()].map((usage, i) => ({ name: names[i]!, file, usage }))
}

/** Names of functions without parameters and namespaces. */
export function readableNames(symbols: readonly string[]): string[] {
  if (symbols.length === 0) return []
  const text = execFileSync('c++filt', ['--no-params'], { input: symbols.join('\n'), encoding: 'utf8' })
  return text
    .trimEnd()
    .split('\n')
    .map((name) => name.replaceAll(/^void |heddle::cuda::|heddle::|\(anonymous namespace\)::/g, ''))
}
