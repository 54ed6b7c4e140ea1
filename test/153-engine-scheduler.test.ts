// Who takes part in a step: texts that write always, readers in equal shares, places by fair turns, and nobody is lost
// when memory is short.
import test from 'ava'
import { PageTable } from '../lib/engine/page_table.js'
import { type Feed, Scheduler, type SchedulerLimits, type Task } from '../lib/engine/scheduler.js'
import { TextPages } from '../lib/engine/text_pages.js'
import { randomIntegers } from './support/random_integers.js'

interface Text extends Task {
  readonly tokens: number[]
  readonly name: string
  /** New tokens that it still wants. */
  left: number
}

/** An engine without a network: the next token is a number, and the cache keeps what each slot stands for. */
class Machine {
  readonly table: PageTable
  readonly scheduler: Scheduler<Text>
  readonly texts = new Set<Text>()
  readonly finished: Text[] = []
  readonly #cache = new Map<number, string>()
  #arrivals = 0

  constructor(
    readonly limits: SchedulerLimits,
    { pages = 1000, pageTokens = 4 } = {},
  ) {
    this.table = new PageTable(pages, pageTokens)
    this.scheduler = new Scheduler(limits)
  }

  add(prompt: readonly number[], left: number, group = ''): Text {
    const arrival = this.#arrivals++
    const pages = new TextPages(this.table)
    const name = `${group}${arrival}`
    const text: Text = { name, group, root: group, arrival, tokens: [...prompt], pages, computed: 0, left }
    this.texts.add(text)
    this.scheduler.add(text)
    return text
  }

  /** Runs a step. @returns what it took, or what is wrong with it */
  step(): { readonly feeds: readonly Feed<Text>[]; readonly wrong: readonly string[] } {
    const feeds = this.scheduler.plan()
    const wrong: string[] = []
    const total = feeds.reduce((sum, { count }) => sum + count, 0)
    if (total > this.limits.stepTokens) wrong.push(`${total} tokens`)
    if (this.scheduler.running > this.limits.maxBatch) wrong.push(`${this.scheduler.running} texts`)
    for (const { task, start, count, isLast } of feeds) {
      if (count < 1 || isLast !== (start + count === task.tokens.length)) wrong.push(`${task.name}: ${count} tokens`)
      for (let at = start; at < start + count; at += 1) this.#cache.set(task.pages.slot(at), meaning(task, at))
    }
    for (const { task, start, count } of feeds)
      for (let at = 0; at < start + count; at += 1)
        if (this.#cache.get(task.pages.slot(at)) !== meaning(task, at)) wrong.push(`${task.name}: position ${at}`)
    for (const feed of feeds) this.#take(feed)
    return { feeds, wrong }
  }

  remove(text: Text): void {
    this.scheduler.remove(text)
    this.texts.delete(text)
  }

  #take(feed: Feed<Text>): void {
    const { task, isLast } = feed
    this.scheduler.advance(feed)
    if (!isLast) return
    task.left -= 1
    if (task.left > 0) task.tokens.push(nextOf(task.tokens))
    else {
      this.remove(task)
      this.finished.push(task)
    }
  }
}

/** What the keys and values of a position depend on. */
const meaning = ({ root, tokens }: Text, position: number): string => `${root}|${tokens.slice(0, position + 1)}`

const nextOf = (tokens: readonly number[]): number => tokens.reduce((sum, token) => (sum * 31 + token) % 3, 7)

const range = (count: number): number[] => Array.from({ length: count }, (_, i) => i)

const namesOf = (feeds: readonly Feed<Text>[]): string[] => feeds.map(({ task }) => task.name).sort()

test('texts that write take one token each, and a long prompt has what is left of the step', (t) => {
  const machine = new Machine({ maxBatch: 4, stepTokens: 10 })
  for (let i = 0; i < 3; i += 1) machine.add([i], 50)
  machine.step()
  machine.add(range(100), 5)
  for (let step = 0; step < 14; step += 1)
    t.deepEqual(
      machine
        .step()
        .feeds.map(({ count }) => count)
        .sort(),
      [1, 1, 1, 7],
    )
  t.deepEqual(
    machine
      .step()
      .feeds.map(({ count }) => count)
      .sort(),
    [1, 1, 1, 2],
  )
  t.deepEqual(
    machine
      .step()
      .feeds.map(({ count }) => count)
      .sort(),
    [1, 1, 1, 1],
  )
})

test('prompts share a step, so that a short one is not held up by a long one', (t) => {
  const machine = new Machine({ maxBatch: 4, stepTokens: 12 })
  machine.add(range(200), 1)
  const short = machine.add([7, 7, 7, 7, 7], 1)
  const { feeds } = machine.step()
  t.deepEqual(feeds.map(({ count }) => count).sort(), [5, 7])
  t.deepEqual(machine.finished, [short])
})

test('texts that begin alike compute what they share once', (t) => {
  const machine = new Machine({ maxBatch: 8, stepTokens: 64 })
  const shared = range(40)
  for (let i = 0; i < 8; i += 1) machine.add([...shared, 100 + i, 1], 2)
  let total = 0
  while (machine.texts.size > 0) {
    const { feeds, wrong } = machine.step()
    t.deepEqual(wrong, [])
    total += feeds.reduce((sum, { count }) => sum + count, 0)
  }
  t.is(total, 40 + 8 * 2 + 8)
})

