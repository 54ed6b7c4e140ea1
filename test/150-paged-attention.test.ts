// Attention to keys and values in pages: bit for bit what the contiguous cache gives, whatever else is in the step,
// wherever the pages lie, on any number of threads; and what a stranger may write into tables is refused.
import test from 'ava'
import fc from 'fast-check'
import { attentionCached, type CachedAttentionOptions } from '../lib/graph/ops/attention.js'
import { cast } from '../lib/graph/ops/elementwise.js'
import { pagedAttention, pagedCacheUpdate } from '../lib/graph/ops/paged_attention.js'
import { program } from '../lib/graph/program.js'
import { read } from '../lib/graph/sym.js'
import { addon } from '../lib/native.js'
import { elementCount } from '../lib/tensor/dtype.js'
import { type Tensor, tensor, zeros } from '../lib/tensor/tensor.js'
import { randomNumbers, tensorOf } from './random_numbers.js'
import { onGpu } from './support/backend.js'

interface Heads {
  readonly kvHeads: number
  readonly group: number
  readonly dim: number
}

interface Pool extends Heads {
  readonly page: number
  readonly pages: number
  readonly dtype: 'f32' | 'bf16'
  readonly keys: Float32Array
  readonly values: Float32Array
}

interface Sequence {
  readonly position: number
  readonly count: number
  readonly table: readonly number[]
}

const numbers = async (x: Tensor): Promise<Float32Array> => (await x.data()) as Float32Array
const ints = (values: readonly number[], shape = [values.length]): Tensor => tensor(Int32Array.from(values), shape)

function poolOf(heads: Heads, page: number, pages: number, dtype: Pool['dtype'], seed = 1): Pool {
  const size = pages * page * heads.kvHeads * heads.dim
  const draw = (at: number) => randomNumbers(size, seed + at).map((x) => 2 * x)
  return { ...heads, page, pages, dtype, keys: draw(0), values: draw(1) }
}

const queriesOf = ({ kvHeads, group, dim }: Heads, tokens: number, seed = 9): Float32Array =>
  randomNumbers(tokens * kvHeads * group * dim, seed).map((x) => 3 * x)

/** One step over the sequences, with some padding behind them. */
async function paged(
  pool: Pool,
  sequences: readonly Sequence[],
  q: Float32Array,
  options: CachedAttentionOptions = {},
): Promise<Float32Array> {
  const { kvHeads, group, dim, page, pages, dtype } = pool
  const heads = kvHeads * group
  const width = Math.max(1, ...sequences.map(({ table }) => table.length))
  const tables = sequences.flatMap(({ table }) => Array.from({ length: width }, (_, i) => table[i] ?? -1))
  const starts = [0]
  for (const { count } of sequences) starts.push(starts.at(-1)! + count)
  const run = program((x, keys, values, tables, starts, positions) =>
    pagedAttention(x!, keys!, values!, { tables: tables!, starts: starts!, positions: positions! }, options),
  )
  const shape = [pages, page, kvHeads, dim]
  const result = await run(
    tensor(q, [q.length / (heads * dim), heads, dim]),
    tensorOf(pool.keys, shape, dtype),
    tensorOf(pool.values, shape, dtype),
    ints(tables, [sequences.length, width]),
    ints(starts),
    ints(sequences.map(({ position }) => position)),
  )
  run.dispose()
  return numbers(result)
}

/** The same of one sequence alone, with its keys and values in a contiguous cache. */
async function contiguous(
  { kvHeads, group, dim, page, dtype, keys, values }: Pool,
  { position, count, table }: Sequence,
  q: Float32Array,
  options: CachedAttentionOptions,
): Promise<Float32Array> {
  const row = kvHeads * dim
  const length = position + count
  const gathered = (from: Float32Array): Tensor => {
    const rows = new Float32Array(length * row)
    for (let j = 0; j < length; j += 1) {
      const at = Math.max(0, table[Math.floor(j / page)]!) * page + (j % page)
      rows.set(from.subarray(at * row, (at + 1) * row), j * row)
    }
    return tensorOf(rows, [1, length, kvHeads, dim], dtype)
  }
  const run = program((x, k, v, at) => attentionCached(x!, k!, v!, at!, options))
  const result = await run(
    tensor(q, [1, count, kvHeads * group, dim]),
    gathered(keys),
    gathered(values),
    ints([position]),
  )
  run.dispose()
  return numbers(result)
}

