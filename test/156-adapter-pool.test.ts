// Adapters by name: one load for many requests, never more bytes than allowed, none evicted while in use.
import test from 'ava'
import { RowRanges } from '../lib/engine/adapter_ranges.js'
import { AdapterStore } from '../lib/engine/adapter_store.js'
import { computed } from '../lib/graph/computed.js'
import { cast } from '../lib/graph/ops/elementwise.js'
import { tensor, writeRows, zeros } from '../lib/tensor/tensor.js'
import { randomNumbers, tensorOf } from './random_numbers.js'

/** A store of 8 rows of 10 bytes; a folder's last digit is its adapter's rank, `broken` holds folders that fail. */
function storeOf() {
  const reads: string[] = []
  const broken = new Set<string>()
  const store = new AdapterStore({
    rowBytes: 10,
    bytes: 85,
    read: async (folder) => {
      reads.push(folder)
      if (broken.has(folder)) throw new Error(`broken ${folder}`)
      return { rank: Number(folder.at(-1)), write: async () => {}, dispose: () => {} }
    },
  })
  for (const name of ['a4', 'b4', 'c4', 'd8', 'e9']) store.add(name, name)
  return { store, reads, broken }
}

const turn = (): Promise<void> => new Promise((resolve) => setImmediate(resolve))

test('freed rows join their neighbours', (t) => {
  const ranges = new RowRanges(8)
  const taken = [2, 4, 2].map((rank) => ranges.take(rank)!)
  t.is(ranges.take(1), undefined)
  for (const at of [0, 2, 1]) ranges.give(taken[at]!)
  t.deepEqual(ranges.take(8), { first: 0, rank: 8 })
})

test('requests at the same time share one load', async (t) => {
  const { store, reads } = storeOf()
  const [one, two] = await Promise.all([store.acquire('a4'), store.acquire('a4')])
  t.deepEqual(reads, ['a4'])
  t.is(one.first, two.first)
  t.is(store.usedBytes, 40)
})

test('the least recently used idle adapter goes first', async (t) => {
  const { store } = storeOf()
  for (const name of ['a4', 'b4', 'a4', 'c4']) (await store.acquire(name)).release()
  t.deepEqual(store.loaded, ['a4', 'c4'])
})

test('an adapter in use is never evicted: others wait for its release', async (t) => {
  const { store } = storeOf()
  const used = await store.acquire('a4')
  let isThere = false
  const waits = store.acquire('d8').then((lease) => {
    isThere = true
    return lease
  })
  await turn()
  t.false(isThere)
  used.release()
  t.is((await waits).rank, 8)
  t.deepEqual(store.loaded, ['d8'])
})

test('an adapter larger than all the memory is refused', async (t) => {
  const { store } = storeOf()
  await t.throwsAsync(store.acquire('e9'), { code: 'ERR_HEDDLE_ARGUMENT', message: /memory\.adapters/ })
  t.is(store.usedBytes, 0)
})

test('a broken folder fails its own requests, takes no rows, and is tried again', async (t) => {
  const { store, broken } = storeOf()
  broken.add('a4')
  await t.throwsAsync(store.acquire('a4'), { message: 'broken a4' })
  t.is(store.usedBytes, 0)
  broken.delete('a4')
  t.is((await store.acquire('a4')).rank, 4)
})

test('a replaced adapter keeps its rows until its last request ends', async (t) => {
  const { store } = storeOf()
  const old = await store.acquire('a4')
  store.add('a4', 'new4')
  const fresh = await store.acquire('a4')
  t.not(old.first, fresh.first)
  t.not(old.version, fresh.version)
  t.is(store.usedBytes, 80)
  old.release()
  old.release()
  t.is(store.usedBytes, 40)
})

test('an adapter whose name is taken away while it loads serves those who asked for it, and leaves with them', async (t) => {
  const { store } = storeOf()
  const asked = store.acquire('a4')
  store.remove('a4')
  const lease = await asked
  t.is(lease.rank, 4)
  t.is(store.usedBytes, 40)
  await t.throwsAsync(store.acquire('a4'), { code: 'ERR_HEDDLE_ARGUMENT', message: /got a4/ })
  lease.release()
  t.is(store.usedBytes, 0)
})

