/**
 * Who takes part in the next step, with how many tokens, and who has to give up a place: nothing else is decided here, and
 * nothing is computed.
 *
 * - A text that has all of its tokens but the last in the cache takes one token per step, always. What a step has left
 *   goes to texts that are still reading, in equal shares, so that a long one holds up no short one.
 * - A free place goes to the group (an adapter, or the model alone) that was served least, by virtual time as in
 *   start-time fair queueing (Goyal et al. 1996): a group is charged for the tokens that it makes us read and write, and
 *   one that comes back starts where the others are. Within a group the first to come is the first to be served.
 * - When pages run out, the youngest text gives its pages back and waits; it goes on later where it was, after reading
 *   its own text again. The oldest one always goes on, so that all get through.
 */
import type { TextPages } from './text_pages.js'

/** A text, as far as scheduling goes. */
export interface Task {
  /** Whose share of the engine it takes. */
  readonly group: string
  /** Grows from text to text. */
  readonly arrival: number
  /** What the pages of the text depend on beside its tokens. */
  readonly root: string
  /** All that are known so far. */
  readonly tokens: ArrayLike<number>
  readonly pages: TextPages
  /** Tokens whose keys and values are in the pages. */
  computed: number
}

/** What one text gives to a step. */
export interface Feed<T extends Task = Task> {
  readonly task: T
  /** Its first token's position. */
  readonly start: number
  readonly count: number
  /** The text's last known token is among them: the next one can be drawn. */
  readonly isLast: boolean
}

/** Limits of a {@link Scheduler}. */
export interface SchedulerLimits {
  /** Most texts of a step. */
  readonly maxBatch: number
  /** Most tokens of a step, at least `maxBatch`. */
  readonly stepTokens: number
}

interface Group<T> {
  /** Tokens that it was served, give or take what it missed while it was away. */
  time: number
  /** By arrival. */
  readonly waiting: T[]
  running: number
}

export class Scheduler<T extends Task> {
  readonly #limits: SchedulerLimits
  /** Those that want something, and those that had more than the others when they left. */
  readonly #groups = new Map<string, Group<T>>()
  /** By arrival. */
  readonly #running: T[] = []
  /** Every text, with the tokens that its group was charged for. */
  readonly #charged = new Map<T, number>()
  /** Virtual time of the group that got the last place. */
  #now = 0

  constructor(limits: SchedulerLimits) {
    this.#limits = limits
  }

  get running(): number {
    return this.#running.length
  }

  /** Texts without a place, those that rest included. */
  get waiting(): number {
    return this.#charged.size - this.#running.length
  }

  /** Every text, in no order. */
  get tasks(): IterableIterator<T> {
    return this.#charged.keys()
  }

  /** A text that wants a place from now on. */
  add(task: T): void {
    this.#charged.set(task, 0)
    this.#enter(task)
  }

