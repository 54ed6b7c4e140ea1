/** `program(fn)`: traces a function once per input type, compiles it, and runs it natively off the event loop. */
import { HeddleError, throwIfAborted } from '../errors.js'
import { type Device, NativeAbort } from '../native.js'
import { Tensor } from '../tensor/tensor.js'
import { type CompiledGraph, type CompileOptions, compileTrace, type RecomputePolicy } from './compile.js'
import { checkedDevice, currentDevice, profilesRuns, recordsRuns } from './device.js'
import { typeText } from './operator.js'
import { turn } from './pause.js'
import { Sym, Trace } from './sym.js'

/** The result of a traced function (values, in arrays and objects in any nesting) with a tensor for each value. */
export type Computed<O> = O extends Sym ? Tensor : { readonly [K in keyof O]: Computed<O[K]> }

/** Options of one run. */
export interface RunOptions {
  /**
   * Stops the run between two instructions: ERR_HEDDLE_ABORTED. States written so far stay written. A run that a GPU
   * replays ends only before it starts.
   */
  readonly signal?: AbortSignal | undefined
}

/** Options of one run of a {@link Program}. */
export interface ProgramRunOptions extends RunOptions {
  /**
   * Measures the run's operators for {@link Program.profile} on a GPU, by events between them; it then is not replayed.
   * Default false, or what the environment variable `HEDDLE_CUDA_PROFILE` says (0 or 1). Runs on the CPU are always
   * measured.
   */
  readonly profiled?: boolean
}

/** What one run of a program needs. */
export interface ProgramPlan {
  /** Native instructions per run. */
  readonly instructions: number
  /** Bytes that a run needs beyond parameters and inputs: arena, scratch and results. */
  readonly peakBytes: number
  /** Floating-point operations per run, those of recomputed scopes included. */
  readonly flops: number
  /** Module paths whose activations are computed again in the backward pass, see {@link RecomputePolicy}. */
  readonly recomputed: readonly string[]
  /** Floating-point operations that this adds. */
  readonly recomputedFlops: number
}

/** Seconds spent per operator since the program was made; on a GPU, by runs that were {@link ProgramRunOptions.profiled}. */
export interface OperatorTime {
  readonly op: string
  readonly calls: number
  readonly seconds: number
}

/** A compiled function of tensors. */
export interface Program<O> {
  /** Runs the program; runs of one program queue up. */
  (...inputs: readonly Tensor[]): Promise<Computed<O>>
  /** Runs the program with options. */
  run(inputs: readonly Tensor[], options?: ProgramRunOptions): Promise<Computed<O>>
  /** Compiles for these inputs without running, and says what a run will need. */
  plan(inputs: readonly Tensor[]): Promise<ProgramPlan>
  /** Time per operator. */
  profile(): readonly OperatorTime[]
  /** Frees compiled code and arenas. */
  dispose(): void
}

/** Options of {@link program}. */
export interface ProgramOptions {
  /** Compiled forms kept, one per distinct input type; the least recently used is dropped. Default 8. */
  readonly cacheSize?: number
  /**
   * Recompute cheap values in the backward pass instead of keeping them: norms and elementwise results. Default true. A
   * policy also recomputes whole modules.
   */
  readonly recompute?: boolean | RecomputePolicy
  /**
   * How values of the forward pass are kept for the backward pass: as they are (`f32`, default), or rounded to `bf16` in
   * half the memory.
   */
  readonly activations?: 'f32' | 'bf16'
  /**
   * Where it runs; default: what {@link setDevice} says. Tensors are copied to the device when they are first needed there
   * and back when they are read; results and what programs update stay there in between.
   */
  readonly device?: Device | undefined
  /**
   * On a GPU: replays runs as a CUDA graph, one launch instead of thousands. Runs with operators that cannot be recorded,
   * and runs after one whose parameters lay elsewhere, start their instructions one by one. Default false (true for
   * training steps), or what the environment variable `HEDDLE_CUDA_GRAPHS` says (0 or 1).
   */
  readonly recorded?: boolean
}

interface Compiled extends CompiledGraph {
  /** Rebuilds the result structure from the flat outputs. */
  readonly assemble: (outputs: readonly Tensor[]) => unknown
}

/** A compiled form in the cache. */
interface Entry {
  readonly compiled: Promise<Compiled>
  /** Calls that wait for it or run it. */
  users: number
  dropped: boolean
}

/**
 * Makes an asynchronous function of tensors out of a function of symbolic values. `fn` is traced once for each
 * distinct combination of input shapes and dtypes; it may be async, so that tracing a large model can let the event
 * loop turn.
 * @throws HeddleError of the operator that was misused, when first called with inputs of a new type; ERR_HEDDLE_DEVICE,
 * then as well, where the device is missing or has no kernel for an operator
 */
