/** The parts of a tokenizer as Hugging Face stores them, from a model folder. Runs in the tokenizer's worker. */
import { existsSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { HeddleError } from '../errors.js'
import { formatError } from '../formats/byte_source.js'

export type Json = { readonly [key: string]: unknown }

/** Everything that a tokenizer is made from. */
export interface TokenizerFiles {
  /** The folder or file that it comes from. */
  readonly place: string
  readonly tokenizer: Json
  readonly config: Json
  readonly chatTemplate?: string
  /** Tokens that end a text or a turn; the tokenizer's own first. */
  readonly eosTokenIds: readonly number[]
}

/** @throws ERR_HEDDLE_IO without a tokenizer.json, ERR_HEDDLE_FORMAT when a file is damaged */
export function readTokenizerFolder(folder: string): TokenizerFiles {
  const tokenizer = readJson(join(folder, 'tokenizer.json'))
  if (!tokenizer)
    throw new HeddleError('ERR_HEDDLE_IO', {
      place: folder,
      expected: 'a tokenizer.json',
      got: existsSync(join(folder, 'tokenizer.model')) ? 'only a tokenizer.model' : 'none',
      hint: 'Save the tokenizer in its fast form: AutoTokenizer.from_pretrained(…).save_pretrained(…)',
    })
  const config = readJson(join(folder, 'tokenizer_config.json')) ?? {}
  const chatTemplate = readTemplateFile(folder) ?? templateOf(config.chat_template)
  return {
    place: folder,
    tokenizer,
    config,
    ...(chatTemplate === undefined ? {} : { chatTemplate }),
    eosTokenIds: ['generation_config.json', 'config.json'].flatMap((name) => eosOf(readJson(join(folder, name)))),
  }
}

function readJson(path: string): Json | undefined {
  if (!existsSync(path)) return undefined
  let value: unknown
  try {
    value = JSON.parse(readFileSync(path, 'utf8'))
  } catch (cause) {
    throw formatError(path, 'JSON', cause instanceof Error ? cause.message : String(cause))
  }
  if (typeof value !== 'object' || value === null || Array.isArray(value))
    throw formatError(path, 'a JSON object', Array.isArray(value) ? 'an array' : `${value}`)
  return value as Json
}

function readTemplateFile(folder: string): string | undefined {
  const jinja = join(folder, 'chat_template.jinja')
  if (existsSync(jinja)) return readFileSync(jinja, 'utf8')
  return templateOf(readJson(join(folder, 'chat_template.json'))?.chat_template)
}

/** `chat_template` is one template, or a list of named ones of which "default" is meant. */
function templateOf(value: unknown): string | undefined {
  if (typeof value === 'string') return value
  if (!Array.isArray(value)) return undefined
  const named = value as readonly { readonly name?: unknown; readonly template?: unknown }[]
  const template = (named.find(({ name }) => name === 'default') ?? named[0])?.template
  return typeof template === 'string' ? template : undefined
}

function eosOf(config: Json | undefined): number[] {
  const value = config?.eos_token_id
  return (Array.isArray(value) ? value : [value]).filter((id): id is number => Number.isInteger(id))
}
