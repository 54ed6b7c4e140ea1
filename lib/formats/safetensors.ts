/**
 * Weights in safetensors files (https://github.com/huggingface/safetensors), whole or in shards.
 * A file is checked completely, to the rules of the reference reader, before anything of it is used.
 */
import { readFile, stat } from 'node:fs/promises'
import { dirname, join } from 'node:path'
import { HeddleError } from '../errors.js'
import { addon, type NativeFile } from '../native.js'
import type { DType } from '../tensor/dtype.js'
import { ByteCursor, type ByteSource, formatError, Pacer, sourceOf } from './byte_source.js'
import { JsonScanner } from './json_scanner.js'
import type { StoredTensor } from './tensor_archive.js'

/** The named tensors of one or more safetensors files. */
export interface SafetensorsArchive {
  readonly path: string
  readonly tensors: ReadonlyMap<string, StoredTensor>
  readonly metadata: ReadonlyMap<string, string>
  /** Lets the files go; tensors already loaded stay valid. */
  close(): void
}

/** Where a tensor lies in its file. */
export interface SafetensorsEntry {
  readonly name: string
  readonly dtype: string
  readonly shape: readonly number[]
  /** Absolute offset in the file. */
  readonly offset: number
  readonly byteLength: number
}

export interface SafetensorsHeader {
  readonly entries: ReadonlyMap<string, SafetensorsEntry>
  readonly metadata: ReadonlyMap<string, string>
}

/** Largest header that the reference reader takes. */
const maxHeaderBytes = 100_000_000

/** Far beyond any real file; bounds the work that a hostile header can cause. */
const maxTensors = 1 << 17

const elementBytes: Readonly<Record<string, number>> = {
  BOOL: 1,
  U8: 1,
  I8: 1,
  F8_E5M2: 1,
  F8_E4M3: 1,
  I16: 2,
  U16: 2,
  F16: 2,
  BF16: 2,
  I32: 4,
  U32: 4,
  F32: 4,
  F64: 8,
  I64: 8,
  U64: 8,
}

const encodings: Readonly<Record<string, DType>> = {
  F32: 'f32',
  F64: 'f64',
  F16: 'f16',
  BF16: 'bf16',
  I32: 'i32',
  I64: 'i64',
  U8: 'u8',
  U32: 'u32',
}

/**
 * Opens a `.safetensors` file, or the shards that a `.safetensors.index.json` file names.
 * @throws ERR_HEDDLE_IO when a file cannot be opened, ERR_HEDDLE_FORMAT when it breaks the format's rules
 */
export function openSafetensors(path: string): Promise<SafetensorsArchive> {
  return path.endsWith('.json') ? openShards(path) : openSingle(path)
}

/**
 * Reads and checks a header: its length, every dtype, shape and byte range, and that the ranges cover the data without
 * gap or overlap.
 * @throws ERR_HEDDLE_FORMAT
 */
export async function readSafetensorsHeader(source: ByteSource): Promise<SafetensorsHeader> {
  const start = new ByteCursor(source)
  const headerBytes = start.u64('the header length')
  if (headerBytes > maxHeaderBytes || headerBytes > start.remaining)
    throw formatError(
      source.path,
      `a header of at most ${Math.min(maxHeaderBytes, start.remaining)} bytes`,
      `a header length of ${headerBytes}`,
      'The file is truncated or is not a safetensors file',
    )
  const dataStart = start.position + headerBytes
  const scanner = new JsonScanner(new ByteCursor(source, start.position, dataStart))
  const header = await scanHeader(scanner, source.path, dataStart)
  checkCoverage(source, dataStart, [...header.entries.values()])
  return header
}

async function openSingle(path: string): Promise<SafetensorsArchive> {
  const file = await addon.openFile(path)
  try {
    const { entries, metadata } = await readSafetensorsHeader(sourceOf(path, file))
    const tensors = new Map([...entries].map(([name, entry]) => [name, storedTensor(path, file, entry)]))
    return { path, tensors, metadata, close: () => file.close() }
  } catch (error) {
    file.close()
    throw error
  }
}

async function openShards(path: string): Promise<SafetensorsArchive> {
  const weightMap = await readWeightMap(path)
  const shards = new Map<string, SafetensorsArchive>()
  const close = () => {
    for (const shard of shards.values()) shard.close()
  }
  try {
    for (const file of new Set(weightMap.values())) shards.set(file, await openShard(path, file))
    return { path, tensors: collect(path, weightMap, shards), metadata: [...shards.values()][0]!.metadata, close }
  } catch (error) {
    close()
    throw error
  }
}

async function openShard(index: string, file: string): Promise<SafetensorsArchive> {
  const path = join(dirname(index), file)
  const exists = await stat(path).then(
    () => true,
    () => false,
  )
  if (exists) return openSingle(path)
  throw new HeddleError('ERR_HEDDLE_IO', {
    place: index,
    expected: `the shard ${file} beside the index`,
    got: 'no such file',
    hint: 'The download is not complete',
  })
}

