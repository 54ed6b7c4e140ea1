/** Plain text: a file is one text, which comes in pieces when it is long. */
import { stat } from 'node:fs/promises'
import { type DataFile, fileBytes, type ReaderOptions, type ReadResult } from './reader.js'

/** Characters of a piece, at least. */
const pieceLength = 1 << 17

/**
 * Pieces end before a space between two letters, where every pre-tokenizer starts a new word, so that they give the
 * tokens of the whole.
 */
export async function* readText(file: DataFile, { onShare }: ReaderOptions): AsyncGenerator<ReadResult> {
  const { size } = await stat(file.path)
  const decoder = new TextDecoder()
  let text = ''
  let line = 1
  for await (const chunk of fileBytes(file, size, onShare)) {
    text += decoder.decode(chunk, { stream: true })
    for (let end = borderAfter(text, pieceLength); end !== undefined; end = borderAfter(text, pieceLength)) {
      yield { row: { line, value: { text: text.slice(0, end) }, goesOn: true }, bytes: end }
      line += text.slice(0, end).split('\n').length - 1
      text = text.slice(end)
    }
  }
  text += decoder.decode()
  if (text !== '') yield { row: { line, value: { text } }, bytes: text.length }
}

/** The first good place to cut after `start`; a text without one is cut anyway, but not within a character. */
function borderAfter(text: string, start: number): number | undefined {
  if (text.length < 2 * start) return undefined
  const border = /\p{L} (?=\p{L})/gu
  border.lastIndex = start
  const found = border.exec(text)
  if (found) return border.lastIndex - 1
  const isInside = (text.codePointAt(start - 1) ?? 0) > 0xffff
  return isInside ? start + 1 : start
}