export function program<O>(fn: (...inputs: Sym[]) => O | Promise<O>, options: ProgramOptions = {}): Program<O> {
  const { cacheSize = 8, recompute = true, activations = 'f32' } = options
  const device = checkedDevice(options.device ?? currentDevice(), 'program.device')
  const recorded = recordsRuns(options.recorded ?? false)
  const cache = new Map<string, Entry>()
  const used = new Set<Compiled>()

  const drop = (key: string, entry: Entry): void => {
    if (cache.get(key) === entry) cache.delete(key)
    entry.dropped = true
    release(entry)
  }

  const entryFor = (inputs: readonly Tensor[]): Entry => {
    const key = inputs.map(checkedTypeText).join('|')
    const entry = cache.get(key) ?? {
      compiled: compile(fn, inputs, { recompute, activations, device, recorded }),
      users: 0,
      dropped: false,
    }
    cache.delete(key)
    cache.set(key, entry)
    entry.compiled.catch(() => drop(key, entry))
    for (const [oldest, old] of cache) {
      if (cache.size <= cacheSize) break
      drop(oldest, old)
    }
    return entry
  }

  const using = async <T>(inputs: readonly Tensor[], use: (compiled: Compiled) => T | Promise<T>): Promise<T> => {
    const entry = entryFor(inputs)
    entry.users += 1
    try {
      const compiled = await entry.compiled
      used.add(compiled)
      return await use(compiled)
    } finally {
      entry.users -= 1
      release(entry)
    }
  }

  const runCompiled = async (
    { native, assemble }: Compiled,
    inputs: readonly Tensor[],
    { signal, profiled = false }: ProgramRunOptions,
  ): Promise<Computed<O>> => {
    throwIfAborted(signal, 'program')
    const abort = signal && new NativeAbort()
    const onAbort = (): void => abort?.abort()
    signal?.addEventListener('abort', onAbort)
    try {
      const outputs = await native.run(
        inputs.map((input) => input.native),
        abort,
        profilesRuns(profiled),
      )
      return assemble(outputs.map((output) => new Tensor(output))) as Computed<O>
    } finally {
      signal?.removeEventListener('abort', onAbort)
    }
  }

  const run = async (inputs: readonly Tensor[], options: ProgramRunOptions = {}): Promise<Computed<O>> => {
    throwIfAborted(options.signal, 'program')
    return using(inputs, (compiled) => runCompiled(compiled, inputs, options))
  }

  return Object.assign((...inputs: readonly Tensor[]) => run(inputs), {
    run,
    plan: (inputs: readonly Tensor[]) =>
      using(inputs, ({ native, instructions, flops, recomputed, recomputedFlops }) => ({
        instructions,
        peakBytes: native.peakBytes,
        flops,
        recomputed,
        recomputedFlops,
      })),
    profile: () => [...used].flatMap(({ native }) => native.profile()),
    dispose: () => {
      for (const [key, entry] of cache) drop(key, entry)
      used.clear()
    },
  })
}

/** Frees what the cache has dropped, as soon as no call uses it any more. */
function release({ compiled, users, dropped }: Entry): void {
  if (dropped && users === 0) compiled.then(({ native }) => native.dispose()).catch(() => {})
}

function checkedTypeText(input: Tensor): string {
  if (!(input instanceof Tensor))
    throw new HeddleError('ERR_HEDDLE_ARGUMENT', {
      place: 'program',
      expected: 'Tensors as inputs',
      got: typeof input,
      hint: 'Make one with tensor(data, shape).',
    })
  return typeText(input as unknown as Sym)
}

async function compile(
  fn: (...inputs: Sym[]) => unknown,
  inputs: readonly Tensor[],
  options: CompileOptions,
): Promise<Compiled> {
  await turn()
  const trace = new Trace()
  const result = await trace.run(async () => fn(...inputs.map((input) => trace.input(input))))
  const outputs: Sym[] = []
  const assemble = flatten(result, outputs)
  return { ...(await compileTrace(trace, outputs, options)), assemble }
}

/** Collects the symbolic values of a result and gives the function that puts tensors in their places. */
function flatten(tree: unknown, found: Sym[]): (outputs: readonly Tensor[]) => unknown {
  if (tree instanceof Sym) {
    const index = found.push(tree) - 1
    return (outputs) => outputs[index]
  }
  if (Array.isArray(tree)) {
    const parts = tree.map((part: unknown) => flatten(part, found))
    return (outputs) => parts.map((part) => part(outputs))
  }
  if (typeof tree !== 'object' || tree === null)
    throw new HeddleError('ERR_HEDDLE_ARGUMENT', {
      place: 'program',
      expected: 'symbolic values as results',
      got: `a ${typeof tree}`,
    })
  const parts = Object.entries(tree).map(([key, part]) => [key, flatten(part, found)] as const)
  return (outputs) => Object.fromEntries(parts.map(([key, part]) => [key, part(outputs)]))
}