const headsArbitrary = fc.record({
  kvHeads: fc.integer({ min: 1, max: 3 }),
  group: fc.constantFrom(1, 2, 3, 4, 7, 16, 20),
  dim: fc.constantFrom(1, 8, 20, 64),
})
const sequenceArbitrary = fc.record({
  position: fc.integer({ min: 0, max: 200 }),
  count: fc.oneof(fc.constantFrom(0, 1, 1, 1), fc.integer({ min: 2, max: 80 })),
})
const optionsArbitrary = fc.record({
  scale: fc.constant(0.3),
  softcap: fc.constantFrom(undefined, 1.5),
  window: fc.constantFrom(undefined, 1, 5, 64, 100),
})

test('a step of any sequences is bit for bit what each gets alone from a contiguous cache', async (t) => {
  const property = fc.asyncProperty(
    headsArbitrary,
    fc.constantFrom(1, 4, 16, 32),
    fc.constantFrom<Pool['dtype']>('f32', 'bf16'),
    fc.array(sequenceArbitrary, { minLength: 1, maxLength: 5 }),
    optionsArbitrary,
    fc.integer({ min: 0, max: 3 }),
    fc.integer(),
    async (heads, page, dtype, drawn, options, padding, seed) => {
      const pages = 11
      const pool = poolOf(heads, page, pages, dtype)
      const picks = randomNumbers(4000, seed)
      let pick = 0
      // Any page anywhere, in several tables and several times in one; none where no token looks.
      const sequences = drawn.map(({ position, count }): Sequence => {
        const first = Math.floor(Math.max(0, position + 1 - (options.window ?? 1e9)) / page)
        const length = Math.ceil((position + count) / page)
        const table = Array.from({ length }, (_, i) =>
          i < first ? -1 : Math.floor(((picks[pick++ % 4000]! + 1) / 2) * pages),
        )
        return { position, count, table }
      })
      const tokens = sequences.reduce((sum, { count }) => sum + count, 0)
      const size = heads.kvHeads * heads.group * heads.dim
      const q = queriesOf(heads, tokens + padding)
      const together = await paged(pool, sequences, q, options)
      let at = 0
      for (const sequence of sequences) {
        const end = at + sequence.count * size
        if (sequence.count > 0)
          t.deepEqual(together.subarray(at, end), await contiguous(pool, sequence, q.subarray(at, end), options))
        at = end
      }
      t.true(together.subarray(at).every((x) => x === 0))
    },
  )
  await fc.assert(property, { numRuns: 60, seed: 1, endOnFailure: true })
})

for (const [group, dtype] of [
  [1, 'f32'],
  [3, 'bf16'],
  [4, 'f32'],
  [8, 'bf16'],
  [9, 'f32'],
] as const)
  test(`a token of a prompt gets what it gets when decoded: ${group} heads to a ${dtype} key`, async (t) => {
    const heads = { kvHeads: 2, group, dim: 64 }
    const pool = poolOf(heads, 16, 12, dtype)
    const table = [3, 1, 11, 0, 7, 8, 2, 5, 10, 4]
    const size = 2 * group * 64
    const q = queriesOf(heads, 150)
    for (const window of [undefined, 40]) {
      const whole = await paged(pool, [{ position: 0, count: 150, table }], q, { window })
      const parts: Float32Array[] = []
      for (let position = 0; position < 150; ) {
        const count = Math.min(150 - position, [1, 1, 5, 64, 1, 30][parts.length % 6]!)
        const of = q.subarray(position * size, (position + count) * size)
        parts.push(await paged(pool, [{ position, count, table }], of, { window }))
        position += count
      }
      t.deepEqual(Float32Array.from(parts.flatMap((part) => [...part])), whole)
    }
  })

test.serial('results do not depend on the number of threads', async (t) => {
  const heads = { kvHeads: 3, group: 3, dim: 64 }
  const pool = poolOf(heads, 16, 200, 'bf16')
  const sequences = Array.from({ length: 9 }, (_, i): Sequence => {
    const [position, count] = [i * 300, i === 4 ? 90 : 1]
    return { position, count, table: Array.from({ length: 168 }, (__, j) => (i * 31 + j * 7) % 200) }
  })
  const q = queriesOf(heads, 98)
  const before = addon.threads()
  t.teardown(() => addon.setThreads(before))
  const results = []
  for (const threads of [1, 2, 5]) {
    addon.setThreads(threads)
    results.push(await paged(pool, sequences, q))
  }
  t.deepEqual(results[1], results[0])
  t.deepEqual(results[2], results[0])
})

