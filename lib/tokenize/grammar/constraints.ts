/** The worker's side of constrained generation: grammars compiled once, and where each text stands in its own. */
import { HeddleError } from '../../errors.js'
import { Automaton, type State } from './automaton.js'
import type { Grammar } from './expression.js'
import { anyObjectGrammar, jsonSchemaGrammar } from './json_schema.js'
import { regexExpression } from './regex.js'
import { TokenMasks, TokenTable } from './token_masks.js'

/** The form of a text. */
export type TextForm =
  | { readonly type: 'json_object' }
  | { readonly type: 'json_schema'; readonly schema: boolean | { readonly [keyword: string]: unknown } }
  | { readonly type: 'regex'; readonly pattern: string }

/** What a constraint is made for. */
export interface ConstraintRequest {
  readonly form: TextForm
  readonly maxTokens: number
  /** Size of the model's vocabulary. */
  readonly vocabularySize: number
}

interface TextState {
  readonly masks: TokenMasks
  state: State
}

/** Compiled grammars that are kept. */
const maxGrammars = 16

export class Constraints {
  readonly #table: TokenTable
  readonly #tokens: readonly (Uint8Array | undefined)[]
  readonly #ends: readonly number[]
  readonly #grammars = new Map<string, TokenMasks>()
  readonly #texts = new Map<number, TextState>()
  #nextId = 0

  constructor(tokens: readonly (Uint8Array | undefined)[], ends: readonly number[]) {
    this.#table = new TokenTable(tokens)
    this.#tokens = tokens
    this.#ends = ends
  }

  /** Starts a text. @throws ERR_HEDDLE_ARGUMENT when nothing has the form, or nothing as short as `maxTokens` */
  open({ form, maxTokens, vocabularySize }: ConstraintRequest): number {
    const masks = this.#masks(form, vocabularySize)
    const { start } = masks.automaton
    if (start.leastBytes > maxTokens)
      throw new HeddleError('ERR_HEDDLE_ARGUMENT', {
        place: 'generate.responseFormat',
        expected: Number.isFinite(start.leastBytes)
          ? `maxTokens of at least ${start.leastBytes}, the bytes of the shortest text of this form`
          : 'a form that some finite text has',
        got: Number.isFinite(start.leastBytes) ? `${maxTokens}` : 'one that none has',
      })
    this.#texts.set(this.#nextId, { masks, state: start })
    return this.#nextId++
  }

  /** The tokens that may come next. @throws ERR_HEDDLE_ARGUMENT when the tokenizer cannot spell any */
  mask(id: number, remaining: number): Uint32Array {
    const { masks, state } = this.#texts.get(id)!
    const mask = masks.mask(state, remaining)
    if (mask.some((word) => word !== 0)) return mask
    throw new HeddleError('ERR_HEDDLE_ARGUMENT', {
      place: 'generate.responseFormat',
      expected: 'a form that the tokenizer can spell',
      got: 'a byte that is no token',
    })
  }

  /** Appends a token that the mask allowed; true when nothing can follow it. */
  advance(id: number, token: number): boolean {
    const text = this.#texts.get(id)!
    for (const byte of this.#tokens[token]!) text.state = text.masks.automaton.step(text.state, byte)!
    return text.state.accepts && text.state.stacks.length === 0
  }

  close(id: number): void {
    this.#texts.delete(id)
  }

  #masks(form: TextForm, vocabularySize: number): TokenMasks {
    const key = `${vocabularySize} ${JSON.stringify(form)}`
    const known = this.#grammars.get(key)
    this.#grammars.delete(key)
    const masks = known ?? new TokenMasks(new Automaton(grammarOf(form)), this.#table, this.#ends, vocabularySize)
    this.#grammars.set(key, masks)
    if (this.#grammars.size > maxGrammars) this.#grammars.delete(this.#grammars.keys().next().value!)
    return masks
  }
}

function grammarOf(form: TextForm): Grammar {
  switch (form.type) {
    case 'json_object':
      return anyObjectGrammar
    case 'json_schema':
      return jsonSchemaGrammar(form.schema)
    case 'regex': {
      const root = regexExpression(form.pattern, { whole: true, place: 'generate.responseFormat.pattern' })
      return { root, rules: new Map() }
    }
  }
}
