// Adapters by name: one load for many requests, never more bytes than allowed, none evicted while in use.
import test from 'ava'
import { RowRanges } from '../lib/engine/adapter_ranges.js'
import { AdapterStore } from '../lib/engine/adapter_store.js'

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
