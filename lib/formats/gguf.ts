/**
 * Reads GGUF files, versions 2 and 3 (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md): metadata, and weights,
 * dense or in blocks. Metadata arrays, vocabularies above all, are only located; a worker reads them.
 */
import { HeddleError } from '../errors.js'
import { addon, type Encoding, type NativeFile } from '../native.js'
import { ByteCursor, type ByteSource, formatError, Pacer, sourceOf } from './byte_source.js'
import { findOverlap, type StoredTensor } from './tensor_archive.js'

/** A metadata array, as the place in the file where its elements start. */
export interface GgufArray {
  readonly elementType: GgufValueType
  readonly length: number
  readonly offset: number
}

export type GgufScalar = number | boolean | string
export type GgufMetadata = ReadonlyMap<string, GgufScalar | GgufArray>

export interface GgufTensorInfo {
  readonly name: string
  /** Outermost dimension first, the reverse of the file's order. */
  readonly shape: readonly number[]
  readonly encoding: string
  /** Absolute offset in the file. */
  readonly offset: number
  readonly byteLength: number
}

export interface GgufHeader {
  readonly version: number
  readonly metadata: GgufMetadata
  /** Where each key with its value stands in the file. */
  readonly places: ReadonlyMap<string, { readonly start: number; readonly end: number }>
  readonly tensors: ReadonlyMap<string, GgufTensorInfo>
}

/** How a file's tensor differs from the checkpoint's. */
export interface GgufForm {
  /** Its rows are in llama.cpp's rotary order of so many heads. */
  readonly interleavedHeads?: number | undefined
  /** What to add to each of its numbers. */
  readonly addend?: number | undefined
}

/** An open GGUF file. */
export interface GgufFile {
  readonly path: string
  readonly metadata: GgufMetadata
  readonly tensors: ReadonlyMap<string, GgufTensorInfo>
  /** A tensor of the file, which may hold it in another form than is wanted. */
  tensor(info: GgufTensorInfo, form?: GgufForm): StoredTensor
  close(): void
}

const valueTypes = [
  'u8',
  'i8',
  'u16',
  'i16',
  'u32',
  'i32',
  'f32',
  'bool',
  'string',
  'array',
  'u64',
  'i64',
  'f64',
] as const
export type GgufValueType = (typeof valueTypes)[number]

/** Bytes of a value in the file; for strings the least they can take, which bounds counts before any loop. */
const leastBytes: Readonly<Record<GgufValueType, number>> = {
  u8: 1,
  i8: 1,
  u16: 2,
  i16: 2,
  u32: 4,
  i32: 4,
  f32: 4,
  bool: 1,
  string: 8,
  array: 12,
  u64: 8,
  i64: 8,
  f64: 8,
}

interface TensorType {
  readonly name: string
  /** What the native core calls it; absent when it cannot read it. */
  readonly encoding?: Encoding
  /** Elements per block along the innermost dimension. */
  readonly block: number
  readonly bytes: number
}

/** By the number that stands in the file (ggml_type). */
const tensorTypes: ReadonlyMap<number, TensorType> = new Map<number, TensorType>([
  [0, { name: 'F32', encoding: 'f32', block: 1, bytes: 4 }],
  [1, { name: 'F16', encoding: 'f16', block: 1, bytes: 2 }],
  [2, { name: 'Q4_0', encoding: 'q4_0', block: 32, bytes: 18 }],
  [3, { name: 'Q4_1', encoding: 'q4_1', block: 32, bytes: 20 }],
  [6, { name: 'Q5_0', encoding: 'q5_0', block: 32, bytes: 22 }],
  [7, { name: 'Q5_1', encoding: 'q5_1', block: 32, bytes: 24 }],
  [8, { name: 'Q8_0', encoding: 'q8_0', block: 32, bytes: 34 }],
  [10, { name: 'Q2_K', encoding: 'q2_k', block: 256, bytes: 84 }],
  [11, { name: 'Q3_K', encoding: 'q3_k', block: 256, bytes: 110 }],
  [12, { name: 'Q4_K', encoding: 'q4_k', block: 256, bytes: 144 }],
  [13, { name: 'Q5_K', encoding: 'q5_k', block: 256, bytes: 176 }],
  [14, { name: 'Q6_K', encoding: 'q6_k', block: 256, bytes: 210 }],
  [16, { name: 'IQ2_XXS', block: 256, bytes: 66 }],
  [18, { name: 'IQ3_XXS', block: 256, bytes: 98 }],
  [20, { name: 'IQ4_NL', encoding: 'iq4_nl', block: 32, bytes: 18 }],
  [21, { name: 'IQ3_S', block: 256, bytes: 110 }],
  [23, { name: 'IQ4_XS', encoding: 'iq4_xs', block: 256, bytes: 136 }],
  [26, { name: 'I32', encoding: 'i32', block: 1, bytes: 4 }],
  [27, { name: 'I64', encoding: 'i64', block: 1, bytes: 8 }],
  [28, { name: 'F64', encoding: 'f64', block: 1, bytes: 8 }],
  [30, { name: 'BF16', encoding: 'bf16', block: 1, bytes: 2 }],
])