test('nothing is read that no token sees', async (t) => {
  const heads = { kvHeads: 1, group: 2, dim: 8 }
  const clean = poolOf(heads, 16, 4, 'f32')
  const dirty = { ...clean, keys: clean.keys.slice(), values: clean.values.slice() }
  // The token at position 40 with a window of 20 sees positions 21 to 40: rows 5 to 15 of page 2 and 0 to 8 of page 0.
  for (const x of [dirty.keys, dirty.values])
    for (let slot = 0; slot < 64; slot += 1)
      if (!((slot >= 37 && slot < 48) || slot < 9)) x.fill(Number.NaN, slot * 8, (slot + 1) * 8)
  const sequence = { position: 40, count: 1, table: [-7, 2, 0] }
  const q = queriesOf(heads, 1)
  t.deepEqual(await paged(dirty, [sequence], q, { window: 20 }), await paged(clean, [sequence], q, { window: 20 }))
})

test('a step of padding alone, and one without tokens', async (t) => {
  const heads = { kvHeads: 1, group: 1, dim: 8 }
  const pool = poolOf(heads, 16, 2, 'f32')
  const empty = { position: -5, count: 0, table: [9] }
  t.deepEqual(await paged(pool, [empty, empty], queriesOf(heads, 3)), new Float32Array(24))
  t.deepEqual(await paged(pool, [empty], new Float32Array(0)), new Float32Array(0))
})

/** What a refusal says; a kernel on a GPU can name one number only. */
const saying = (message: RegExp) => ({
  code: 'ERR_HEDDLE_ARGUMENT',
  ...(onGpu ? {} : { message }),
})

const good = { position: 20, count: 2, table: [1, 0] } as const
const hostile: readonly (readonly [string, readonly Sequence[], RegExp])[] = [
  ['a page that is not there', [{ ...good, table: [1, 3] }], /pages in \[0, 3\), got 3/],
  ['a negative page', [{ ...good, table: [-1, 0] }], /pages in \[0, 3\), got -1/],
  ['a negative position', [{ ...good, position: -1 }], /positions within the 32 rows.*got -1 to 0/],
  ['a position beyond the table', [{ ...good, position: 31 }], /positions within the 32 rows.*got 31 to 32/],
  ['the largest position', [{ ...good, position: 2 ** 31 - 1 }], /positions within the 32 rows/],
  ['more tokens than there are', [good, good, good], /starts that rise to at most 4, got 4 and then 6/],
  ['starts that fall', [good, { ...good, count: -1 }], /starts that rise.*got 2 and then 1/],
]
for (const [name, sequences, message] of hostile)
  test(`refused: ${name}`, async (t) => {
    const heads = { kvHeads: 1, group: 1, dim: 4 }
    const run = paged(poolOf(heads, 16, 3, 'f32'), sequences, queriesOf(heads, 4))
    await t.throwsAsync(run, saying(message))
  })

test('operands that do not fit are refused when traced', async (t) => {
  const step = (s: number, starts: number) => ({
    tables: read(ints([0, 0], [s, 2 / s])),
    starts: read(ints(Array(starts).fill(0))),
    positions: read(ints(Array(s).fill(0))),
  })
  const code = 'ERR_HEDDLE_SHAPE'
  const pages = zeros([2, 16, 2, 4])
  const attend = (shape: readonly number[], starts = 2) =>
    program(() => pagedAttention(read(zeros(shape)), read(pages), read(pages), step(1, starts)))()
  await t.throwsAsync(attend([1, 3, 4]), { code, message: /h a multiple of hk/ })
  await t.throwsAsync(attend([1, 4, 8]), { code, message: /q \[n, h, d\]/ })
  await t.throwsAsync(attend([1, 1, 4, 4]), { code, message: /q \[n, h, d\]/ })
  await t.throwsAsync(attend([1, 4, 4], 3), { code, message: /starts i32 \[2\]/ })
  const update = (rows: readonly number[], slots: Tensor) =>
    program(() => pagedCacheUpdate(read(pages), read(zeros(rows)), read(slots)))()
  await t.throwsAsync(update([1, 2, 5], ints([0])), { code, message: /rows \[n, hk, d\]/ })
  await t.throwsAsync(update([1, 2, 4], ints([0, 1])), { code, message: /slots i32 \[1\]/ })
  await t.throwsAsync(update([1, 2, 4], zeros([1])), { code, message: /slots i32 \[1\]/ })
})

