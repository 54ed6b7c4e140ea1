/**
 * Functions that a model may call: the fields of a request, how families of models write a call, and the form that a call
 * must have. The model's chat template tells it of them, and knows earlier calls.
 */
import { z } from 'zod'
import { HeddleError } from '../../errors.js'
import type { JsonSchema } from '../../generate/options.js'
import { StopFilter } from '../../generate/stop_filter.js'
import type { Tokenizer } from '../../tokenize/tokenizer.js'
import { invalidRequest } from './error.js'
import { list, maybe, oneOf, unsupported } from './request.js'

const functionName = z
  .string()
  .regex(/^[a-zA-Z0-9_-]+$/)
  .max(64)

const tool = z.strictObject({
  type: z.literal('function'),
  function: z.strictObject({
    name: functionName,
    description: maybe(z.string()),
    parameters: maybe(z.record(z.string(), z.unknown())),
    strict: maybe(z.boolean()),
  }),
})

/** The fields. */
export const toolShape = {
  tools: maybe(list(tool, 128)),
  tool_choice: maybe(
    oneOf("a string or an object with type 'function'", [
      z.enum(['none', 'auto', 'required']),
      z.strictObject({ type: z.literal('function'), function: z.strictObject({ name: functionName }) }),
    ] as const),
  ),
  parallel_tool_calls: maybe(z.boolean()),
  functions: unsupported,
  function_call: unsupported,
}

const fields = z.object(toolShape)
/** The fields, read. */
export type ToolFields = z.output<typeof fields>
/** A function that may be called. */
export type Tool = z.output<typeof tool>

/** What a request wants of tools. */
export interface ToolUse {
  readonly tools: readonly Tool[]
  readonly format: CallFormat
  /** The form of a call. */
  readonly schema: JsonSchema
  /** The answer is a call. */
  readonly isForced: boolean
  /** One answer may have several calls. */
  readonly areSeveral: boolean
}

/** How a family of models writes calls: JSON with the name and the arguments, between two texts. */
export interface CallFormat {
  /** Its sign in the source of a chat template. */
  readonly sign: RegExp
  readonly opening: string
  readonly closing: string
  /** The name of the arguments. */
  readonly key: 'arguments' | 'parameters'
  /** Several calls can follow each other. */
  readonly repeats: boolean
  /** Recognises the beginning of a call in text that the model writes. */
  readonly filter: () => TextFilter
}

/** Passes text on until it stops at what it looks for; holds back what may be its beginning. */
export type TextFilter = Pick<StopFilter, 'push' | 'flush' | 'stopped'>

/** The first that fits is taken. */
const formats: readonly CallFormat[] = [
  // Qwen, Hermes, SmolLM2 and many others.
  {
    sign: /<tool_call>/,
    opening: '<tool_call>\n',
    closing: '\n</tool_call>',
    key: 'arguments',
    repeats: true,
    filter: () => new StopFilter(['<tool_call>']),
  },
  // Mistral. The sign is a special token, which is no text.
  {
    sign: /\[TOOL_CALLS\]/,
    opening: '[TOOL_CALLS][',
    closing: ']',
    key: 'arguments',
    repeats: false,
    filter: () => new CallFilter(),
  },
  // Llama 3, and templates that say nothing else.
  {
    sign: /"?parameters"?\s*:/,
    opening: '',
    closing: '',
    key: 'parameters',
    repeats: false,
    filter: () => new CallFilter(),
  },
  { sign: /tools/, opening: '', closing: '', key: 'arguments', repeats: false, filter: () => new CallFilter() },
]

/** As chat templates want them described. */
export const describedTools = (tools: readonly Tool[]): unknown[] =>
  tools.map((each) => {
    const { name, description, parameters = { type: 'object', properties: {} } } = each.function
    return { type: 'function', function: { name, ...(description === undefined ? {} : { description }), parameters } }
  })

