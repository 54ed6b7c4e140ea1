/** The turns of a chat with two models, each of which knows its own answers only. */
import { events, messageOf } from './api.js'

/** A question and what the models make of it. */
export interface Turn {
  readonly question: string
  readonly answers: readonly Answer[]
}

/** An answer, as far as it has come. Times are milliseconds. */
export interface Answer {
  readonly model: string
  readonly text: string
  readonly state: 'waiting' | 'writing' | 'done' | 'stopped' | 'failed'
  readonly problem?: string
  readonly tokens?: number
  readonly finish?: string
  readonly begun: number
  readonly first?: number
  readonly ended?: number
}

/** See {@link answerOf}. */
export interface Question {
  readonly model: string
  /** Which of a turn's answers this one is. */
  readonly side: number
  readonly past: readonly Turn[]
  readonly question: string
  /** Of the request's body. */
  readonly fields: object
  readonly signal: AbortSignal
}

interface Chunk {
  readonly choices: readonly {
    readonly delta: { readonly content?: string | null }
    readonly finish_reason: string | null
  }[]
  readonly usage?: { readonly completion_tokens: number } | null
}

type Mutable<T> = { -readonly [K in keyof T]: T[K] }

export const isOpen = ({ state }: Answer): boolean => state === 'waiting' || state === 'writing'

/** Asks. @returns the answer, which grows; `changed` tells when */
export function answerOf(asked: Question, changed: () => void): Answer {
  const answer: Mutable<Answer> = { model: asked.model, text: '', state: 'waiting', begun: performance.now() }
  void read(asked, answer, changed)
  return answer
}

async function read(asked: Question, answer: Mutable<Answer>, changed: () => void): Promise<void> {
  const { model, fields, signal } = asked
  const body = { model, messages: messagesOf(asked), ...fields, stream: true, stream_options: { include_usage: true } }
  try {
    for await (const chunk of events<Chunk>('v1/chat/completions', { method: 'POST', body, signal })) {
      take(chunk, answer)
      changed()
    }
    answer.state = 'done'
  } catch (error) {
    answer.state = signal.aborted ? 'stopped' : 'failed'
    if (!signal.aborted) answer.problem = messageOf(error)
  }
  answer.ended ??= performance.now()
  changed()
}

function take({ choices: [choice], usage }: Chunk, answer: Mutable<Answer>): void {
  if (usage) answer.tokens = usage.completion_tokens
  if (choice === undefined) return
  answer.state = 'writing'
  const { content } = choice.delta
  if (content) {
    answer.first ??= performance.now()
    answer.text += content
  }
  if (choice.finish_reason === null) return
  answer.finish = choice.finish_reason
  answer.ended = performance.now()
}

/** What failed is left out: templates want questions and answers in turn. */
function messagesOf({ past, side, question }: Question) {
  const known = past
    .map(({ question: content, answers }) => ({ content, answer: answers[side]! }))
    .filter(({ answer }) => answer.text !== '')
    .flatMap(({ content, answer }) => [
      { role: 'user', content },
      { role: 'assistant', content: answer.text },
    ])
  return [...known, { role: 'user', content: question }]
}
