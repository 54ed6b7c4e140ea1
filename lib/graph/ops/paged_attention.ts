/**
 * Attention of a step that holds tokens of many sequences, with keys and values in pages of one pool (Kwon et al. 2023,
 * arXiv 2309.06180).
 */
import { sameShape, shapeText } from '../../tensor/dtype.js'
import { type Decomposition, defineOperator, misuse, typeText } from '../operator.js'
import type { Sym } from '../sym.js'
import type { CachedAttentionOptions } from './attention.js'
import { add, cast, greaterEqual, less, maximum, mul, select, sub } from './elementwise.js'
import { explicitAttention, inReach } from './explicit_attention.js'
import { arange } from './gather.js'
import { gatherRows, slice } from './index.js'
import { reshape, sum } from './reduce.js'

/** Where the tokens of a step and the pages of their sequences are. */
export interface PagedStep {
  /** `i32 [s, p]`: position j of sequence i is row `j % page` of page `tables[i, ⌊j / page⌋]`. */
  readonly tables: Sym
  /** `i32 [s + 1]`: sequence i has the tokens `starts[i]` to `starts[i + 1]`; those from `starts[s]` on are padding. */
  readonly starts: Sym
  /** `i32 [s]`: position of each sequence's first token. */
  readonly positions: Sym
}

function checkIntegers(op: string, name: string, x: Sym, shape: readonly number[]): void {
  if (x.dtype !== 'i32' || !sameShape(x.shape, shape)) misuse(op, `${name} i32 ${shapeText(shape)}`, typeText(x))
}

function checkPaged([q, keys, values, tables, starts, positions]: readonly Sym[]): void {
  const op = 'paged_attention'
  const [, heads, dim] = q!.shape
  const [, , kvHeads, keyDim] = keys!.shape
  const fits = q!.rank === 3 && keys!.rank === 4 && sameShape(keys!.shape, values!.shape) && dim === keyDim
  if (!fits || heads! % kvHeads! !== 0)
    misuse(
      op,
      'q [n, h, d] and keys, values [pages, page, hk, d] with h a multiple of hk',
      [q!, keys!, values!].map((x) => shapeText(x.shape)).join(', '),
    )
  if (tables!.rank !== 2) misuse(op, 'tables i32 [s, p]', typeText(tables))
  const [s, p] = tables!.shape as [number, number]
  checkIntegers(op, 'tables', tables!, [s, p])
  checkIntegers(op, 'starts', starts!, [s + 1])
  checkIntegers(op, 'positions', positions!, [s])
}

/** Every token against the pages of all sequences in a row, those of the others hidden. */
const decompose: Decomposition = ([q, keys, values, tables, starts, positions], attributes) => {
  const [n, h, d] = q!.shape as [number, number, number]
  const [, page, kvHeads] = keys!.shape as [number, number, number]
  const [s, p] = tables!.shape as [number, number]
  const token = reshape(arange(n), [n, 1])
  const [from, to] = [0, 1].map((start) => slice(starts!, [{ axis: 0, start, end: start + s }])) as [Sym, Sym]
  // [n, s]: 1 where the sequence is the token's own
  const own = mul(greaterEqual(token, from), less(token, to))
  const last = reshape(add(sub(token, from), positions!), [n, s, 1])
  const visible = mul(reshape(own, [n, s, 1]), inReach(last, p * page, attributes.window as number))
  const pages = cast(maximum(reshape(tables!, [s * p]), 0), 'i32')
  const inARow = (x: Sym): Sym => reshape(gatherRows(x, pages), [1, s * p * page, kvHeads, d])
  const [mixed] = explicitAttention(
    [reshape(q!, [1, n, h, d]), inARow(keys!), inARow(values!)],
    attributes,
    reshape(visible, [1, 1, 1, n, s * p * page]),
  )
  return [select(reshape(sum(own, { axes: [1] }), [n, 1, 1]), reshape(mixed!, [n, h, d]), 0)]
}

const pagedOf = defineOperator({
  name: 'paged_attention',
  attributes: { scale: 'f64', softcap: 'f64', window: 'i64' },
  types: (inputs) => {
    checkPaged(inputs as readonly Sym[])
    return [{ shape: inputs[0]!.shape, dtype: 'f32' }]
  },
  decompose,
  vjp: { none: 'pages are read for inference only' },
})

/**
 * Attention of the tokens of a step, packed one sequence behind the other, to keys and values in pages:
 * `q [n, h, d]`, `keys, values [pages, page, hk, d]` in f32 or bf16 → `f32 [n, h, d]`. Token j of sequence i stands at
 * position `positions[i] + j` and sees the positions up to its own, at most `window` of them. Padding gives 0. A token's
 * result is the same bit for bit whatever else is in the step and wherever its pages lie. Entries of a table that no
 * token sees may be anything.
 * @throws ERR_HEDDLE_SHAPE when operands do not fit; ERR_HEDDLE_ARGUMENT, when run, for starts that fall or pass n,
 * positions outside of the table, or a page that is not there
 */
export function pagedAttention(
  q: Sym,
  keys: Sym,
  values: Sym,
  { tables, starts, positions }: PagedStep,
  { scale = 1 / Math.sqrt(q.shape.at(-1)!), softcap = 0, window = 0 }: CachedAttentionOptions = {},
): Sym {
  return pagedOf([q, keys, values, tables, starts, positions], { scale, softcap, window })[0]!
}

const updateOf = defineOperator({
  name: 'paged_cache_update',
  mutates: true,
  types: ([cache, rows, slots]) => {
    const [, , kvHeads, dim] = cache!.shape
    const n = rows!.shape[0]!
    if (cache!.rank !== 4 || !sameShape(rows!.shape, [n, kvHeads!, dim!]))
      misuse('paged_cache_update', `rows [n, hk, d] for a cache ${shapeText(cache!.shape)}`, shapeText(rows!.shape))
    checkIntegers('paged_cache_update', 'slots', slots!, [n])
    return [cache!]
  },
  vjp: { none: 'a cache is written for inference only' },
})

/**
 * Writes row i of `rows [n, hk, d]` to slot `slots[i]` (page · page size + row) of the bound
 * `cache [pages, page, hk, d]`, f32 or bf16; -1 writes nothing. Gives the cache.
 * @throws ERR_HEDDLE_SHAPE when operands do not fit; ERR_HEDDLE_ARGUMENT, when run, for a slot outside of the cache or
 * given twice: then nothing is written
 */
export const pagedCacheUpdate = (cache: Sym, rows: Sym, slots: Sym): Sym => updateOf([cache, rows, slots])[0]!
