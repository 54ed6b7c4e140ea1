/** Weights of a folder in one safetensors file or, beyond a size, in several with an index, named as transformers does. */
import { readdir, rm } from 'node:fs/promises'
import { join } from 'node:path'
import { HeddleError } from '../errors.js'
import { addon, type SafetensorsEntry } from '../native.js'
import { dtypeSize, elementCount } from '../tensor/dtype.js'
import { writeJsonAtomic } from './atomic_file.js'

const single = 'model.safetensors'
const index = 'model.safetensors.index.json'
const shardName = /^model-\d{5}-of-\d{5}\.safetensors$/
const units = { KB: 1e3, MB: 1e6, GB: 1e9, TB: 1e12, KIB: 2 ** 10, MIB: 2 ** 20, GIB: 2 ** 30, TIB: 2 ** 40 } as const

/**
 * Writes the tensors into a folder, each file whole or not at all and the index last, and removes what an earlier save
 * left there under the same names. Tensors are streamed.
 * @param maxShardSize bytes, or text such as "5GB" or "512MiB"; a larger tensor gets a file of its own
 * @throws ERR_HEDDLE_IO, ERR_HEDDLE_ARGUMENT on a size that is none
 */
export async function writeShardedSafetensors(
  folder: string,
  entries: readonly SafetensorsEntry[],
  maxShardSize: number | string,
): Promise<void> {
  const shards = shardsOf(entries, bytesOf(maxShardSize))
  const names =
    shards.length <= 1
      ? [single]
      : shards.map((_, i) => `model-${digits(i + 1)}-of-${digits(shards.length)}.safetensors`)
  for (const [i, name] of names.entries())
    await addon.writeSafetensors(join(folder, name), shards[i] ?? [], { format: 'pt' })
  if (shards.length > 1) {
    const weightMap = shards.flatMap((shard, i) => shard.map(({ name }) => [name, names[i]!] as const))
    await writeJsonAtomic(join(folder, index), {
      metadata: { total_size: entries.reduce((sum, entry) => sum + sizeOf(entry), 0) },
      weight_map: Object.fromEntries(weightMap.sort(([a], [b]) => (a < b ? -1 : 1))),
    })
  }
  const kept = new Set([...names, ...(shards.length > 1 ? [index] : [])])
  const stale = (await readdir(folder)).filter(
    (name) => (name === single || name === index || shardName.test(name)) && !kept.has(name),
  )
  for (const name of stale) await rm(join(folder, name))
}

function shardsOf(entries: readonly SafetensorsEntry[], limit: number): SafetensorsEntry[][] {
  const shards: SafetensorsEntry[][] = []
  let filled = Number.POSITIVE_INFINITY
  for (const entry of entries) {
    const size = sizeOf(entry)
    if (filled + size > limit) {
      shards.push([])
      filled = 0
    }
    shards.at(-1)!.push(entry)
    filled += size
  }
  return shards
}

const sizeOf = ({ tensor, dtype }: SafetensorsEntry): number =>
  elementCount(tensor.shape) * dtypeSize(dtype ?? tensor.dtype)

const digits = (value: number): string => `${value}`.padStart(5, '0')

function bytesOf(size: number | string): number {
  const [, value, unit] = /^(\d+(?:\.\d+)?)\s*([KMGT]I?B)$/.exec(`${size}`.toUpperCase()) ?? []
  const bytes = typeof size === 'number' ? size : Number(value) * units[unit as keyof typeof units]
  if (bytes >= 1) return bytes
  throw new HeddleError('ERR_HEDDLE_ARGUMENT', {
    place: 'max_shard_size',
    expected: 'a number of bytes, or text such as "5GB" or "512MiB"',
    got: JSON.stringify(size),
  })
}