/** What a request's fields ask for; undefined when nothing may be called. @throws OpenAiError 400 */
export async function toolUse(
  { tools, tool_choice: choice, parallel_tool_calls: areSeveral = true }: ToolFields,
  checker: Checker,
): Promise<ToolUse | undefined> {
  if (tools === undefined) {
    if (choice === undefined || choice === 'none') return undefined
    throw invalidRequest(
      "Invalid value for 'tool_choice': it is only allowed when 'tools' are specified.",
      'tool_choice',
    )
  }
  const names = tools.map((each) => each.function.name)
  const twice = names.find((name, index) => names.indexOf(name) !== index)
  if (twice !== undefined) throw invalidRequest(`Invalid 'tools': the name '${twice}' is given twice.`, 'tools')
  if (choice === 'none') return undefined
  const named = typeof choice === 'object' ? choice.function.name : undefined
  const callable = named === undefined ? tools : tools.filter((each) => each.function.name === named)
  if (callable.length === 0)
    throw invalidRequest(`Invalid value for 'tool_choice': no tool has the name '${named}'.`, 'tool_choice')
  const format = formats.find(({ sign }) => sign.test(checker.tokenizer.info.chatTemplate ?? ''))
  if (format === undefined)
    throw invalidRequest(
      "Unsupported parameter: 'tools' is not supported with this model, whose chat template knows no tools.",
      'tools',
      'unsupported_parameter',
    )
  const schema = await callSchema(callable, format, checker)
  return { tools, format, schema, isForced: choice !== undefined && choice !== 'auto', areSeveral }
}

/** Who knows which schemas there can be text for. */
interface Checker {
  readonly tokenizer: Tokenizer
  readonly vocabularySize: number
}

/**
 * The form of a call of one of the functions. Of a function that is not strict, parameters whose schema this server cannot
 * hold the model to may be any object.
 */
async function callSchema(tools: readonly Tool[], { key }: CallFormat, checker: Checker): Promise<JsonSchema> {
  const parameters = tools.map(parametersOf)
  const all = oneCallOf(tools, parameters, key)
  if ((await refusalOf(all, checker)) === undefined) return all
  const possible = tools.map(async ({ function: { strict = false } }, index) => {
    const error = await refusalOf(parameters[index]!, checker)
    if (error === undefined) return parameters[index]!
    if (!strict) return { type: 'object' }
    const place = `tools[${index}].function.parameters`
    throw invalidRequest(`Invalid '${place}': ${error.message}.`, place, 'invalid_function_parameters')
  })
  return oneCallOf(tools, await Promise.all(possible), key)
}

/** Parameters are an object, whether their schema says so or not. */
const parametersOf = ({ function: { parameters } }: Tool): JsonSchema =>
  parameters === undefined
    ? { type: 'object', properties: {}, additionalProperties: false }
    : { type: 'object', ...parameters }

const oneCallOf = (tools: readonly Tool[], parameters: readonly JsonSchema[], key: string): JsonSchema => ({
  $defs: Object.fromEntries(parameters.map((schema, index) => [`${index}`, rebased(schema, `#/$defs/${index}`)])),
  anyOf: tools.map((each, index) => ({
    type: 'object',
    properties: { name: { const: each.function.name }, [key]: { $ref: `#/$defs/${index}` } },
    required: ['name', key],
    additionalProperties: false,
  })),
})

/** Why text cannot be held to a schema. */
async function refusalOf(schema: JsonSchema, { tokenizer, vocabularySize }: Checker): Promise<HeddleError | undefined> {
  const form = { type: 'json_schema', schema } as const
  try {
    const constraint = await tokenizer.constrain({ form, maxTokens: Number.MAX_SAFE_INTEGER, vocabularySize })
    await constraint.close()
    return undefined
  } catch (error) {
    if (error instanceof HeddleError && error.code === 'ERR_HEDDLE_ARGUMENT') return error
    throw error
  }
}

/** The same schema at another place of a document: its references to itself begin there. */
function rebased(schema: unknown, place: string): unknown {
  if (Array.isArray(schema)) return schema.map((each) => rebased(each, place))
  if (typeof schema !== 'object' || schema === null) return schema
  return Object.fromEntries(
    Object.entries(schema).map(([key, value]) => [
      key,
      key === '$ref' && typeof value === 'string' && value.startsWith('#')
        ? place + value.slice(1)
        : rebased(value, place),
    ]),
  )
}

/** Finds a call at the beginning of a text that is not marked as one: an object whose first member is a name. */
export class CallFilter implements TextFilter {
  #held = ''
  #isOpen = true
  stopped = false

  push(text: string): string {
    if (this.stopped) return ''
    if (!this.#isOpen) return text
    this.#held += text
    const begun = this.#held.replaceAll(/\s/g, '').replace(/^\[/, '')
    this.stopped = begun.startsWith(callBeginning)
    if (this.stopped || callBeginning.startsWith(begun)) return ''
    return this.flush()
  }

  flush(): string {
    this.#isOpen = false
    const text = this.#held
    this.#held = ''
    return text
  }
}

const callBeginning = '{"name":'
