/** Questions that come at the same time, sent to the worker as one: a message costs more than a short answer. */
import { fromPlainError, type PlainError } from './protocol.js'

interface Asker<Answer> {
  readonly resolve: (answer: Answer) => void
  readonly reject: (error: unknown) => void
}

export class Gathered<Question, Answer> {
  readonly #send: (questions: readonly Question[]) => Promise<readonly (Answer | PlainError)[]>
  #questions: Question[] = []
  #askers: Asker<Answer>[] = []

  constructor(send: (questions: readonly Question[]) => Promise<readonly (Answer | PlainError)[]>) {
    this.#send = send
  }

  /** @throws what the worker says of this question, or of all of them */
  ask(question: Question): Promise<Answer> {
    if (this.#questions.length === 0) queueMicrotask(() => this.#flush())
    this.#questions.push(question)
    return new Promise((resolve, reject) => this.#askers.push({ resolve, reject }))
  }

  async #flush(): Promise<void> {
    const [questions, askers] = [this.#questions, this.#askers]
    this.#questions = []
    this.#askers = []
    try {
      const answers = await this.#send(questions)
      for (const [index, { resolve, reject }] of askers.entries()) {
        const answer = answers[index]!
        if (isError(answer)) reject(fromPlainError(answer))
        else resolve(answer)
      }
    } catch (error) {
      for (const { reject } of askers) reject(error)
    }
  }
}

const isError = <Answer>(answer: Answer | PlainError): answer is PlainError =>
  typeof answer === 'object' && answer !== null && 'code' in answer
