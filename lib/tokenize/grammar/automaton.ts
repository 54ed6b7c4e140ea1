/**
 * Recognises a grammar byte by byte. A state is the set of stacks of what may still come; stacks and states are made
 * once and compared by identity, and transitions are kept, so that walking known text costs a look-up per byte.
 */
import type { Expression, Grammar } from './expression.js'

/** What an expression has become: numbered, and with the least number of bytes that it takes. */
interface Node {
  readonly id: number
  readonly expression: Expression
  readonly leastBytes: number
}

/** A stack: a node to be read, and what comes after it. */
interface Stack {
  readonly id: number
  readonly node: Node
  readonly rest: Stack | undefined
  readonly leastBytes: number
}

/** Where a text stands in the grammar. */
export interface State {
  /** The text may end here. */
  readonly accepts: boolean
  /** Fewest bytes to an end. */
  readonly leastBytes: number
  /** Stacks that start with a byte. */
  readonly stacks: readonly Stack[]
  /** By byte; null where the grammar does not allow it. */
  readonly next: (State | null | undefined)[]
}

/** States kept; far more than texts of one grammar usually pass. */
const maxStates = 20_000

export class Automaton {
  readonly start: State
  readonly #grammar: Grammar
  readonly #least: (expression: Expression) => number
  readonly #nodes = new Map<Expression, Node>()
  readonly #repeats = new Map<string, Expression>()
  readonly #stacks = new Map<string, Stack>()
  #states = new Map<string, State>()

  constructor(grammar: Grammar) {
    this.#grammar = grammar
    this.#least = leastBytes(leastBytesOfRules(grammar))
    this.start = this.#stateOf([this.#push(grammar.root, undefined)])
  }

  /** The state after one more byte; undefined where the grammar does not allow it. */
  step(state: State, byte: number): State | undefined {
    const known = state.next[byte]
    if (known !== undefined) return known ?? undefined
    const rests = state.stacks.filter(({ node }) => contains(node.expression, byte)).map(({ rest }) => rest)
    const found = rests.length === 0 ? null : this.#stateOf(rests)
    state.next[byte] = found
    return found ?? undefined
  }

  #stateOf(stacks: readonly (Stack | undefined)[]): State {
    const { heads, accepts } = this.#expanded(stacks)
    const key = `${accepts ? '+' : '-'}${heads.map(({ id }) => id).join(',')}`
    const known = this.#states.get(key)
    if (known) return known
    if (this.#states.size >= maxStates) this.#states = new Map()
    const leastBytes = accepts ? 0 : Math.min(...heads.map((head) => head.leastBytes))
    const state: State = { accepts, leastBytes, stacks: heads, next: new Array(256) }
    this.#states.set(key, state)
    return state
  }

  /** The stacks of bytes that the given ones come down to, and whether one of them is empty. */
  #expanded(stacks: readonly (Stack | undefined)[]): { readonly heads: Stack[]; readonly accepts: boolean } {
    const seen = new Set<Stack>()
    const heads: Stack[] = []
    let accepts = false
    const todo = [...stacks]
    while (todo.length > 0) {
      const stack = todo.pop()
      if (!stack) accepts = true
      if (!stack || seen.has(stack) || stack.leastBytes === Number.POSITIVE_INFINITY) continue
      seen.add(stack)
      if (stack.node.expression.kind === 'byte') heads.push(stack)
      else todo.push(...this.#opened(stack.node.expression, stack.rest))
    }
    heads.sort((a, b) => a.id - b.id)
    return { heads, accepts }
  }

  #opened(expression: Expression, rest: Stack | undefined): (Stack | undefined)[] {
    switch (expression.kind) {
      case 'byte':
        return []
      case 'sequence':
        return [expression.parts.reduceRight<Stack | undefined>((after, part) => this.#push(part, after), rest)]
      case 'choice':
        return expression.options.map((option) => this.#push(option, rest))
      case 'repeat': {
        const { part, least, most } = expression
        const again = most === 0 ? [] : [this.#push(part, this.#push(this.#repeat(part, least - 1, most - 1), rest))]
        return least > 0 ? again : [rest, ...again]
      }
      case 'rule':
        return [this.#push(this.#grammar.rules.get(expression.name)!, rest)]
    }
  }

  #repeat(part: Expression, least: number, most: number): Expression {
    const key = `${this.#node(part).id} ${Math.max(0, least)} ${most}`
    const known = this.#repeats.get(key)
    if (known) return known
    const made: Expression = { kind: 'repeat', part, least: Math.max(0, least), most }
    this.#repeats.set(key, made)
    return made
  }

  #push(expression: Expression, rest: Stack | undefined): Stack {
    const node = this.#node(expression)
    const key = `${node.id} ${rest?.id ?? -1}`
    const known = this.#stacks.get(key)
    if (known) return known
    const leastBytes = node.leastBytes + (rest?.leastBytes ?? 0)
    const made: Stack = { id: this.#stacks.size, node, rest, leastBytes }
    this.#stacks.set(key, made)
    return made
  }

  #node(expression: Expression): Node {
    const known = this.#nodes.get(expression)
    if (known) return known
    const made = { id: this.#nodes.size, expression, leastBytes: this.#least(expression) }
    this.#nodes.set(expression, made)
    return made
  }
}

const contains = (expression: Expression, byte: number): boolean =>
  expression.kind === 'byte' && expression.ranges.some(([first, last]) => byte >= first && byte <= last)

/** Fewest bytes of each rule, infinite where it has no end; by repeated improvement, as rules may be recursive. */
function leastBytesOfRules({ rules }: Grammar): ReadonlyMap<string, number> {
  const least = new Map([...rules.keys()].map((name) => [name, Number.POSITIVE_INFINITY]))
  for (let changed = true; changed; ) {
    changed = false
    for (const [name, expression] of rules) {
      const found = leastBytes(least)(expression)
      if (found >= least.get(name)!) continue
      least.set(name, found)
      changed = true
    }
  }
  return least
}

/** Looks at each expression once, however often it is a part of others or asked for. */
function leastBytes(ofRule: ReadonlyMap<string, number>): (expression: Expression) => number {
  const known = new Map<Expression, number>()
  const least = (expression: Expression): number => {
    let found = known.get(expression)
    if (found === undefined) {
      found = computed(expression)
      known.set(expression, found)
    }
    return found
  }
  const computed = (expression: Expression): number => {
    switch (expression.kind) {
      case 'byte':
        return 1
      case 'sequence':
        return expression.parts.reduce((sum, part) => sum + least(part), 0)
      case 'choice':
        return expression.options.reduce((fewest, option) => Math.min(fewest, least(option)), Number.POSITIVE_INFINITY)
      case 'repeat':
        return expression.least === 0 ? 0 : expression.least * least(expression.part)
      case 'rule':
        return ofRule.get(expression.name)!
    }
  }
  return least
}