test('an adapter that is taken away and no longer wanted while it loads leaves no rows behind', async (t) => {
  const { store } = storeOf()
  const stop = new AbortController()
  const asked = store.acquire('a4', stop.signal)
  store.remove('a4')
  stop.abort()
  await t.throwsAsync(asked, { code: 'ERR_HEDDLE_ABORTED' })
  await turn()
  t.is(store.usedBytes, 0)
})

test('a request that is aborted while it waits leaves nothing in use', async (t) => {
  const { store } = storeOf()
  const used = await store.acquire('a4')
  const stop = new AbortController()
  const waits = store.acquire('d8', stop.signal)
  await turn()
  stop.abort()
  await t.throwsAsync(waits, { code: 'ERR_HEDDLE_ABORTED' })
  used.release()
  await turn()
  t.is((await store.acquire('b4')).rank, 4)
})

test('names cannot leave their folder', (t) => {
  const { store } = storeOf()
  for (const name of ['../x', '..', '.', '', 'a/b', 'a\\b', '/etc', 'a\0', '.hidden', 'a\n'])
    t.throws(() => store.add(name, 'x1'), { code: 'ERR_HEDDLE_ARGUMENT' }, name)
})

test('rows of a pool become the factors, scaled and rounded as alone, with zeros behind and nothing else touched', async (t) => {
  const [a, b] = [randomNumbers(3 * 20, 1), randomNumbers(20 * 3, 2)]
  const scale = 16 / 3
  const columns = Float32Array.from(
    { length: 60 },
    (_, i) => Math.fround(scale) * b[(i % 20) * 3 + Math.floor(i / 20)]!,
  )
  for (const dtype of ['f32', 'bf16'] as const) {
    const ones = new Float32Array(7 * 20).fill(1)
    const [poolA, poolB] = [tensorOf(ones, [7, 20], dtype), tensorOf(ones, [7, 20], dtype)]
    await writeRows([
      { target: poolA, first: 2, count: 4, source: tensor(a, [3, 20]) },
      { target: poolB, first: 2, count: 4, source: tensor(b, [20, 3]), transposed: true, scale },
    ])
    const expected = async (rows: Float32Array) => {
      const all = ones.slice()
      all.set(rows, 40)
      all.fill(0, 100, 120)
      return (await computed((x) => cast(x!, dtype), [tensor(all, [7, 20])])).data()
    }
    t.deepEqual(await poolA.data(), await expected(a))
    t.deepEqual(await poolB.data(), await expected(columns))
    await writeRows([{ target: poolA, first: 0, count: 7 }])
    t.deepEqual(await poolA.data(), await zeros([7, 20], dtype).data())
  }
})

test('rows that do not fit are refused, and nothing is written', async (t) => {
  const target = zeros([4, 8])
  const source = tensor(new Float32Array(16).fill(1), [2, 8])
  const written = { target, first: 0, count: 2, source }
  for (const [write, code] of [
    [{ target, first: 3, count: 2, source }, 'ERR_HEDDLE_SHAPE'],
    [{ target, first: 5, count: 0 }, 'ERR_HEDDLE_SHAPE'],
    [{ target, first: 0, count: 1, source }, 'ERR_HEDDLE_SHAPE'],
    [{ target, first: 0, count: 2, source, transposed: true }, 'ERR_HEDDLE_SHAPE'],
    [{ target: zeros([4, 8, 1]), first: 0, count: 2 }, 'ERR_HEDDLE_SHAPE'],
    [{ target: zeros([4, 8], 'i32'), first: 0, count: 2 }, 'ERR_HEDDLE_DTYPE'],
    [{ target, first: 0, count: 2, source: zeros([2, 8], 'bf16') }, 'ERR_HEDDLE_DTYPE'],
  ] as const)
    await t.throwsAsync(writeRows([written, write]), { code })
  t.deepEqual(await target.data(), new Float32Array(32))
})
