import { existsSync, readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import test from 'ava'
import { HeddleError } from '../lib/errors.js'
import { type ChatMessage, Tokenizer } from '../lib/tokenize/tokenizer.js'
import { fetchModel } from './models/fetch.js'
import { temporaryFolder } from './support/temporary_folder.js'
import { tinyModelFolder } from './tiny_model.js'

interface TextCase {
  readonly text: string
  readonly ids: readonly number[]
  readonly decoded: string
}

interface ChatCase {
  readonly messages: readonly ChatMessage[]
  readonly text: string
  readonly prompt: string
  readonly ids: readonly number[]
  readonly loss: readonly number[]
}

interface Golden {
  readonly smollm2: { readonly cases: readonly TextCase[]; readonly chats: readonly ChatCase[] }
  readonly small: readonly { readonly pre: string; readonly cases: readonly TextCase[] }[]
}

const goldenPath = (name: string) => fileURLToPath(new URL(`../../test/golden/${name}`, import.meta.url))
const golden = JSON.parse(readFileSync(goldenPath('tokenizer.json'), 'utf8')) as Golden

let smollm2: Tokenizer

test.before('load SmolLM2', async () => {
  smollm2 = await Tokenizer.load({ kind: 'gguf', path: await fetchModel('smollm2') })
})

test.after.always('close', () => smollm2?.close())

test('SmolLM2 from GGUF gives the token ids of the reference tokenizer', async (t) => {
  for (const { text, ids } of golden.smollm2.cases)
    t.deepEqual([...(await smollm2.encode(text, { addSpecialTokens: false }))], ids, JSON.stringify(text))
})

test('SmolLM2 decodes to the text of the reference tokenizer', async (t) => {
  for (const { ids, decoded } of golden.smollm2.cases)
    t.is(await smollm2.decode(ids, { skipSpecialTokens: true }), decoded)
})

for (const { pre, cases } of golden.small)
  test(`a GGUF vocabulary of kind ${pre} gives the token ids of the reference tokenizer`, async (t) => {
    const tokenizer = await Tokenizer.load({ kind: 'gguf', path: goldenPath(`tokenizer_${pre}.gguf`) })
    for (const { text, ids } of cases)
      t.deepEqual([...(await tokenizer.encode(text, { addSpecialTokens: false }))], ids, JSON.stringify(text))
    await tokenizer.close()
  })

test('a llama-bpe vocabulary starts a text with the bos token', async (t) => {
  const tokenizer = await Tokenizer.load({ kind: 'gguf', path: goldenPath('tokenizer_llama-bpe.gguf') })
  t.is((await tokenizer.encode('Hi'))[0], tokenizer.bosTokenId)
  await tokenizer.close()
})

test('chat templates render as in transformers', async (t) => {
  for (const { messages, text, prompt } of golden.smollm2.chats) {
    t.is(await smollm2.applyChatTemplate(messages), text)
    t.is(await smollm2.applyChatTemplate(messages, { addGenerationPrompt: true }), prompt)
  }
})

test('the loss mask of a chat covers what the assistant wrote and its end-of-turn token', async (t) => {
  for (const { messages, ids, loss } of golden.smollm2.chats) {
    const encoded = await smollm2.encodeChat(messages)
    t.deepEqual([...encoded.ids], ids)
    t.deepEqual([...encoded.loss], loss)
  }
})

test('a token stream gives the whole text in pieces of whole characters', async (t) => {
  const text = 'Grüße 👩‍👩‍👧 漢字, naïve e\u0301 ok'
  const stream = smollm2.decodeStream()
  const pieces: string[] = []
  for (const id of await smollm2.encode(text)) pieces.push(await stream.push(id))
  pieces.push(await stream.flush())
  t.is(pieces.join(''), text)
  t.false(pieces.some((piece) => piece.includes('\ufffd')))
})

test('a token stream lets bytes that are no character go at its end', async (t) => {
  const [first] = await smollm2.encode('漢')
  const stream = smollm2.decodeStream()
  t.is(await stream.push(first!), '')
  t.is(await stream.flush(), '\ufffd')
})

test('a saved tokenizer is loaded as the same tokenizer', async (t) => {
  const folder = join(temporaryFolder(), 'saved')
  await smollm2.save(folder)
  t.true(existsSync(join(folder, 'tokenizer.json')))
  const again = await Tokenizer.load({ kind: 'folder', path: folder })
  t.deepEqual(again.info, smollm2.info)
  for (const { text, ids } of golden.smollm2.cases.slice(0, 12))
    t.deepEqual([...(await again.encode(text, { addSpecialTokens: false }))], ids)
  const { messages, text } = golden.smollm2.chats[2]!
  t.is(await again.applyChatTemplate(messages), text)
  await again.close()
})

test('a long text gives the tokens of the whole', async (t) => {
  const words = Array.from({ length: 30_000 }, (_, i) => ['the', 'loom', 'weaves', '12', 'two,', 'threads.'][i % 6])
  const text = words.join(' ')
  const ids = await smollm2.encode(text)
  t.is(await smollm2.decode(ids), text)
  const period = (await smollm2.encode(` ${words.slice(0, 6).join(' ')}`)).length
  t.is(ids.length, 5000 * period)
})

test('a folder without tokenizer.json is ERR_HEDDLE_IO', async (t) => {
  const path = temporaryFolder()
  const error = await t.throwsAsync(Tokenizer.load({ kind: 'folder', path }), { instanceOf: HeddleError })
  t.is((error as HeddleError).code, 'ERR_HEDDLE_IO')
  t.is((error as HeddleError).place, path)
})

test('a damaged tokenizer.json is ERR_HEDDLE_FORMAT', async (t) => {
  const path = temporaryFolder()
  for (const content of ['{"model": ', '[]', '{"model": {"type": "Nonsense"}}']) {
    writeFileSync(join(path, 'tokenizer.json'), content)
    const error = await t.throwsAsync(Tokenizer.load({ kind: 'folder', path }), { instanceOf: HeddleError })
    t.is((error as HeddleError).code, 'ERR_HEDDLE_FORMAT', content)
  }
})

test('a closed tokenizer is ERR_HEDDLE_ARGUMENT', async (t) => {
  const tokenizer = await Tokenizer.load({ kind: 'gguf', path: goldenPath('tokenizer_gpt-2.gguf') })
  await tokenizer.close()
  const error = await t.throwsAsync(tokenizer.encode('late'), { instanceOf: HeddleError })
  t.is((error as HeddleError).code, 'ERR_HEDDLE_ARGUMENT')
})

test('messages without a chat template are ERR_HEDDLE_ARGUMENT', async (t) => {
  const tokenizer = await Tokenizer.load({ kind: 'gguf', path: goldenPath('tokenizer_gpt-2.gguf') })
  t.false(tokenizer.hasChatTemplate)
  const error = await t.throwsAsync(tokenizer.applyChatTemplate([{ role: 'user', content: 'Hi' }]), {
    instanceOf: HeddleError,
  })
  t.is((error as HeddleError).code, 'ERR_HEDDLE_ARGUMENT')
  await tokenizer.close()
})

test('tools reach the chat template', async (t) => {
  const folder = await tinyModelFolder()
  const chat_template =
    '{% for tool in tools or [] %}[{{ tool.function.name }}]{% endfor %}{{ messages[0].content }}{% if add_generation_prompt %}>{% endif %}'
  writeFileSync(join(folder, 'tokenizer_config.json'), JSON.stringify({ eos_token: '<eos>', chat_template }))
  const tokenizer = await Tokenizer.load({ kind: 'folder', path: folder })
  const tools = [{ type: 'function', function: { name: 'weave' } }]
  const messages = [{ role: 'user', content: 'Hi' }]
  t.is(await tokenizer.applyChatTemplate(messages, { addGenerationPrompt: true, tools }), '[weave]Hi>')
  t.is(await tokenizer.applyChatTemplate(messages), 'Hi')
  await tokenizer.close()
})

test('the bytes of tokens are those of the text, also where a token is no whole character', async (t) => {
  const text = 'Köln 🧵 \n'
  const ids = await smollm2.encode(text, { addSpecialTokens: false })
  const bytes = await smollm2.tokenBytes(ids)
  t.is(Buffer.concat(bytes.map((each) => each!)).toString(), text)
  t.true(bytes.some((each) => each!.at(-1)! >= 0x80))
  t.deepEqual(await smollm2.tokenBytes([smollm2.bosTokenId!]), [undefined])
})
