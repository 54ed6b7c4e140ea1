// The only file that loads the addon. Types its API, loads it at first use, and turns every native failure into a
// HeddleError that carries the caller's stack.
import { existsSync } from 'node:fs'
import { createRequire } from 'node:module'
import { dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { HeddleError, type HeddleErrorCode } from './errors.js'
import type { DType } from './tensor/dtype.js'

/** Where programs run: the processor, or the first CUDA device that the driver shows. */
export type Device = 'cpu' | 'cuda'

/** GGUF's blocks along the last dimension. */
export type BlockEncoding =
  | 'q4_0'
  | 'q4_1'
  | 'q5_0'
  | 'q5_1'
  | 'q8_0'
  | 'q2_k'
  | 'q3_k'
  | 'q4_k'
  | 'q5_k'
  | 'q6_k'
  | 'iq4_nl'
  | 'iq4_xs'

/** How a tensor's elements are stored in a file: dense, or in blocks. */
export type Encoding = DType | BlockEncoding

/** A native buffer. Lives until `dispose()` or garbage collection; programs that use it keep it alive. */
export interface NativeTensor {
  readonly shape: readonly number[]
  readonly dtype: DType
  readonly byteLength: number
  /** Grows whenever the contents may have changed. */
  readonly version: number
  readonly disposed: boolean
  dispose(): void
}

export interface FileTensorOptions {
  readonly encoding: Encoding
  /** Element type wanted: the encoding's own (a view, nothing copied), or f32/bf16 decoded when first read. */
  readonly dtype: DType
  readonly shape: readonly number[]
  /** First byte in the file. */
  readonly offset: number
  /** The rows of this 2-D tensor are in llama.cpp's interleaved rope order of so many heads. */
  readonly interleavedHeads?: number
  /** Added to each decoded number. */
  readonly addend?: number
}

export interface SafetensorsEntry {
  readonly name: string
  readonly tensor: NativeTensor
  /** Converts on the way out; default: the tensor's own. */
  readonly dtype?: 'f32' | 'bf16' | 'f16'
}

/** A tensor on its way into a file. */
export interface TensorFileEntry {
  /** For messages. */
  readonly name: string
  readonly tensor: NativeTensor
  /** The tensor's own, or one of these from f32, f16 or bf16. */
  readonly encoding: 'f32' | 'f16' | 'bf16' | 'q8_0'
  /** Puts the rows into llama.cpp's interleaved rope order of so many heads. */
  readonly interleavedHeads?: number
  /** Added to each number. */
  readonly addend?: number
}

/** Rows `[first, first + count)` of a tensor that become `scale` times the source's, and zero behind those. */
export interface NativeRowWrite {
  /** `[rows, width]`, f32 or bf16. */
  readonly target: NativeTensor
  readonly first: number
  readonly count: number
  /** f32 `[n, width]` with n ≤ count, or `[width, n]` if `transposed`; default: no rows. */
  readonly source?: NativeTensor | undefined
  readonly transposed?: boolean
  /** Default 1. */
  readonly scale?: number | undefined
}

export interface ProfileEntry {
  readonly op: string
  readonly calls: number
  readonly seconds: number
}

/** A CUDA device. */
export interface CudaInfo {
  readonly name: string
  /** Compute capability, such as `9.0`. */
  readonly capability: string
  /** Bytes of memory in all. */
  readonly memory: number
  /** Operators that have a kernel for it. */
  readonly operators: readonly string[]
}

export interface CpuInfo {
  /** The best instruction set that the kernels dispatch to here, as Highway names it. */
  readonly isa: string
  readonly hasBf16: boolean
  /** Operators that have a kernel. */
  readonly operators: readonly string[]
  readonly cores: number
}

interface RawAbort {
  abort(): void
}

interface RawProgram {
  readonly peakBytes: number
  readonly arenaBytes: number
  readonly replays: number
  run(inputs: readonly NativeTensor[], abort?: RawAbort, profiled?: boolean): Promise<NativeTensor[]>
  profile(): ProfileEntry[]
  dispose(): void
}

interface RawFile {
  readonly size: number
  read(offset: number, length: number): ArrayBuffer
  tensor(options: FileTensorOptions): NativeTensor
  close(): void
}

/** The support of a sparse matrix by rows and by columns; `source`: where its entries stood in the input. */
export interface NativeSupport {
  readonly rowPointers: NativeTensor
  readonly columnIndices: NativeTensor
  readonly columnPointers: NativeTensor
  readonly rowIndices: NativeTensor
  readonly columnOrder: NativeTensor
  readonly source?: NativeTensor
}

/** What {@link addon}.alternatingHalfStep solves for: observations by row, f64. */
export interface NativeObservations {
  readonly pointers: NativeTensor
  readonly indices: NativeTensor
  readonly order: NativeTensor | undefined
  readonly values: NativeTensor
  readonly weights: NativeTensor | undefined
}

/** How {@link addon}.alternatingHalfStep solves. */
export interface HalfStepOptions {
  readonly solver: 'exact' | 'sketch-pcg' | 'cg'
  readonly sketchRows: number
  readonly iterations: number
  readonly tolerance: number
  readonly ridge: number
  readonly seed: number
}

/** The factor that was solved for and the basis that it goes with. */
export interface NativeHalfStep {
  readonly factor: NativeTensor
  readonly basis: NativeTensor
  readonly iterations: number
  readonly undetermined: number
}

interface RawAddon {
  tensorFromData(dtype: DType, shape: readonly number[], view: ArrayBufferView): NativeTensor
  tensorZeros(dtype: DType, shape: readonly number[]): NativeTensor
  tensorData(tensor: NativeTensor): Promise<ArrayBuffer>
  tensorDataSync(tensor: NativeTensor): ArrayBuffer
  tensorWrite(tensor: NativeTensor, view: ArrayBufferView): void
  writeRows(writes: readonly NativeRowWrite[]): Promise<void>
  compile(bytes: Uint8Array, bound: readonly NativeTensor[], device: Device, record: boolean): Promise<RawProgram>
  addBackend(table: unknown): void
  readonly NativeAbort: new () => RawAbort
  openFile(path: string): Promise<RawFile>
  writeSafetensors(
    path: string,
    entries: readonly SafetensorsEntry[],
    metadata: Readonly<Record<string, string>>,
  ): Promise<void>
  sparseSupportFromEntries(
    rowIndices: NativeTensor,
    columnIndices: NativeTensor,
    rows: number,
    columns: number,
  ): Promise<NativeSupport>
  sparseSupportFromRows(rowPointers: NativeTensor, columnIndices: NativeTensor, columns: number): Promise<NativeSupport>
  sparseSupportFromMask(mask: NativeTensor): Promise<NativeSupport>
  randomSparseSupport(rows: number, columns: number, count: number, seed: number): Promise<NativeSupport>
  alternatingHalfStep(
    observations: NativeObservations,
    basis: NativeTensor,
    start: NativeTensor | undefined,
    options: HalfStepOptions,
  ): Promise<NativeHalfStep>
  orthonormalColumns(a: NativeTensor): Promise<NativeTensor>
  connectedParts(rowPointers: NativeTensor, columnIndices: NativeTensor, columns: number): Promise<number>
  writeTensorFile(path: string, head: Uint8Array, alignment: number, entries: readonly TensorFileEntry[]): Promise<void>
  threads(): number
  setThreads(count: number): void
  cpuInfo(): CpuInfo
}

/** Everything native, loaded at first use: importing Heddle works (and `--help` answers) before the addon is built. */
export const addon = {
  /** A new tensor with a copy of the view's bytes, which must be exactly as many as the shape asks for. */
  tensorFromData: (dtype: DType, shape: readonly number[], view: ArrayBufferView): NativeTensor =>
    sync(() => raw().tensorFromData(dtype, shape, view)),

  tensorZeros: (dtype: DType, shape: readonly number[]): NativeTensor => sync(() => raw().tensorZeros(dtype, shape)),

  /** The elements, copied off the event loop. */
  tensorData: (tensor: NativeTensor): Promise<ArrayBuffer> => async(() => raw().tensorData(tensor)),

  /** The elements, copied here and now; refused above 1 MiB. */
  tensorDataSync: (tensor: NativeTensor): ArrayBuffer => sync(() => raw().tensorDataSync(tensor)),

  /** Overwrites a tensor that owns its memory; refused above 1 MiB. */
  tensorWrite: (tensor: NativeTensor, view: ArrayBufferView): void => sync(() => raw().tensorWrite(tensor, view)),

  /** Fills rows of tensors off the event loop; programs may read other rows meanwhile. */
  writeRows: (writes: readonly NativeRowWrite[]): Promise<void> => async(() => raw().writeRows(writes)),

  /**
   * Validates, plans and packs an instruction list off the event loop, for the device that is to run it. With `record`, a
   * device that can record runs replays them.
   */
  compile: (
    bytes: Uint8Array,
    bound: readonly NativeTensor[],
    device: Device = 'cpu',
    record = false,
  ): Promise<NativeProgram> =>
    async(() => {
      const loaded = raw()
      if (device === 'cuda') loadCuda(loaded)
      return loaded.compile(bytes, bound, device, record)
    }).then((program) => new NativeProgram(program)),

  /** The CUDA device in use. @throws ERR_HEDDLE_DEVICE that says what is missing where there is none */
  cudaInfo: (): CudaInfo => sync(() => loadCuda(raw())),

  openFile: (path: string): Promise<NativeFile> =>
    async(() => raw().openFile(path)).then((file) => new NativeFile(file)),

  /** Writes beside `path`, syncs and renames: a reader sees the old file or the whole new one. */
  writeSafetensors: (
    path: string,
    entries: readonly SafetensorsEntry[],
    metadata: Readonly<Record<string, string>>,
  ): Promise<void> => async(() => raw().writeSafetensors(path, entries, metadata)),

  sparseSupportFromEntries: (
    rowIndices: NativeTensor,
    columnIndices: NativeTensor,
    rows: number,
    columns: number,
  ): Promise<NativeSupport> => async(() => raw().sparseSupportFromEntries(rowIndices, columnIndices, rows, columns)),

  sparseSupportFromRows: (
    rowPointers: NativeTensor,
    columnIndices: NativeTensor,
    columns: number,
  ): Promise<NativeSupport> => async(() => raw().sparseSupportFromRows(rowPointers, columnIndices, columns)),

  sparseSupportFromMask: (mask: NativeTensor): Promise<NativeSupport> => async(() => raw().sparseSupportFromMask(mask)),

  randomSparseSupport: (rows: number, columns: number, count: number, seed: number): Promise<NativeSupport> =>
    async(() => raw().randomSparseSupport(rows, columns, count, seed)),

  /** One factor of a partly observed matrix from the other, row by row. */
  alternatingHalfStep: (
    observations: NativeObservations,
    basis: NativeTensor,
    start: NativeTensor | undefined,
    options: HalfStepOptions,
  ): Promise<NativeHalfStep> => async(() => raw().alternatingHalfStep(observations, basis, start, options)),

  orthonormalColumns: (a: NativeTensor): Promise<NativeTensor> => async(() => raw().orthonormalColumns(a)),

  /** Parts of the graph of rows and columns that observations join. */
  connectedParts: (rowPointers: NativeTensor, columnIndices: NativeTensor, columns: number): Promise<number> =>
    async(() => raw().connectedParts(rowPointers, columnIndices, columns)),

  /** Writes the head and then every tensor, each padded to the alignment, as atomically as {@link addon.writeSafetensors}. */
  writeTensorFile: (
    path: string,
    head: Uint8Array,
    alignment: number,
    entries: readonly TensorFileEntry[],
  ): Promise<void> => async(() => raw().writeTensorFile(path, head, alignment, entries)),

  threads: (): number => sync(() => raw().threads()),

  /** Takes effect before the next program that starts while none is running. */
  setThreads: (count: number): void => sync(() => raw().setThreads(count)),

  cpuInfo: (): CpuInfo => sync(() => raw().cpuInfo()),
} as const

/** Stops a run between two instructions: its promise rejects with ERR_HEDDLE_ABORTED. */
export class NativeAbort {
  readonly #raw: RawAbort

  constructor() {
    this.#raw = sync(() => new (raw().NativeAbort)())
  }

  abort(): void {
    this.#raw.abort()
  }

  static raw(abort: NativeAbort): RawAbort {
    return abort.#raw
  }
}

/** A validated, planned and packed instruction list. Runs of one program queue up; programs may run side by side. */
export class NativeProgram {
  readonly #raw: RawProgram

  /** Made by {@link addon}.compile. */
  constructor(program: RawProgram) {
    this.#raw = program
  }

  /** Arena, scratch and outputs of one run: what it takes beside the bound tensors. */
  get peakBytes(): number {
    return this.#raw.peakBytes
  }

  get arenaBytes(): number {
    return this.#raw.arenaBytes
  }

  /** Runs so far that were replayed. */
  get replays(): number {
    return this.#raw.replays
  }

  run(inputs: readonly NativeTensor[], abort?: NativeAbort, profiled = false): Promise<NativeTensor[]> {
    return async(() => this.#raw.run(inputs, abort && NativeAbort.raw(abort), profiled))
  }

  /** Time per operator, summed over all runs so far; on a GPU, over those that were to be profiled. */
  profile(): ProfileEntry[] {
    return sync(() => this.#raw.profile())
  }

  dispose(): void {
    this.#raw.dispose()
  }
}

/** A read-only memory-mapped file. Tensors made from it keep the mapping alive after `close()`. */
export class NativeFile {
  readonly #raw: RawFile

  /** Made by {@link addon}.openFile. */
  constructor(file: RawFile) {
    this.#raw = file
  }

  get size(): number {
    return this.#raw.size
  }

  /** A copy of at most 64 MiB. */
  read(offset: number, length: number): ArrayBuffer {
    return sync(() => this.#raw.read(offset, length))
  }

  tensor(options: FileTensorOptions): NativeTensor {
    return sync(() => this.#raw.tensor(options))
  }

  close(): void {
    this.#raw.close()
  }
}

let loaded: RawAddon | undefined

function raw(): RawAddon {
  loaded ??= load()
  return loaded
}

/**
 * The addon built on this machine, if there is one, else the one of the platform package that npm chose.
 * @throws ERR_HEDDLE_DEVICE when there is neither
 */
export function addonPath(): string {
  const built = join(packageRoot(), 'build', 'Release', 'heddle.node')
  const path = existsSync(built) ? built : resolved(`heddle-${process.platform}-${process.arch}`)
  if (path === undefined) {
    throw new HeddleError('ERR_HEDDLE_DEVICE', {
      place: 'heddle.node',
      expected: `the package heddle-${process.platform}-${process.arch}, or an addon built at ${built}`,
      got: 'neither',
      hint: 'Build it with `npx heddle build` (it says what is missing on this machine)',
    })
  }
  return path
}

interface RawCudaAddon {
  /** @throws where there is no usable device */
  open(): CudaInfo & { readonly backend: unknown }
}

let cudaInfo: CudaInfo | undefined

/** Hands the CUDA addon's table to the core, once. */
function loadCuda(core: RawAddon): CudaInfo {
  if (cudaInfo === undefined) {
    const { backend, ...info } = requireCuda().open()
    core.addBackend(backend)
    cudaInfo = info
  }
  return cudaInfo
}

/** `HEDDLE_CUDA_ADDON` names another one: the tests' runs the same kernels on the processor. */
function requireCuda(): RawCudaAddon {
  const built = process.env.HEDDLE_CUDA_ADDON ?? join(packageRoot(), 'build', 'Release', 'heddle_cuda.node')
  const path = existsSync(built) ? built : resolved(`heddle-cuda-${process.platform}-${process.arch}`)
  if (path === undefined)
    throw new HeddleError('ERR_HEDDLE_DEVICE', {
      place: 'device cuda',
      expected: `the CUDA addon at ${built}`,
      got: 'none',
      hint: 'Build it with `npm run build:cuda`; it needs nvcc 12.4 or newer',
    })
  try {
    const found = createRequire(import.meta.url)(path) as RawCudaAddon
    if (typeof found.open !== 'function') throw new TypeError('a module without `open`')
    return found
  } catch (cause) {
    throw new HeddleError('ERR_HEDDLE_DEVICE', {
      place: path,
      expected: 'the CUDA addon with the libraries it was built with',
      got: cause instanceof Error ? cause.message : String(cause),
      hint: 'Build it for this machine with `npm run build:cuda`',
      cause,
    })
  }
}

function load(): RawAddon {
  const path = addonPath()
  try {
    return createRequire(import.meta.url)(path) as RawAddon
  } catch (cause) {
    throw new HeddleError('ERR_HEDDLE_DEVICE', {
      place: path,
      expected: `an addon for ${process.platform}-${process.arch}`,
      got: cause instanceof Error ? cause.message : String(cause),
      hint: 'Build one for this machine with `npx heddle build`',
      cause,
    })
  }
}

function resolved(name: string): string | undefined {
  try {
    return createRequire(import.meta.url).resolve(name)
  } catch {
    return undefined
  }
}

/** The folder of package.json: this file runs from lib/ and from dist/lib/. */
function packageRoot(): string {
  let folder = dirname(fileURLToPath(import.meta.url))
  while (!existsSync(join(folder, 'package.json')) && dirname(folder) !== folder) folder = dirname(folder)
  return folder
}

interface Site {
  stack?: string
}

function sync<T>(call: () => T): T {
  try {
    return call()
  } catch (error) {
    throw wrap(error)
  }
}

async function async<T>(call: () => Promise<T>): Promise<T> {
  // Taken before the event loop turns: afterwards the frames that asked for the work are gone.
  const site: Site = {}
  Error.captureStackTrace(site, async)
  try {
    return await call()
  } catch (error) {
    throw wrap(error, site)
  }
}

function wrap(error: unknown, site?: Site): unknown {
  if (!(error instanceof Error) || error instanceof HeddleError) return error
  const { code, place, expected, got } = error as Error & Partial<Record<'code' | 'place' | 'expected' | 'got', string>>
  if (!code?.startsWith('ERR_HEDDLE_') || place === undefined || expected === undefined || got === undefined)
    return error
  const wrapped = new HeddleError(code as HeddleErrorCode, { place, expected, got })
  if (site?.stack !== undefined) {
    const frames = site.stack.slice(site.stack.indexOf('\n'))
    wrapped.stack = `${wrapped.name}: ${wrapped.message}${frames}`
  }
  return wrapped
}