const readableTypes = [...tensorTypes.values()].filter((type) => type.encoding).map((type) => type.name)

const magic = 0x46554747
const maxDimensions = 4
const maxKeyBytes = 65_535
const maxNameBytes = 64
const maxStringBytes = 1 << 24
const defaultAlignment = 32

/**
 * Opens a GGUF file and checks its whole header.
 * @throws ERR_HEDDLE_IO when it cannot be opened, ERR_HEDDLE_FORMAT when it breaks the format's rules or holds a tensor
 *   type that Heddle cannot read
 */
export async function openGguf(path: string): Promise<GgufFile> {
  const file = await addon.openFile(path)
  try {
    const header = await readGgufHeader(sourceOf(path, file))
    return {
      path,
      metadata: header.metadata,
      tensors: header.tensors,
      tensor: (info, form) => storedTensor(file, info, form),
      close: () => file.close(),
    }
  } catch (error) {
    file.close()
    throw error
  }
}

/** Reads and checks everything before the tensor data. @throws ERR_HEDDLE_FORMAT */
export async function readGgufHeader(source: ByteSource): Promise<GgufHeader> {
  const cursor = new ByteCursor(source)
  const pacer = new Pacer()
  const version = readVersion(cursor)
  const tensorCount = countOf(cursor, 'the number of tensors', 24)
  const valueCount = countOf(cursor, 'the number of metadata values', 13)
  const { metadata, places } = await readMetadata(cursor, pacer, valueCount)
  const infos = await readTensorInfos(cursor, pacer, tensorCount)
  const tensors = placeTensors(source, cursor.position, alignmentOf(source, metadata), infos)
  return { version, metadata, places, tensors }
}

/** The numbers of a metadata array. @throws ERR_HEDDLE_FORMAT when it holds no numbers */
export function readGgufNumbers(source: ByteSource, { elementType, length, offset }: GgufArray): number[] {
  const cursor = new ByteCursor(source, offset)
  return Array.from({ length }, () => {
    const value = readScalar(cursor, elementType)
    if (typeof value !== 'number') throw cursor.error('an array', 'numbers', elementType)
    return value
  })
}

/** The strings of a metadata array. @throws ERR_HEDDLE_FORMAT when it holds no strings */
export function readGgufStrings(source: ByteSource, { elementType, length, offset }: GgufArray): string[] {
  const cursor = new ByteCursor(source, offset)
  if (elementType !== 'string') throw cursor.error('an array', 'strings', elementType)
  return Array.from({ length }, () => readString(cursor, 'a string of an array', maxStringBytes))
}

function readVersion(cursor: ByteCursor): number {
  const start = cursor.u32('the magic number')
  if (start !== magic) throw cursor.error('the magic number', 'a GGUF file, which starts with "GGUF"', hex(start))
  const version = cursor.u32('the version')
  if (version === 2 || version === 3) return version
  const bigEndian = version !== 0 && version % 65_536 === 0
  throw cursor.error('the version', '2 or 3, little-endian', bigEndian ? 'a big-endian file' : `${version}`)
}

/** A count that is refused when the file has not the room for so many things of `least` bytes. */
function countOf(cursor: ByteCursor, what: string, least: number): number {
  const count = cursor.u64(what)
  if (count * least > cursor.remaining)
    throw cursor.error(what, `at most ${Math.floor(cursor.remaining / least)}, for which the file has room`, `${count}`)
  return count
}

