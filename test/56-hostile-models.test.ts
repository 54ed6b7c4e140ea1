// Model files that are damaged, contradict themselves or are of another kind: refused with a sentence, never crashed on.

import { copyFile, open, readFile, rm, stat, truncate, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { inspect } from 'node:util'
import test, { type ExecutionContext } from 'ava'
import { HeddleError, type HeddleErrorCode, loadModel } from '../lib/index.js'
import { fetchModel } from './models/fetch.js'
import { randomNumbers } from './random_numbers.js'
import { temporaryFolder } from './support/temporary_folder.js'
import { tinyModelFolder } from './tiny_model.js'

async function refused(
  t: ExecutionContext,
  path: string,
  code: HeddleErrorCode,
  message: RegExp = /expected/,
): Promise<void> {
  const error = await t.throwsAsync(async () => (await loadModel(path)).dispose(), { instanceOf: HeddleError, code })
  t.regex(error.message, message)
  t.true(error.message.includes(path), `no path in: ${error.message}`)
}

/** A tiny model's folder with a change to one of its JSON files. */
async function changed(file: string, change: object): Promise<string> {
  const folder = await tinyModelFolder()
  const path = join(folder, file)
  await writeFile(path, JSON.stringify({ ...JSON.parse(await readFile(path, 'utf8')), ...change }))
  return folder
}

for (const [change, message] of [
  [{ model_type: 'mamba' }, /architecture: expected a model_type of llama, .*, gpt_neox, got "mamba"/],
  [{ model_type: 5 }, /architecture.* got 5/],
  [{ model_type: undefined, architectures: ['MambaForCausalLM'] }, /architecture.* got \["MambaForCausalLM"\]/],
  [{ model_type: undefined, architectures: undefined }, /architecture.* got a config\.json without model_type/],
  [{ architectures: ['LlamaForSequenceClassification'] }, /expected LlamaForCausalLM, got .*Classification/],
  [{ vocab_size: 300 }, /model\.embed_tokens\.weight: expected shape \[300, 64\].* got \[257, 64\]/],
  [{ vocab_size: 0 }, /vocab_size/],
  [{ hidden_size: 32 }, /expected shape/],
  [{ hidden_size: '64' }, /hidden_size/],
  [{ hidden_size: null }, /hidden_size/],
  [{ hidden_size: 1e300 }, /hidden_size/],
  [{ hidden_size: undefined }, /hidden_size/],
  [{ intermediate_size: -96 }, /intermediate_size/],
  [{ num_hidden_layers: 3 }, /expected a tensor "model\.layers\.2\..*, got none/],
  [{ num_hidden_layers: 1 }, /expected no tensors but .* got "model\.layers\.1\./],
  [{ num_hidden_layers: 4000 }, /expected a tensor "model\.layers\.2\./],
  [{ num_hidden_layers: 1e9 }, /num_hidden_layers/],
  [{ num_attention_heads: 8 }, /q_proj\.weight: expected shape \[128, 64\].* got \[64, 64\]/],
  [{ num_attention_heads: 5, head_dim: null }, /head_dim: expected an even integer/],
  [{ num_key_value_heads: 3 }, /num_key_value_heads: expected a divisor/],
  [{ head_dim: 15 }, /head_dim: expected an even integer.* got 15/],
  [{ rms_norm_eps: 0 }, /rms_norm_eps/],
  [{ rope_parameters: { rope_type: 'yarn', rope_theta: 1e4 } }, /rope_scaling.*yarn/],
  [{ rope_parameters: { rope_type: 'llama3', factor: 8 } }, /rope_scaling/],
  [{ rope_parameters: { rope_theta: -1 } }, /rope_parameters\.rope_theta/],
  [{ max_position_embeddings: 0 }, /max_position_embeddings/],
  [{ tie_word_embeddings: false }, /expected a tensor "lm_head\.weight"/],
  [{ hidden_act: 'gelu_10' }, /hidden_act/],
  [{ attention_bias: true }, /expected a tensor ".*q_proj\.bias"/],
  [{ num_local_experts: 8 }, /num_local_experts: expected a field .* got 8/],
] as const)
  test(`a config.json with ${inspect(change)} is refused`, async (t) => {
    await refused(t, await changed('config.json', change), 'ERR_HEDDLE_FORMAT', message)
  })

for (const [name, content] of [
  ['nothing', ''],
  ['half an object', '{"model_type": "lla'],
  ['an array', '[]'],
  ['another encoding', '\ufffe\u0000'],
] as const)
  test(`a config.json of ${name} is refused`, async (t) => {
    const folder = await tinyModelFolder()
    await writeFile(join(folder, 'config.json'), content)
    await refused(t, folder, 'ERR_HEDDLE_FORMAT', /config\.json/)
  })

/** A tiny model's folder with a change to its safetensors header; lengths of the header and the data stay. */
async function renamed(from: string, to: string): Promise<string> {
  const folder = await tinyModelFolder()
  const path = join(folder, 'model.safetensors')
  const bytes = await readFile(path)
  const at = bytes.indexOf(from)
  if (at < 0 || from.length !== to.length) throw new Error(`cannot write ${to} over ${from}`)
  bytes.write(to, at, 'latin1')
  await writeFile(path, bytes)
  return folder
}

for (const [what, from, to, code, message] of [
  [
    'a tensor missing',
    '"model.norm.weight"',
    '"model.norm.wEight"',
    'ERR_HEDDLE_FORMAT',
    /"model\.norm\.weight".*none/,
  ],
  ['another shape', '[96,64]', '[64,96]', 'ERR_HEDDLE_FORMAT', /mlp.*expected shape \[96, 64\]/],
  ['integers for weights', '"F32"', '"I32"', 'ERR_HEDDLE_DTYPE', /i32/i],
  ['an unknown dtype', '"F32"', '"F99"', 'ERR_HEDDLE_FORMAT', /F99/],
  ['broken JSON', '"F32"', '"F32]', 'ERR_HEDDLE_FORMAT', /./],
] as const)
  test(`safetensors with ${what} are refused`, async (t) => {
    await refused(t, await renamed(from, to), code, message)
  })

test('truncated and lengthened safetensors are refused', async (t) => {
  const folder = await tinyModelFolder()
  const path = join(folder, 'model.safetensors')
  const { size } = await stat(path)
  for (const length of [size + 4, size - 1, Math.floor(size / 2), 2000, 100, 8, 7, 1, 0]) {
    await truncate(path, length)
    await refused(t, folder, 'ERR_HEDDLE_FORMAT', /model\.safetensors/)
  }
})

for (const file of ['config.json', 'model.safetensors', 'tokenizer.json'])
  test(`a folder without ${file} is refused`, async (t) => {
    const folder = await tinyModelFolder()
    await rm(join(folder, file))
    await refused(t, folder, 'ERR_HEDDLE_IO', new RegExp(file.replace('.', '\\.')))
  })

for (const [name, content] of [
  ['half of it', '{"version": "1.0", "model": {"ty'],
  ['another kind of model', '{"version": "1.0", "model": {"type": "Nonsense", "vocab": {}}}'],
  ['null', 'null'],
] as const)
  test(`a tokenizer.json with ${name} is refused`, async (t) => {
    const folder = await tinyModelFolder()
    await writeFile(join(folder, 'tokenizer.json'), content)
    await refused(t, folder, 'ERR_HEDDLE_FORMAT')
  })

test('a path that is no model is refused with what would be one', async (t) => {
  const folder = temporaryFolder()
  const path = join(folder, 'notes.md')
  await writeFile(path, 'hello')
  await refused(t, path, 'ERR_HEDDLE_ARGUMENT', /a model folder, a \.gguf file, or a hub id/)
  await refused(t, join(folder, 'nowhere.gguf'), 'ERR_HEDDLE_ARGUMENT', /does not exist/)
  await refused(t, folder, 'ERR_HEDDLE_IO', /config\.json/)
  await writeFile(join(folder, 'text.gguf'), 'hello')
  await refused(t, join(folder, 'text.gguf'), 'ERR_HEDDLE_FORMAT', /GGUF/)
})

test('a precision that does not exist is refused', async (t) => {
  const folder = await tinyModelFolder()
  const options = { precision: 'fp16' as 'f32' }
  await t.throwsAsync(loadModel(folder, options), {
    code: 'ERR_HEDDLE_ARGUMENT',
    message: /loadModel\.precision.*fp16/,
  })
})

test('token ids beyond the embedding fail as an error, and the model stays usable', async (t) => {
  const folder = await tinyModelFolder()
  const path = join(folder, 'tokenizer.json')
  const tokenizer = JSON.parse(await readFile(path, 'utf8')) as { added_tokens: { id: number; content: string }[] }
  tokenizer.added_tokens.push({ ...tokenizer.added_tokens[0]!, id: 5000, content: '<beyond>' })
  await writeFile(path, JSON.stringify(tokenizer))
  const model = await loadModel(folder)
  const ask = (prompt: string) => model.generate(prompt, { maxTokens: 3 }).next()
  await t.throwsAsync(ask('a <beyond> b'), { instanceOf: HeddleError, code: 'ERR_HEDDLE_ARGUMENT', message: /5000/ })
  await t.notThrowsAsync(ask('a b'))
  await model.dispose()
})

test('weights that are not numbers give some text, not a crash', async (t) => {
  const folder = await tinyModelFolder()
  const path = join(folder, 'model.safetensors')
  const bytes = await readFile(path)
  bytes.fill(0xff, 8 + Number(bytes.readBigUInt64LE(0)))
  await writeFile(path, bytes)
  const model = await loadModel(folder)
  for (const temperature of [0, 1])
    await t.notThrowsAsync(async () => {
      for await (const _ of model.generate('abc', { maxTokens: 5, temperature, topK: 5, topP: 0.5 }));
    })
  await model.dispose()
})

/** A copy of the real model's file that tests may damage. */
async function realCopy(): Promise<string> {
  const path = join(temporaryFolder(), 'SmolLM2.gguf')
  await copyFile(await fetchModel('smollm2'), path)
  return path
}

test('the real model with contradicting metadata is refused', async (t) => {
  const path = await realCopy()
  const file = await open(path, 'r+')
  const header = (await file.read(Buffer.alloc(1 << 16), 0, 1 << 16, 0)).buffer
  const u32 = (value: number) => Buffer.from(Uint32Array.of(value).buffer)
  const u64 = (value: number) => Buffer.from(BigUint64Array.of(BigInt(value)).buffer)
  const f32 = (value: number) => Buffer.from(Float32Array.of(value).buffer)
  // Before a key stands its length, after it the value's type and, for a string, another length.
  for (const [key, skip, value, message] of [
    ['general.architecture', 12, Buffer.from('mamba'), /architecture.*"mamba"/],
    ['llama.block_count', 4, u32(31), /"model\.layers\.30\..*none/],
    ['llama.block_count', 4, u32(29), /got "model\.layers\.29\./],
    ['llama.block_count', 4, u32(0), /num_hidden_layers/],
    ['llama.embedding_length', 4, u32(512), /expected/],
    ['llama.feed_forward_length', 4, u32(1), /expected shape/],
    ['llama.attention.head_count', 4, u32(0), /head_count/],
    ['llama.attention.head_count', 4, u32(18), /expected/],
    ['llama.attention.head_count_kv', 4, u32(2), /num_key_value_heads/],
    ['llama.attention.layer_norm_rms_epsilon', 4, f32(Number.NaN), /rms_norm_eps/],
    ['llama.rope.freq_base', 4, f32(Number.NEGATIVE_INFINITY), /rope_theta/],
    ['llama.context_length', 4, u32(0), /max_position_embeddings/],
    ['tokenizer.ggml.model', 12, Buffer.from('what'), /tokenizer/],
  ] as const) {
    const at = header.indexOf(Buffer.concat([u64(key.length), Buffer.from(key)])) + 8 + key.length + skip
    t.true(at > 8 + key.length + skip, key)
    await file.write(value, 0, value.length, at)
    await refused(t, path, 'ERR_HEDDLE_FORMAT', message)
    await file.write(header, at, value.length, at)
  }
  await file.close()
  await t.notThrowsAsync(async () => (await loadModel(path)).dispose())
})

test('the real model with flipped bytes loads or is refused', async (t) => {
  const path = await realCopy()
  const file = await open(path, 'r+')
  const header = (await file.read(Buffer.alloc(1 << 22), 0, 1 << 22, 0)).buffer
  const starts = [0, 4000, header.indexOf('tokenizer.ggml.tokens'), header.indexOf('token_embd.weight')]
  const random = randomNumbers(32, 56)
  for (let round = 0; round < 16; round += 1) {
    const at = starts[round % starts.length]! + Math.floor(150 * (random[2 * round]! + 1))
    await file.write(Buffer.of(Math.floor(128 * (random[2 * round + 1]! + 1))), 0, 1, at)
    try {
      await (await loadModel(path)).dispose()
    } catch (error) {
      t.true(error instanceof HeddleError, String(error))
      t.true((error as HeddleError).message.includes(path), (error as HeddleError).message)
    }
    await file.write(header, at, 1, at)
  }
  await file.close()
  t.pass()
})

test('the real model truncated anywhere is refused', async (t) => {
  const path = await realCopy()
  const { size } = await stat(path)
  for (const length of [size - 1, Math.floor(size / 2), 1_500_000, 60_000, 300, 24, 3, 0]) {
    await truncate(path, length)
    await refused(t, path, 'ERR_HEDDLE_FORMAT')
  }
})
