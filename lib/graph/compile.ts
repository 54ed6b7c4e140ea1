/** From a finished trace to a native program: passes, the choice of what to recompute, lowering. */
import { HeddleError } from '../errors.js'
import { addon, type Device, type NativeProgram } from '../native.js'
import { encode } from './encode.js'
import { type Graph, graphOf } from './graph.js'
import { liveBytes, lower } from './lower.js'
import { mergeCommonSubexpressions } from './passes/common_subexpression.js'
import { foldConstants } from './passes/constant_folding.js'
import { removeDeadCode } from './passes/dead_code.js'
import { fuseElementwise } from './passes/fuse_elementwise.js'
import { halveActivations } from './passes/half_activations.js'
import { halveOperands } from './passes/half_operands.js'
import { fuseLowRankMatmuls } from './passes/low_rank_matmul.js'
import { fuseMatmulAddends } from './passes/matmul_addend.js'
import { orderProducts } from './passes/product_order.js'
import { recomputeCheapValues } from './passes/recompute.js'
import {
  blockOf,
  flopsOf,
  recomputeScopes,
  type ScopePattern,
  scopeCosts,
  scopeFinder,
} from './passes/recompute_scopes.js'
import { shareSigmoids } from './passes/shared_sigmoid.js'
import { pause } from './pause.js'
import { recomputedScope, type Sym, type Trace } from './sym.js'

/** What the backward pass computes again instead of keeping it. Results are the same bit for bit. */
export interface RecomputePolicy {
  /**
   * Modules by their paths, each recomputed as a whole: globs (`*` within a name, `**` across names) such as
   * `model.layers.*`, or regular expressions. With a budget: those that may be chosen; default: repeated blocks.
   */
  readonly scopes?: ScopePattern | readonly ScopePattern[]
  /**
   * Budget for {@link ProgramPlan.peakBytes}. Scopes are recomputed, cheapest operations per byte first, until the plan
   * fits; when none is left, ERR_HEDDLE_OOM names the least that can be reached.
   */
  readonly memoryBytes?: number
}

/** A compiled trace. */
export interface CompiledGraph {
  readonly native: NativeProgram
  readonly instructions: number
  /** Scopes that are recomputed. */
  readonly recomputed: readonly string[]
  readonly flops: number
  readonly recomputedFlops: number
}

/** How programs are compiled. */
export interface CompileOptions {
  readonly recompute: boolean | RecomputePolicy
  readonly activations: 'f32' | 'bf16'
  readonly device: Device
  readonly recorded: boolean
}

/** Where and how it runs. */
type Target = Pick<CompileOptions, 'device' | 'recorded'>

export async function compileTrace(
  trace: Trace,
  outputs: readonly Sym[],
  { recompute, activations, ...target }: CompileOptions,
): Promise<CompiledGraph> {
  let graph = await graphOf(trace, outputs)
  await removeDeadCode(graph)
  await mergeCommonSubexpressions(graph)
  await foldConstants(graph)
  await fuseMatmulAddends(graph)
  if (await orderProducts(graph)) await mergeCommonSubexpressions(graph)
  if (recompute !== false) await recomputeCheapValues(graph)
  await removeDeadCode(graph)
  if (activations === 'bf16') await halveActivations(graph)
  await halveOperands(graph)
  await shareSigmoids(graph)
  await fuseElementwise(graph)
  await fuseLowRankMatmuls(graph)
  graph = await recomputeMarked(graph)
  const policy = typeof recompute === 'object' ? recompute : {}
  const patterns = policy.scopes === undefined ? [] : [policy.scopes].flat()
  const scopeOf = policy.scopes === undefined ? blockOf : scopeFinder(patterns as readonly ScopePattern[])
  if (policy.memoryBytes !== undefined) return withinBudget(graph, scopeOf, policy.memoryBytes, target)
  const scopes = policy.scopes === undefined ? [] : (await scopeCosts(graph, scopeOf)).map(({ scope }) => scope)
  return compileGraph(await variantOf(graph, scopeOf, scopes), target)
}

/** What was traced within `recomputed`, at any depth, is recomputed whatever the policy. */
async function recomputeMarked(graph: Graph): Promise<Graph> {
  if (!graph.steps.some(({ scope }) => scope.endsWith(recomputedScope))) return graph
  const marked = new Set(graph.steps.map(({ scope }) => scope).filter((scope) => scope.endsWith(recomputedScope)))
  return recomputeScopes(graph, (path) => (marked.has(path) ? path : undefined), marked)
}

type ScopeOf = (path: string) => string | undefined

/** A graph with some scopes recomputed, and what that costs. */
interface Variant {
  readonly graph: Graph
  readonly recomputed: readonly string[]
  readonly flops: number
  readonly recomputedFlops: number
}

async function variantOf(graph: Graph, scopeOf: ScopeOf, recomputed: readonly string[]): Promise<Variant> {
  const flops = await totalFlops(graph)
  if (recomputed.length === 0) return { graph, recomputed, flops, recomputedFlops: 0 }
  const changed = await recomputeScopes(graph, scopeOf, new Set(recomputed))
  const total = await totalFlops(changed)
  return { graph: changed, recomputed, flops: total, recomputedFlops: total - flops }
}

async function compileGraph({ graph, ...rest }: Variant, { device, recorded }: Target): Promise<CompiledGraph> {
  const { list, bound } = await lower(graph)
  const native = await addon.compile(
    await encode(list),
    bound.map((tensor) => tensor.native),
    device,
    recorded,
  )
  return { native, instructions: list.instructions.length, ...rest }
}

/** Beside the temporaries, whose sum is known here, a run takes scratch memory, which the kernels know. */
async function withinBudget(graph: Graph, scopeOf: ScopeOf, budget: number, target: Target): Promise<CompiledGraph> {
  let besides = 0
  for (;;) {
    const { variant, live } = await leanest(graph, scopeOf, budget - besides)
    const compiled = await compileGraph(variant, target)
    const { peakBytes } = compiled.native
    if (peakBytes <= budget) return compiled
    compiled.native.dispose()
    if (live > budget - besides || peakBytes - live <= besides) refuse(budget, peakBytes)
    besides = peakBytes - live
  }
}

/** Recomputes scopes, cheapest first, until the live temporaries fit; gives the leanest form if they never do. */
async function leanest(
  graph: Graph,
  scopeOf: ScopeOf,
  target: number,
): Promise<{ readonly variant: Variant; readonly live: number }> {
  const live = async (changed: Graph): Promise<number> => liveBytes((await lower(changed)).list)
  const candidates = (await scopeCosts(graph, scopeOf)).sort((a, b) => a.flops / a.bytes - b.flops / b.bytes)
  let chosen: readonly string[] = []
  let least = await live(graph)
  for (const { scope } of candidates) {
    if (least <= target) break
    const more = [...chosen, scope]
    const bytes = await live(await recomputeScopes(graph, scopeOf, new Set(more)))
    if (bytes > least) continue
    chosen = more
    least = bytes
  }
  return { variant: await variantOf(graph, scopeOf, chosen), live: least }
}

function refuse(budget: number, least: number): never {
  throw new HeddleError('ERR_HEDDLE_OOM', {
    place: 'program',
    expected: `a run within ${budget} bytes`,
    got: `at least ${least} bytes with everything recomputed`,
    hint: 'Give it more memory, or smaller batches.',
  })
}

async function totalFlops(graph: Graph): Promise<number> {
  let total = 0
  for (const [index, step] of graph.steps.entries()) {
    total += flopsOf(graph, step)
    if (index % 64 === 0) await pause()
  }
  return total
}