  /** Takes a text out, wherever it is, and gives its pages back. */
  remove(task: T): void {
    if (!this.#charged.delete(task)) return
    this.#leave(task)
    task.pages.release()
  }

  /** Leaves a text out until {@link wake}; it keeps its pages while nobody else needs them. */
  rest(task: T): void {
    if (this.#charged.has(task)) this.#leave(task)
  }

  wake(task: T): void {
    if (this.#charged.has(task)) this.#enter(task)
  }

  /** Takes everyone's pages: what they hold is of no use any more. */
  preemptAll(): void {
    for (const task of [...this.#running]) this.#preempt(task)
    for (const task of this.#charged.keys()) giveUp(task)
  }

  /** The next step; empty when no text wants one. {@link advance} tells what came of it. */
  plan(): Feed<T>[] {
    this.#keepWriting()
    this.#fillPlaces()
    const writing = this.#running.filter((task) => rest(task) === 1)
    const reading = this.#running.filter((task) => rest(task) > 1)
    return [
      ...writing.map((task) => feedOf(task, 1)),
      ...shares(distinct(reading), this.#limits.stepTokens - writing.length),
    ]
  }

  /** A text's part of a step has run. */
  advance({ task, start, count }: Feed<T>): void {
    task.computed = start + count
    task.pages.commit(task.root, task.tokens, task.computed)
    this.#charge(task, task.computed)
  }

  /** Texts that write need a page now and then; the oldest get theirs first. */
  #keepWriting(): void {
    for (const task of [...this.#running])
      while (this.#running.includes(task) && !task.pages.reserve(task.tokens.length)) {
        const other = this.#youngestHolder()
        if (other) giveUp(other)
        else this.#preempt(this.#running.at(-1)!)
      }
  }

  #fillPlaces(): void {
    while (this.#running.length < this.#limits.maxBatch) {
      const group = this.#leastServed()
      const task = group?.waiting[0]
      if (!group || !task || !this.#seat(task)) return
      group.waiting.shift()
      group.running += 1
      insert(this.#running, task)
      this.#now = Math.max(this.#now, group.time)
      // What is in the cache already costs nothing.
      this.#charged.set(task, Math.max(this.#charged.get(task)!, task.computed))
      this.#charge(task, task.tokens.length)
    }
  }

  /** The group whose turn it is; of those with the same claim, the one whose text waits longest. */
  #leastServed(): Group<T> | undefined {
    let least: Group<T> | undefined
    for (const group of this.#groups.values()) {
      const [first] = group.waiting
      if (!first) continue
      const ahead = least ? group.time - least.time : -1
      if (ahead < 0 || (ahead === 0 && first.arrival < least!.waiting[0]!.arrival)) least = group
    }
    return least
  }

  /** Takes pages for all that the text has, and leaves one for each text that has a place: false where that is too many. */
  #seat(task: T): boolean {
    const { pages, tokens, root } = task
    const spare = this.#running.length
    if (pages.hasRoom(task.computed, spare)) task.computed = pages.adopt(root, tokens, task.computed, tokens.length - 1)
    while (!pages.hasRoom(tokens.length, spare)) {
      const other = this.#youngestHolder(task)
      if (!other) return false
      giveUp(other)
    }
    return pages.reserve(tokens.length)
  }

  /** Of the texts without a place that hold pages all the same, the one that came last. */
  #youngestHolder(besides?: T): T | undefined {
    let found: T | undefined
    for (const task of this.#charged.keys()) {
      if (task === besides || task.pages.pages.length === 0 || this.#running.includes(task)) continue
      if (!found || task.arrival > found.arrival) found = task
    }
    return found
  }

  #preempt(task: T): void {
    this.#leave(task)
    giveUp(task)
    this.#enter(task)
  }

  #enter(task: T): void {
    const group = this.#groups.get(task.group) ?? { time: 0, waiting: [], running: 0 }
    if (group.waiting.length + group.running === 0) group.time = Math.max(group.time, this.#now)
    insert(group.waiting, task)
    this.#groups.set(task.group, group)
  }

  #leave(task: T): void {
    const group = this.#groups.get(task.group)
    if (!group) return
    if (take(this.#running, task)) group.running -= 1
    else take(group.waiting, task)
    // A group that comes back starts where the others are: only one that is ahead of them has to be remembered.
    for (const [name, { waiting, running, time }] of this.#groups)
      if (waiting.length + running === 0 && time <= this.#now) this.#groups.delete(name)
  }

  #charge(task: T, tokens: number): void {
    const charged = this.#charged.get(task)!
    if (tokens <= charged) return
    this.#charged.set(task, tokens)
    const group = this.#groups.get(task.group)
    // Absent where a text began to rest while its step ran, and was the last of its group.
    if (group) group.time += tokens - charged
  }
}

/** Tokens that are known but not in the cache. */
const rest = ({ tokens, computed }: Task): number => tokens.length - computed

const feedOf = <T extends Task>(task: T, count: number): Feed<T> => ({
  task,
  start: task.computed,
  count,
  isLast: count === rest(task),
})

function giveUp(task: Task): void {
  task.pages.release()
  task.computed = 0
}

/**
 * Those that read something of their own: who is about to compute a page that an earlier text is at, too, goes on with
 * that page when it is there.
 */
function distinct<T extends Task>(reading: readonly T[]): T[] {
  const keys = new Set<string>()
  return reading.filter((task) => {
    const { pages, root, tokens } = task
    task.computed = pages.adopt(root, tokens, task.computed, tokens.length - 1)
    const key = pages.nextKey(root, tokens, task.computed, tokens.length - 1)
    if (key === undefined) return true
    if (keys.has(key)) return false
    keys.add(key)
    return true
  })
}

/** Equal shares of so many tokens; what one does not need is the others'. */
function shares<T extends Task>(tasks: readonly T[], budget: number): Feed<T>[] {
  let left = budget
  return [...tasks]
    .sort((a, b) => rest(a) - rest(b))
    .map((task, index) => {
      const count = Math.min(rest(task), Math.floor(left / (tasks.length - index)))
      left -= count
      return feedOf(task, count)
    })
}

/** Puts a text where its arrival says. */
function insert<T extends Task>(list: T[], task: T): void {
  const at = list.findIndex(({ arrival }) => arrival > task.arrival)
  list.splice(at < 0 ? list.length : at, 0, task)
}

function take<T>(list: T[], item: T): boolean {
  const at = list.indexOf(item)
  if (at >= 0) list.splice(at, 1)
  return at >= 0
}