async function readMetadata(
  cursor: ByteCursor,
  pacer: Pacer,
  count: number,
): Promise<Pick<GgufHeader, 'metadata' | 'places'>> {
  const metadata = new Map<string, GgufScalar | GgufArray>()
  const places = new Map<string, { start: number; end: number }>()
  for (let index = 0; index < count; index++) {
    const start = cursor.position
    const key = readString(cursor, 'a metadata key', maxKeyBytes)
    if (metadata.has(key)) throw cursor.error('the metadata', 'every key once', `"${key}" twice`)
    const type = readValueType(cursor, key)
    metadata.set(key, type === 'array' ? await locateArray(cursor, pacer, key) : readScalar(cursor, type))
    places.set(key, { start, end: cursor.position })
    if (pacer.due()) await pacer.turn()
  }
  return { metadata, places }
}

async function locateArray(cursor: ByteCursor, pacer: Pacer, key: string): Promise<GgufArray> {
  const elementType = readValueType(cursor, key)
  if (elementType === 'array') throw cursor.error(key, 'an array of plain values', 'an array of arrays')
  const length = countOf(cursor, `the length of ${key}`, leastBytes[elementType])
  const offset = cursor.position
  if (elementType !== 'string') cursor.skip(length * leastBytes[elementType], key)
  else
    for (let index = 0; index < length; index++) {
      cursor.skip(cursor.u64(key), key)
      if (pacer.due()) await pacer.turn()
    }
  return { elementType, length, offset }
}

function readValueType(cursor: ByteCursor, key: string): GgufValueType {
  const code = cursor.u32(`the type of ${key}`)
  const type = valueTypes[code]
  if (!type) throw cursor.error(`the type of ${key}`, `a value type from 0 to ${valueTypes.length - 1}`, `${code}`)
  return type
}

function readScalar(cursor: ByteCursor, type: GgufValueType): GgufScalar {
  switch (type) {
    case 'string':
      return readString(cursor, 'a metadata value', maxStringBytes)
    case 'bool': {
      const value = cursor.u8('a boolean')
      if (value > 1) throw cursor.error('a boolean', '0 or 1', `${value}`)
      return value === 1
    }
    case 'array':
      throw cursor.error('a metadata value', 'a plain value', 'an array')
    case 'f32':
      return shortestDecimal(cursor.f32('a metadata value'))
    default:
      return cursor[type]('a metadata value')
  }
}

/** The shortest decimal that is this float32: 1e-5, where the exact value is 0.00000999999974737875. */
function shortestDecimal(value: number): number {
  for (let digits = 1; digits < 9; digits++) {
    const decimal = Number(value.toPrecision(digits))
    if (Math.fround(decimal) === value) return decimal
  }
  return value
}

function readString(cursor: ByteCursor, what: string, limit: number): string {
  const length = cursor.u64(`the length of ${what}`)
  if (length > limit) throw cursor.error(`the length of ${what}`, `at most ${limit} bytes`, `${length}`)
  return cursor.text(length, what)
}

type UnplacedTensor = Omit<GgufTensorInfo, 'encoding'> & { readonly type: TensorType }

async function readTensorInfos(cursor: ByteCursor, pacer: Pacer, count: number): Promise<UnplacedTensor[]> {
  const infos: UnplacedTensor[] = []
  const names = new Set<string>()
  for (let index = 0; index < count; index++) {
    const info = readTensorInfo(cursor)
    if (names.has(info.name)) throw cursor.error('the tensors', 'every name once', `"${info.name}" twice`)
    names.add(info.name)
    infos.push(info)
    if (pacer.due()) await pacer.turn()
  }
  return infos
}

