/** The bytes of every token of a tokenizer.json: what a grammar over bytes needs to know of a vocabulary. */
import type { Json } from './tokenizer_files.js'

const utf8 = new TextEncoder()

/** By token id; undefined for special tokens, which are no text. */
export function tokenBytesOf(tokenizer: Json): (Uint8Array | undefined)[] {
  const { vocab } = tokenizer.model as {
    readonly vocab: Readonly<Record<string, number>> | readonly [string, number][]
  }
  const entries = Array.isArray(vocab)
    ? vocab.map(([text], id) => [text, id] as const)
    : Object.entries(vocab as Readonly<Record<string, number>>)
  const bytesOf = JSON.stringify(tokenizer.decoder ?? null).includes('"ByteLevel"') ? byteLevelBytes : pieceBytes
  const found: (Uint8Array | undefined)[] = []
  for (const [text, id] of entries) found[id] = bytesOf(text)
  for (const { id, content, special } of (tokenizer.added_tokens ?? []) as readonly AddedToken[])
    found[id] = special ? undefined : utf8.encode(content)
  return found
}

interface AddedToken {
  readonly id: number
  readonly content: string
  readonly special: boolean
}

/** Byte-level BPE spells printable bytes as themselves and the others as characters from U+0100 on. */
const byteOfCharacter: ReadonlyMap<string, number> = (() => {
  const isPrintable = (byte: number): boolean =>
    (byte >= 0x21 && byte <= 0x7e) || (byte >= 0xa1 && byte <= 0xac) || byte >= 0xae
  let next = 0x100
  return new Map(
    Array.from({ length: 256 }, (_, byte) => [String.fromCharCode(isPrintable(byte) ? byte : next++), byte]),
  )
})()

function byteLevelBytes(text: string): Uint8Array {
  const bytes = [...text].map((character) => byteOfCharacter.get(character))
  return bytes.includes(undefined) ? utf8.encode(text) : Uint8Array.from(bytes as number[])
}

/** SentencePiece: "\u2581" is a space, "<0x0A>" a byte. */
function pieceBytes(text: string): Uint8Array {
  const [, hex] = /^<0x([0-9A-F]{2})>$/.exec(text) ?? []
  return hex === undefined ? utf8.encode(text.replaceAll('\u2581', ' ')) : Uint8Array.of(Number.parseInt(hex, 16))
}