for (const dtype of ['f32', 'bf16'] as const)
  test(`rows are written to their slots of a ${dtype} cache, -1 writes nothing`, async (t) => {
    const cache = zeros([3, 4, 2, 3], dtype)
    const rows = randomNumbers(5 * 6, 3)
    const slots = [7, -1, 0, 11, 4]
    const run = program((x, at) => pagedCacheUpdate(read(cache), x!, at!))
    await run(tensor(rows, [5, 2, 3]), ints(slots))
    const expected = new Float32Array(72)
    for (const [i, slot] of slots.entries()) if (slot >= 0) expected.set(rows.subarray(i * 6, i * 6 + 6), slot * 6)
    const rounded = await program((x) => cast(x!, dtype))(tensor(expected, [3, 4, 2, 3]))
    t.deepEqual(await cache.data(), await rounded.data())
  })

for (const [name, slots, message] of [
  ['behind the cache', [3, 12], /slots in \[0, 12\), or -1, got 12/],
  ['before the cache', [3, -2], /slots in \[0, 12\), or -1, got -2/],
  ['given twice', [5, 5], /slots that differ, got 5 twice/],
  ['given twice, apart', [5, 2, -1, -1, 5], /slots that differ, got 5 twice/],
] as const)
  test(`a slot ${name} is refused, and nothing is written`, async (t) => {
    const cache = zeros([3, 4, 1, 2])
    const run = program((x, at) => pagedCacheUpdate(read(cache), x!, at!))
    const rows = tensor(new Float32Array(2 * slots.length).fill(1), [slots.length, 1, 2])
    await t.throwsAsync(run(rows, ints(slots)), saying(message))
    t.deepEqual(await numbers(cache), new Float32Array(24))
  })

test('a step writes its keys and values before it attends to them', async (t) => {
  const heads = { kvHeads: 2, group: 2, dim: 8 }
  const size = elementCount([2, 8])
  const [keys, values] = [zeros([4, 4, 2, 8], 'bf16'), zeros([4, 4, 2, 8], 'bf16')]
  const step = program((q, k, v, slots, tables, starts, positions) => {
    const [writtenKeys, writtenValues] = [
      pagedCacheUpdate(read(keys), k!, slots!),
      pagedCacheUpdate(read(values), v!, slots!),
    ]
    return pagedAttention(q!, writtenKeys, writtenValues, { tables: tables!, starts: starts!, positions: positions! })
  })
  // Numbers that bf16 holds: what is written is what is read.
  const [k, v] = [1, 2].map((seed) => randomNumbers(7 * size, seed).map((x) => Math.round(x * 64) / 64)) as [
    Float32Array,
    Float32Array,
  ]
  const q = queriesOf(heads, 7)
  const rows = (x: Float32Array, from: number, to: number) => tensor(x.slice(from * size, to * size), [to - from, 2, 8])
  const table = [2, 0]
  const slot = (position: number) => table[Math.floor(position / 4)]! * 4 + (position % 4)
  const results: number[] = []
  for (const [from, to] of [
    [0, 5],
    [5, 6],
    [6, 7],
  ] as const) {
    const result = await step(
      tensor(q.slice(from * 2 * size, to * 2 * size), [to - from, 4, 8]),
      rows(k, from, to),
      rows(v, from, to),
      ints(Array.from({ length: to - from }, (_, i) => slot(from + i))),
      ints(table, [1, 2]),
      ints([0, to - from]),
      ints([from]),
    )
    results.push(...(await numbers(result)))
  }
  const whole = { ...heads, page: 7, pages: 1, dtype: 'bf16', keys: k, values: v } as const
  const expected = await contiguous(whole, { position: 0, count: 7, table: [0] }, q, {})
  t.deepEqual(Float32Array.from(results), expected)
})
