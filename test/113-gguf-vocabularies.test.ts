// SentencePiece and WordPiece vocabularies of GGUF files, token for token (test/golden/make_gguf_vocabularies.py).
import test from 'ava'
import { Tokenizer } from '../lib/tokenize/tokenizer.js'
import { golden, goldenJson } from './golden.js'
import { temporaryFolder } from './support/temporary_folder.js'

interface TextCase {
  readonly text: string
  readonly ids: readonly number[]
  readonly decoded: string
}

const expected = goldenJson<Readonly<Record<string, readonly TextCase[]>>>('gguf_vocabularies.json')
const open = (name: string): Promise<Tokenizer> =>
  Tokenizer.load({ kind: 'gguf', path: golden(`vocabulary_${name}.gguf`) })

for (const [name, cases] of Object.entries(expected)) {
  const addSpecialTokens = name.startsWith('bert')

  test(`${name}: the ids of the reference`, async (t) => {
    const tokenizer = await open(name)
    for (const { text, ids } of cases)
      t.deepEqual([...(await tokenizer.encode(text, { addSpecialTokens }))], ids, JSON.stringify(text))
    await tokenizer.close()
  })

  test(`${name}: ids become the text of the reference`, async (t) => {
    const tokenizer = await open(name)
    for (const { ids, decoded } of cases) {
      // The library's decoder drops a byte-order mark that is spelled in bytes.
      const should = decoded.replace('\ufeff', '')
      t.is(await tokenizer.decode([...ids], { skipSpecialTokens: true }), should, JSON.stringify(should))
    }
    await tokenizer.close()
  })
}

test('a text begins with the bos token where the file says so, and every file says which tokens are special', async (t) => {
  const tokenizer = await open('llama')
  t.deepEqual([...(await tokenizer.encode('The'))].slice(0, 1), [1])
  t.deepEqual([...tokenizer.eosTokenIds], [2])
  await tokenizer.close()
})

for (const name of ['llama', 'gemma'])
  test(`${name}: a text of any length has the tokens of its words; no space comes in where it is cut`, async (t) => {
    const tokenizer = await open(name)
    const sentence = 'the whale and the sea '
    const text = sentence.repeat(4000).trimEnd()
    const encode = (part: string): Promise<Int32Array> => tokenizer.encode(part, { addSpecialTokens: false })
    const [all, one] = [await encode(text), await encode(`${sentence.trimEnd()} ${sentence.trimEnd()}`)]
    const [first, second] = [one.subarray(0, one.length / 2), one.subarray(one.length / 2)]
    if (name === 'llama') t.deepEqual([...first], [...second])
    t.is(all.length, 4000 * second.length + first.length - second.length)
    t.is(await tokenizer.decode([...all]), text)
    await tokenizer.close()
  })

test('a stream of tokens gives the spaces between its words', async (t) => {
  const tokenizer = await open('llama')
  const text = 'Call me Ishmael, \u6f22 and more'
  const stream = tokenizer.decodeStream()
  let made = ''
  for (const id of await tokenizer.encode(text)) made += await stream.push(id)
  t.is(made + (await stream.flush()), text)
  await tokenizer.close()
})

test('saved as a folder, the vocabulary is the same tokenizer', async (t) => {
  for (const [name, cases] of Object.entries(expected)) {
    const folder = temporaryFolder()
    const tokenizer = await open(name)
    await tokenizer.save(folder)
    const saved = await Tokenizer.load({ kind: 'folder', path: folder })
    for (const { text } of cases.slice(0, 12)) t.deepEqual(await saved.encode(text), await tokenizer.encode(text))
    await Promise.all([saved.close(), tokenizer.close()])
  }
})
