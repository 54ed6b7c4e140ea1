/** Chat templates: messages to the text that the model was tuned on, and which part of it the model itself wrote. */
import { Template } from '@huggingface/jinja'
import { HeddleError } from '../errors.js'

/** One turn of a conversation. */
export interface ChatMessage {
  /** `system`, `user`, `assistant`, or whatever else the model's template knows. */
  readonly role: string
  readonly content: string
  /** 0: this turn of the assistant is context, and not learned. */
  readonly weight?: 0 | 1
  /** What the assistant calls, for templates that know tools. */
  readonly tool_calls?: readonly unknown[]
  /** The call that a message of the role `tool` answers. */
  readonly tool_call_id?: string
  readonly name?: string
}

/** Characters `[start, end)` of a rendered conversation. */
export interface TextSpan {
  readonly start: number
  readonly end: number
}

/** How a conversation becomes a text. */
export interface RenderOptions {
  /** Ends with the opening of an assistant turn, for the model to go on; default false. */
  readonly addGenerationPrompt?: boolean
  /** What the assistant may call, as JSON schemas of functions in OpenAI's form; templates that know no tools ignore it. */
  readonly tools?: readonly unknown[] | undefined
}

export interface RenderedChat {
  readonly text: string
  /** What the assistant wrote, each with its end-of-turn token. */
  readonly assistant: readonly TextSpan[]
}

export interface ChatTemplateOptions {
  /** Where the template comes from, for messages. */
  readonly place: string
  /** Special tokens by the names that templates use: `bos_token`, `eos_token`, … */
  readonly variables: Readonly<Record<string, string>>
  /** Every special token of the tokenizer; one of them ends a turn. */
  readonly specialTokens: readonly string[]
}

/** A Jinja chat template of a checkpoint. */
export class ChatTemplate {
  readonly source: string
  readonly #template: Template
  readonly #options: ChatTemplateOptions

  /** @throws ERR_HEDDLE_FORMAT when `source` is not a template that can be read */
  constructor(source: string, options: ChatTemplateOptions) {
    this.source = source
    this.#options = options
    try {
      this.#template = new Template(source)
    } catch (cause) {
      throw this.#error('ERR_HEDDLE_FORMAT', 'a Jinja template', cause)
    }
  }

  /**
   * The conversation as one text.
   * @throws ERR_HEDDLE_ARGUMENT when the template refuses the messages
   */
  render(messages: readonly ChatMessage[], { addGenerationPrompt = false, tools }: RenderOptions = {}): string {
    try {
      return this.#template.render({
        ...this.#options.variables,
        messages,
        add_generation_prompt: addGenerationPrompt,
        ...(tools === undefined ? {} : { tools }),
      })
    } catch (cause) {
      throw this.#error('ERR_HEDDLE_ARGUMENT', 'messages that the template takes', cause)
    }
  }

  /**
   * The conversation with the spans that the assistant wrote: each starts where the rendering of the turns before it
   * with a generation prompt ends, which is what the model sees when it is asked to go on.
   * @throws ERR_HEDDLE_ARGUMENT when the template rewrites earlier turns, so that no such place exists
   */
  renderWithSpans(messages: readonly ChatMessage[], tools?: readonly unknown[]): RenderedChat {
    const text = this.render(messages, { tools })
    const assistant = messages.flatMap(({ role, weight }, index) => {
      if (role !== 'assistant' || weight === 0) return []
      const before = this.render(messages.slice(0, index), { addGenerationPrompt: true, tools })
      const through = index === messages.length - 1 ? text : this.render(messages.slice(0, index + 1), { tools })
      if (!text.startsWith(through) || !through.startsWith(before))
        throw new HeddleError('ERR_HEDDLE_ARGUMENT', {
          place: this.#options.place,
          expected: `a chat template under which the text before turn ${index + 1} does not depend on that turn`,
          got: 'one that rewrites earlier turns',
          hint: 'Split the conversation so that each row ends with the one assistant turn to learn',
        })
      return [{ start: before.length, end: this.#endOfTurn(before.length, through) }]
    })
    return { text, assistant }
  }

  /** Past the end-of-turn token, but before the white space that only joins it to the next turn. */
  #endOfTurn(start: number, text: string): number {
    const trimmed = text.trimEnd()
    const endsWithToken = this.#options.specialTokens.some((token) => trimmed.endsWith(token))
    return endsWithToken && trimmed.length > start ? trimmed.length : text.length
  }

  #error(code: 'ERR_HEDDLE_FORMAT' | 'ERR_HEDDLE_ARGUMENT', expected: string, cause: unknown): HeddleError {
    const got = cause instanceof Error ? cause.message : String(cause)
    return new HeddleError(code, { place: `chat template of ${this.#options.place}`, expected, got, cause })
  }
}
