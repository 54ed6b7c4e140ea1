/** The worker thread of one tokenizer: everything about text that takes longer than the event loop may be held. */
import { setImmediate as nextTurn } from 'node:timers/promises'
import { parentPort } from 'node:worker_threads'
import { type EncodedChunk, RowEncoder } from '../data/encode.js'
import { readGgufTokenizer } from './gguf_tokenizer.js'
import { ggufVocabulary } from './gguf_vocabulary.js'
import { Constraints } from './grammar/constraints.js'
import {
  type Cancel,
  type DecodeRequest,
  type EncodeRows,
  type PlainError,
  type Reply,
  type Request,
  type TokenizerSource,
  toPlainError,
} from './protocol.js'
import { TextEncoding } from './text_encoder.js'
import { readTokenizerFolder } from './tokenizer_files.js'

const port = parentPort!
const cancelled = new Set<number>()
let encoding: TextEncoding | undefined
let origin: TokenizerSource | undefined
let constraints: Constraints | undefined

port.on('message', (message: Request | Cancel) => {
  if ('cancel' in message) cancelled.add(message.cancel)
  else void serve(message)
})

async function serve(request: Request): Promise<void> {
  try {
    if (request.name === 'encodeRows') await streamRows(request.id, request.ask)
    else reply({ id: request.id, done: await answer(request) })
  } catch (error) {
    reply({ id: request.id, error: toPlainError(error) })
  }
  cancelled.delete(request.id)
}

async function streamRows(id: number, ask: EncodeRows): Promise<void> {
  for (const chunk of encodedRows(ask)) {
    reply({ id, part: chunk }, [chunk.tokens.buffer, chunk.lengths.buffer])
    // Lets other requests, and a cancellation of this one, come in.
    await nextTurn()
    if (cancelled.has(id)) break
  }
  reply({ id, done: null })
}

const readings = new Map<number, RowEncoder>()

function* encodedRows({ reading, options, block }: EncodeRows): Generator<EncodedChunk> {
  const encoder = readings.get(reading) ?? new RowEncoder(loaded(), options)
  readings.set(reading, encoder)
  if (block) yield* encoder.encode(block)
  else {
    readings.delete(reading)
    yield encoder.finish()
  }
}

async function answer(request: Exclude<Request, { readonly name: 'encodeRows' }>): Promise<unknown> {
  switch (request.name) {
    case 'load':
      encoding = await load(request.ask.source)
      origin = request.ask.source
      return encoding.info
    case 'encode':
      return loaded().encode(request.ask.text, request.ask.addSpecialTokens)
    case 'decode':
      return request.ask.map(decoded)
    case 'tokenBytes':
      return tokenBytes(request.ask.ids)
    case 'render':
      return loaded().applyChatTemplate(request.ask.messages, request.ask.options)
    case 'encodeChat':
      return loaded().encodeChat(request.ask.messages)
    case 'encodeBatch':
      return loaded().encodeBatch(request.ask.texts, request.ask.options)
    case 'fingerprint':
      return loaded().fingerprint()
    case 'constrain':
      return opened().open(request.ask)
    case 'constraintMask':
      return opened().mask(request.ask.id, request.ask.remaining)
    case 'constraintAdvance':
      return opened().advance(request.ask.id, request.ask.token)
    case 'constraintClose':
      opened().close(request.ask.id)
      return null
    case 'save':
      loaded().save(request.ask.folder)
      return null
    case 'ggufVocabulary':
      return ggufVocabulary(origin!, loaded().files, request.ask.size)
  }
}

function decoded({ ids, skipSpecialTokens }: DecodeRequest): string | PlainError {
  try {
    return loaded().decode(ids, skipSpecialTokens)
  } catch (error) {
    return toPlainError(error)
  }
}

async function load({ kind, path }: TokenizerSource): Promise<TextEncoding> {
  return new TextEncoding(kind === 'gguf' ? await readGgufTokenizer(path) : readTokenizerFolder(path))
}

function loaded(): TextEncoding {
  if (encoding) return encoding
  throw new Error('the tokenizer has not been loaded')
}

function tokenBytes(ids: readonly number[]): (Uint8Array | undefined)[] {
  const bytes = loaded().tokenBytes()
  return ids.map((id) => bytes[id])
}

/** Made when first needed: sorting a vocabulary takes a while. */
function opened(): Constraints {
  constraints ??= new Constraints(loaded().tokenBytes(), loaded().info.eosTokenIds)
  return constraints
}

function reply(message: Reply, transfer: readonly ArrayBufferLike[] = []): void {
  port.postMessage(message, transfer as ArrayBuffer[])
}