test('groups take turns, whoever asks more or came first', (t) => {
  const machine = new Machine({ maxBatch: 4, stepTokens: 64 })
  for (let i = 0; i < 40; i += 1) machine.add([1, 2, 3, i], 3, 'many')
  for (let i = 0; i < 4; i += 1) machine.add([1, 2, 3, i], 3, 'few')
  t.deepEqual(namesOf(machine.step().feeds), ['few40', 'few41', 'many0', 'many1'])
})

test('a group that comes late gets the next places, and nothing for the time that it was away', (t) => {
  const machine = new Machine({ maxBatch: 2, stepTokens: 64 })
  for (let i = 0; i < 60; i += 1) machine.add([1, 2, 3, i], 4, 'busy')
  for (let i = 0; i < 30; i += 1) machine.step()
  const before = machine.finished.length
  for (let i = 0; i < 20; i += 1) machine.add([5, 6, 7, i], 4, 'late')
  const order: string[] = []
  while (order.length < 20) {
    machine.step()
    order.splice(0, order.length, ...machine.finished.slice(before).map(({ group }) => group))
  }
  const late = order.slice(0, 20).filter((group) => group === 'late').length
  t.true(late >= 8 && late <= 11, `${late}`)
})

test('a text that rests takes part in nothing, and goes on where it was', (t) => {
  const machine = new Machine({ maxBatch: 2, stepTokens: 64 })
  const [a, b, c] = [machine.add([1, 2], 9), machine.add([3, 4], 9), machine.add([5, 6], 3)]
  machine.step()
  machine.scheduler.rest(a)
  t.deepEqual(namesOf(machine.step().feeds), [b.name, c.name])
  const { computed } = a
  for (let i = 0; i < 3; i += 1) machine.step()
  machine.scheduler.wake(a)
  t.like(
    machine.step().feeds.find(({ task }) => task === a),
    { start: computed, count: 1 },
  )
})

test('pages that run out are taken from those who rest, then from the youngest', (t) => {
  const machine = new Machine({ maxBatch: 3, stepTokens: 64 }, { pages: 6, pageTokens: 2 })
  const [a, b, c] = [machine.add([1, 1], 9), machine.add([2, 2], 9), machine.add([3], 9)]
  machine.step()
  machine.scheduler.rest(b)
  const seen: string[][] = []
  for (let i = 0; i < 8; i += 1) seen.push(namesOf(machine.step().feeds))
  t.is(b.computed, 0)
  t.true(seen.every((names) => names.includes(a.name)))
  t.true(seen.some((names) => !names.includes(c.name)))
})

test('new weights: everyone reads again', (t) => {
  const machine = new Machine({ maxBatch: 4, stepTokens: 64 })
  const text = machine.add([1, 2, 3, 4, 5], 9)
  machine.step()
  machine.step()
  machine.table.clear()
  machine.scheduler.preemptAll()
  t.like(machine.step().feeds[0], { task: text, start: 0, count: 7 })
})

test('whatever comes and goes: all get through, each position sees its own text, all limits hold', (t) => {
  for (let seed = 0; seed < 30; seed += 1) {
    const random = randomIntegers(seed)
    const limits = { maxBatch: 1 + random(5), stepTokens: 5 + random(20) }
    const machine = new Machine(limits, { pages: 10 + random(10), pageTokens: 1 + random(4) })
    const room = machine.table.pages * machine.table.pageTokens
    const resting = new Set<Text>()
    const wrong: string[] = []
    let placed = new Set<Text>()
    for (let step = 0; machine.texts.size > 0 || step < 200; step += 1) {
      if (step > 5000) break
      if (step < 200 && random(2) === 0) {
        const prompt = Array.from({ length: 1 + random(room - 1) }, () => random(2))
        machine.add(prompt, 1 + random(room - prompt.length + 1), 'abc'[random(3)])
      }
      const some = step < 200 ? [...machine.texts][random(machine.texts.size || 1)] : undefined
      const fate = random(10)
      if (some && fate === 0) machine.remove(some)
      if (some && fate === 1 && !resting.has(some)) {
        resting.add(some)
        placed.delete(some)
        machine.scheduler.rest(some)
      }
      const [sleeper] = resting
      if (sleeper && random(4) === 0) {
        resting.delete(sleeper)
        machine.scheduler.wake(sleeper)
      }
      // Texts are in the order in which they came.
      const oldest = [...machine.texts].find((text) => !resting.has(text))
      const was = placed.has(oldest!) ? oldest!.computed : 0
      const result = machine.step()
      placed = new Set(result.feeds.map(({ task }) => task))
      wrong.push(...result.wrong)
      if (result.feeds.length === 0 && [...machine.texts].some((text) => !resting.has(text))) wrong.push('idle')
      if (oldest && machine.texts.has(oldest) && oldest.computed < was) wrong.push('the oldest lost its place')
    }
    t.deepEqual(wrong, [])
    t.is(machine.texts.size, 0)
    t.is(machine.table.available, machine.table.pages)
  }
})