/** The tensors of all shards, each where the index says that it is, and none that it does not name. */
function collect(
  path: string,
  weightMap: ReadonlyMap<string, string>,
  shards: ReadonlyMap<string, SafetensorsArchive>,
): Map<string, StoredTensor> {
  const places = new Map<string, string>()
  for (const [file, { tensors }] of shards)
    for (const name of tensors.keys()) {
      const other = places.get(name)
      if (other !== undefined) throw formatError(path, `"${name}" in one shard`, `it in ${other} and in ${file}`)
      if (!weightMap.has(name)) throw formatError(path, `an index that names "${name}" of ${file}`, 'one without it')
      places.set(name, file)
    }
  const tensors = new Map<string, StoredTensor>()
  for (const [name, file] of weightMap) {
    const tensor = shards.get(file)!.tensors.get(name)
    const other = places.get(name)
    if (!tensor)
      throw formatError(path, `"${name}" in the shard ${file}`, other ? `it in ${other}` : 'no shard with it')
    tensors.set(name, tensor)
  }
  return tensors
}

async function readWeightMap(path: string): Promise<ReadonlyMap<string, string>> {
  const index: unknown = await readFile(path, 'utf8')
    .then(JSON.parse)
    .catch((cause: Error) => {
      throw new HeddleError('ERR_HEDDLE_FORMAT', { place: path, expected: 'a JSON index', got: cause.message, cause })
    })
  const map = (index as { weight_map?: unknown } | null)?.weight_map
  if (typeof map !== 'object' || map === null || Object.keys(map).length === 0)
    throw formatError(path, 'an object "weight_map" of tensor name to file name', typeof map)
  for (const file of new Set(Object.values(map)))
    if (typeof file !== 'string' || !/^[^/\\]+\.safetensors$/.test(file) || file.startsWith('..'))
      throw formatError(path, 'shards that are .safetensors files beside the index', JSON.stringify(file))
  return new Map(Object.entries(map as Record<string, string>))
}

function storedTensor(path: string, file: NativeFile, entry: SafetensorsEntry): StoredTensor {
  const { name, shape, dtype: stored, offset, byteLength } = entry
  const encoding = encodings[stored]
  return {
    name,
    shape,
    encoding: encoding ?? stored,
    byteLength,
    load(dtype) {
      if (!encoding)
        throw new HeddleError('ERR_HEDDLE_DTYPE', {
          place: `${path}: ${name}`,
          expected: `one of ${Object.keys(encodings).join(', ')}`,
          got: stored,
        })
      return file.tensor({ encoding, dtype, shape: [...shape], offset })
    },
  }
}

async function scanHeader(scanner: JsonScanner, path: string, dataStart: number): Promise<SafetensorsHeader> {
  const entries = new Map<string, SafetensorsEntry>()
  const metadata = new Map<string, string>()
  const pacer = new Pacer(16)
  for (const name of scanner.keys()) {
    if (name === '__metadata__') for (const key of scanner.keys()) metadata.set(key, scanner.string())
    else entries.set(name, scanEntry(scanner, path, name, dataStart))
    if (entries.size > maxTensors) throw scanner.error(`at most ${maxTensors} tensors`, 'more')
    if (pacer.due()) await pacer.turn()
  }
  if (scanner.peek() !== undefined) throw scanner.error('the end of the header')
  return { entries, metadata }
}

function scanEntry(scanner: JsonScanner, path: string, name: string, dataStart: number): SafetensorsEntry {
  const place = `${path}: ${name}`
  let dtype: string | undefined
  let shape: number[] | undefined
  let range: number[] | undefined
  for (const key of scanner.keys()) {
    if (key === 'dtype') dtype = scanner.string()
    else if (key === 'shape') shape = scanner.counts()
    else if (key === 'data_offsets') range = scanner.counts()
    else throw formatError(place, 'the keys dtype, shape and data_offsets', `"${key}"`)
  }
  const [start, end] = range ?? []
  if (dtype === undefined || shape === undefined || range?.length !== 2 || start === undefined || end === undefined)
    throw formatError(place, 'a dtype, a shape and two data_offsets', 'an entry without one of them')
  const size = elementBytes[dtype]
  if (size === undefined) throw formatError(place, `a dtype of ${Object.keys(elementBytes).join(', ')}`, dtype)
  const byteLength = shape.reduce((product, dimension) => product * dimension, size)
  if (!Number.isSafeInteger(byteLength) || byteLength !== end - start)
    throw formatError(
      place,
      `${byteLength} bytes for ${dtype} [${shape.join(', ')}]`,
      `data_offsets ${start} to ${end}`,
    )
  return { name, dtype, shape, offset: dataStart + start, byteLength }
}

/** The data section holds the tensors back to back and nothing else. */
function checkCoverage(source: ByteSource, dataStart: number, entries: SafetensorsEntry[]): void {
  entries.sort((a, b) => a.offset - b.offset || a.byteLength - b.byteLength)
  let position = dataStart
  for (const { name, offset, byteLength } of entries) {
    if (offset !== position)
      throw formatError(
        `${source.path}: ${name}`,
        `data from offset ${position - dataStart}, where the tensor before it ends`,
        `offset ${offset - dataStart}`,
      )
    position += byteLength
  }
  if (position !== source.size)
    throw formatError(
      source.path,
      `a file of ${position} bytes, as its header says`,
      `${source.size} bytes`,
      position > source.size ? 'The file is truncated: download it again' : undefined,
    )
}