function readTensorInfo(cursor: ByteCursor): UnplacedTensor {
  const name = readString(cursor, 'a tensor name', maxNameBytes)
  const rank = cursor.u32(`the rank of ${name}`)
  if (rank < 1 || rank > maxDimensions) throw cursor.error(`the rank of ${name}`, `1 to ${maxDimensions}`, `${rank}`)
  const inner = Array.from({ length: rank }, () => cursor.u64(`the shape of ${name}`))
  const code = cursor.u32(`the type of ${name}`)
  const offset = cursor.u64(`the offset of ${name}`)
  const type = tensorTypes.get(code)
  if (!type?.encoding)
    throw formatError(
      `${cursor.source.path}: ${name}`,
      `a tensor of type ${readableTypes.join(', ')}`,
      type?.name ?? `type number ${code}`,
      'Use a file quantised as Q8_0 or Q4_K_M, or the model as safetensors',
    )
  if (inner[0]! % type.block !== 0)
    throw cursor.error(`the shape of ${name}`, `rows of a multiple of ${type.block} elements`, `${inner[0]}`)
  const byteLength = (inner.reduce((product, size) => product * size, 1) / type.block) * type.bytes
  if (!Number.isSafeInteger(byteLength) || inner.some((size) => size === 0))
    throw cursor.error(`the shape of ${name}`, 'a shape of 1 to 2^53 bytes', `[${inner.join(', ')}]`)
  return { name, shape: inner.reverse(), type, offset, byteLength }
}

function alignmentOf(source: ByteSource, metadata: GgufMetadata): number {
  const alignment = metadata.get('general.alignment') ?? defaultAlignment
  if (typeof alignment !== 'number' || alignment < 1 || alignment > 1 << 20 || (alignment & (alignment - 1)) !== 0)
    throw formatError(`${source.path}: general.alignment`, 'a power of two up to 2^20', `${alignment}`)
  return alignment
}

function placeTensors(
  source: ByteSource,
  headerEnd: number,
  alignment: number,
  infos: readonly UnplacedTensor[],
): ReadonlyMap<string, GgufTensorInfo> {
  const dataStart = Math.ceil(headerEnd / alignment) * alignment
  const tensors = infos.map(({ name, shape, type, offset, byteLength }) => {
    const place = `${source.path}: ${name}`
    if (offset % alignment !== 0) throw formatError(place, `an offset that is a multiple of ${alignment}`, `${offset}`)
    if (dataStart + offset + byteLength > source.size)
      throw formatError(
        place,
        `data that ends before byte ${source.size}, where the file ends`,
        `bytes ${dataStart + offset} to ${dataStart + offset + byteLength}`,
        'The file is truncated: download it again',
      )
    return { name, shape, encoding: type.encoding!, offset: dataStart + offset, byteLength }
  })
  const overlap = findOverlap(tensors.map((t) => ({ name: t.name, start: t.offset, end: t.offset + t.byteLength })))
  if (overlap)
    throw formatError(source.path, 'tensors that share no byte', `"${overlap[0].name}" and "${overlap[1].name}"`)
  return new Map(tensors.map((tensor) => [tensor.name, tensor]))
}

function storedTensor(file: NativeFile, info: GgufTensorInfo, form: GgufForm = {}): StoredTensor {
  const { name, shape, encoding, offset, byteLength } = info
  const { interleavedHeads, addend } = form
  return {
    name,
    shape,
    encoding,
    byteLength,
    load: (dtype) =>
      file.tensor({
        encoding: encoding as Encoding,
        dtype,
        shape: [...shape],
        offset,
        ...(interleavedHeads === undefined ? {} : { interleavedHeads }),
        ...(addend === undefined ? {} : { addend }),
      }),
  }
}

const hex = (value: number) => `0x${value.toString(16).padStart(8, '0')}`

/** A metadata value of the wanted type. @throws ERR_HEDDLE_FORMAT when it is missing (without a default) or of another type */
export function ggufValue<T extends 'number' | 'string' | 'boolean'>(
  { path, metadata }: { readonly path: string; readonly metadata: GgufMetadata },
  key: string,
  type: T,
  fallback?: T extends 'number' ? number : T extends 'string' ? string : boolean,
): T extends 'number' ? number : T extends 'string' ? string : boolean {
  const value = metadata.get(key) ?? fallback
  if (typeof value !== type)
    throw new HeddleError('ERR_HEDDLE_FORMAT', {
      place: `${path}: ${key}`,
      expected: `a ${type}`,
      got: value === undefined ? 'nothing' : typeof value === 'object' ? 'an array' : typeof value,
    })
  return value as T extends 'number' ? number : T extends 'string' ? string : boolean
}
