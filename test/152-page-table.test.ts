// Pages of keys and values: each has as many users as texts hold it, full ones are found again, and none is ever lost.
import test from 'ava'
import { PageTable } from '../lib/engine/page_table.js'
import { TextPages } from '../lib/engine/text_pages.js'
import { randomIntegers } from './support/random_integers.js'

const root = 'model/0'

/** A text whose tokens are all computed. */
function written(table: PageTable, tokens: readonly number[]): TextPages {
  const pages = new TextPages(table)
  pages.adopt(root, tokens, 0, tokens.length - 1)
  pages.reserve(tokens.length)
  pages.commit(root, tokens, tokens.length)
  return pages
}

/** How many tokens a new text would find in the cache. */
function known(table: PageTable, tokens: readonly number[], from = root): number {
  const pages = new TextPages(table)
  const found = pages.adopt(from, tokens, 0, tokens.length - 1)
  pages.release()
  return found
}

test('positions lie in the pages of a text in their order', (t) => {
  const pages = new TextPages(new PageTable(3, 4))
  t.true(pages.reserve(9))
  const slots = Array.from({ length: 9 }, (_, i) => pages.slot(i))
  t.deepEqual(
    slots,
    [...slots.keys()].map((i) => pages.pages[i >> 2]! * 4 + (i % 4)),
  )
  t.is(new Set(slots).size, 9)
})

test('a text that begins like another shares its full pages, up to its last token', (t) => {
  const table = new PageTable(8, 4)
  const first = written(table, [1, 2, 3, 4, 5, 6, 7, 8, 9])
  const second = written(table, [1, 2, 3, 4, 5, 6, 7, 8, 10, 11])
  t.deepEqual(second.pages.slice(0, 2), first.pages.slice(0, 2))
  t.is(table.used, 4)
  // The last token is always computed: what follows is drawn from it.
  t.is(known(table, [1, 2, 3, 4, 5, 6, 7, 8]), 4)
  t.is(known(table, [1, 2, 3, 4, 5, 6, 7, 8, 0]), 8)
})

test('pages are found by all that stands before them, and by the weights', (t) => {
  const table = new PageTable(8, 2)
  written(table, [1, 2, 3, 4, 5])
  t.is(known(table, [3, 4, 5]), 0)
  t.is(known(table, [0, 2, 3, 4, 5]), 0)
  t.is(known(table, [1, 2, 3, 4, 5], 'another/0'), 0)
  t.is(known(table, [1, 2, 3, 4, 5]), 4)
})

test('what nobody uses is kept until its place is needed, ends of the oldest texts first', (t) => {
  const table = new PageTable(6, 2)
  const [old, young] = [written(table, [1, 2, 3, 4, 5]), written(table, [6, 7, 8, 9, 10])]
  old.release()
  young.release()
  t.is(table.available, 6)
  // Two pages were not full and are free; the third one that is taken is the end of the old text.
  const other = new TextPages(table)
  other.reserve(6)
  t.is(known(table, [1, 2, 3, 4, 5]), 2)
  t.is(known(table, [6, 7, 8, 9, 10]), 4)
})

test('pages in use are never taken', (t) => {
  const table = new PageTable(3, 2)
  const text = written(table, [1, 2, 3, 4])
  const other = new TextPages(table)
  t.false(other.reserve(3))
  t.deepEqual(other.pages, [])
  t.true(other.reserve(2))
  t.false(text.pages.includes(other.pages[0]!))
})

test('two texts that compute the same page at once both go on, and a third one shares the first', (t) => {
  const table = new PageTable(8, 2)
  const [a, b] = [new TextPages(table), new TextPages(table)]
  for (const pages of [a, b]) pages.reserve(5)
  for (const pages of [a, b]) pages.commit(root, [1, 2, 3, 4, 5], 5)
  t.is(written(table, [1, 2, 3, 4, 6]).pages[1], a.pages[1])
  a.release()
  b.release()
  t.is(known(table, [1, 2, 3, 4, 5]), 4)
})

test('a text that waited for a page of another goes on with it', (t) => {
  const table = new PageTable(8, 2)
  const tokens = [1, 2, 3, 4, 5]
  const [a, b] = [new TextPages(table), new TextPages(table)]
  for (const pages of [a, b]) pages.reserve(5)
  t.is(a.nextKey(root, tokens, 0, 4), b.nextKey(root, tokens, 0, 4))
  a.commit(root, tokens, 4)
  t.is(b.adopt(root, tokens, 0, 4), 4)
  t.deepEqual(b.pages.slice(0, 2), a.pages.slice(0, 2))
  t.is(table.used, 4)
})

test('new weights make everything unknown', (t) => {
  const table = new PageTable(6, 2)
  const [gone, kept] = [written(table, [1, 2, 3]), written(table, [4, 5, 6])]
  gone.release()
  table.clear()
  t.is(known(table, [1, 2, 3]), 0)
  t.is(known(table, [4, 5, 6]), 0)
  kept.release()
  t.is(table.available, 6)
})

test('whatever happens, every page is free, kept or held, and shared pages hold the same tokens', (t) => {
  for (let seed = 0; seed < 20; seed += 1) {
    const random = randomIntegers(seed)
    const table = new PageTable(12, 3)
    const texts: { pages: TextPages; tokens: number[] }[] = []
    for (let step = 0; step < 300; step += 1) {
      if (random(3) === 0 && texts.length > 0) texts.splice(random(texts.length), 1)[0]!.pages.release()
      const tokens = Array.from({ length: 1 + random(14) }, () => random(2))
      const pages = new TextPages(table)
      pages.adopt(root, tokens, 0, tokens.length - 1)
      if (pages.reserve(tokens.length)) {
        pages.commit(root, tokens, tokens.length)
        texts.push({ pages, tokens })
      } else pages.release()
      const held = new Map<number, string>()
      for (const text of texts)
        for (const [index, page] of text.pages.pages.entries()) {
          const contents = JSON.stringify(text.tokens.slice(0, (index + 1) * 3))
          t.is(held.get(page) ?? contents, contents)
          held.set(page, contents)
        }
      t.is(table.used, held.size)
    }
    for (const { pages } of texts) pages.release()
    t.is(table.available, 12)
  }
})
