// What exportGguf and exportGgufLora write: read back by Heddle, and run by llama.cpp with the same greedy tokens.
import { stat } from 'node:fs/promises'
import { join } from 'node:path'
import test from 'ava'
import { openCheckpoint } from '../lib/formats/checkpoint.js'
import { openGguf } from '../lib/formats/gguf.js'
import {
  type Adapter,
  assign,
  exportGguf,
  exportGgufLora,
  loadModel,
  lora,
  type Model,
  program,
  tensor,
} from '../lib/index.js'
import { Tensor } from '../lib/tensor/tensor.js'
import { fetchModel } from './models/fetch.js'
import { greedyTokens, hasLlamaCpp } from './peers/llama_cpp.js'
import { randomNumbers } from './random_numbers.js'
import { temporaryFolder } from './support/temporary_folder.js'
import { tinyModel, tinyModelFolder } from './tiny_model.js'

const length = 8
const prompts = ['The capital of France is', 'Once upon a time, there was a'] as const

async function continuations(model: Model, adapter?: Adapter): Promise<string[]> {
  const texts: string[] = []
  for (const prompt of prompts) {
    const options = { maxTokens: length, temperature: 0, chat: false, ...(adapter ? { adapter } : {}) }
    let text = ''
    for await (const piece of model.generate(prompt, options)) text += piece
    texts.push(text)
  }
  return texts
}

/** An adapter whose B is not zero, with ranks and scales of their own at some modules. */
async function randomAdapter(
  model: Model,
  deviation: number,
  targets: readonly string[],
  layers: readonly number[],
): Promise<Adapter> {
  const method = lora({
    r: 4,
    lora_alpha: 6,
    target_modules: targets,
    layers_to_transform: layers,
    rank_pattern: { v_proj: 2 },
    alpha_pattern: { k_proj: 3 },
  })
  const adapter = await model.attach(method, { seed: 5 })
  for (const [name, parameter] of adapter.parameters()) {
    if (!name.includes('lora_B')) continue
    const values = randomNumbers(parameter.size, 27).map((value) => value * deviation)
    const fill = program((value) => {
      assign(parameter, value!)
      return []
    })
    await fill(tensor(values, [...parameter.shape]))
    fill.dispose()
  }
  return adapter
}

test('SmolLM2, plain, quantised, with a merged adapter and with an adapter beside it: llama.cpp writes what Heddle writes', async (t) => {
  t.timeout(600_000)
  const folder = temporaryFolder()
  const file = (name: string): string => join(folder, `${name}.gguf`)
  const model = await loadModel(await fetchModel('smollm2'))
  const plain = await continuations(model)
  await exportGguf(model, file('plain'))
  await exportGguf(model, file('small'), { type: 'q8_0' })
  const adapter = await randomAdapter(model, 0.3, ['q_proj', 'k_proj', 'v_proj', 'down_proj'], [3, 12, 25])
  const adapted = await continuations(model, adapter)
  t.notDeepEqual(adapted, plain)
  await exportGgufLora(adapter, file('adapter'))
  await model.merge(adapter)
  await exportGguf(model, file('merged'))
  t.true((await stat(file('plain'))).size < 1.01 * 2 * 134_515_008 + 2e6)

  if (hasLlamaCpp) {
    const ids = await Promise.all(prompts.map(async (prompt) => [...(await model.tokenizer.encode(prompt))]))
    const jobs = [
      { model: file('plain'), prompts: ids },
      { model: file('small'), prompts: ids },
      { model: file('merged'), prompts: ids },
      { model: file('plain'), lora: file('adapter'), prompts: ids },
    ]
    const found = await greedyTokens(jobs, length)
    const texts = await Promise.all(found.map((job) => Promise.all(job.map((each) => model.tokenizer.decode(each)))))
    t.deepEqual(texts, [plain, plain, adapted, adapted])
  }
  await model.dispose()
})

test('an exported model has the same weights, settings and tokenizer when it is read again', async (t) => {
  const folder = await tinyModelFolder()
  const path = join(temporaryFolder(), 'tiny.gguf')
  const model = await loadModel(folder)
  await exportGguf(model, path, { type: 'f32' })
  const again = await loadModel(path)
  const text = 'A stitch in time <eos> saves nine.'
  t.deepEqual(await again.tokenizer.encode(text), await model.tokenizer.encode(text))
  t.deepEqual(again.tokenizer.eosTokenIds, model.tokenizer.eosTokenIds)
  const tensors = new Map(again.network.weights().map(({ name, tensor: weight }) => [name, weight]))
  for (const { name, tensor: weight } of model.network.weights())
    t.deepEqual(await tensors.get(name)!.data(), await weight.data(), name)
  t.is(tensors.size, model.network.weights().length)
  for (const key of ['hidden_size', 'head_dim', 'num_key_value_heads', 'rms_norm_eps', 'vocab_size'])
    t.is(again.network.config[key], model.network.config[key], key)
  await Promise.all([model.dispose(), again.dispose()])
})

test('matrices become the wanted type, vectors stay f32, rows that fill no block become f16', async (t) => {
  const model = await tinyModel()
  const path = join(temporaryFolder(), 'tiny.gguf')
  await exportGguf(model, path, { type: 'q8_0' })
  const file = await openGguf(path)
  const encoding = (name: string) => file.tensors.get(name)?.encoding
  t.is(encoding('blk.0.attn_q.weight'), 'q8_0')
  t.is(encoding('blk.0.attn_norm.weight'), 'f32')
  t.is(encoding('token_embd.weight'), 'q8_0')
  t.is(file.metadata.get('general.file_type'), 7)
  file.close()
  await model.dispose()
})

test("a GGUF LoRA holds A, B in llama.cpp's row order with every scale, and the alpha", async (t) => {
  const model = await tinyModel()
  const adapter = await randomAdapter(model, 1, ['q_proj', 'v_proj', 'k_proj'], [1])
  const path = join(temporaryFolder(), 'adapter.gguf')
  await exportGgufLora(adapter, path)
  const file = await openGguf(path)
  t.is(file.metadata.get('general.type'), 'adapter')
  t.is(file.metadata.get('adapter.type'), 'lora')
  t.is(file.metadata.get('adapter.lora.alpha'), 6)
  const read = async (name: string, heads?: number) =>
    (await new Tensor(
      file.tensor(file.tensors.get(name)!, { interleavedHeads: heads }).load('f32'),
    ).data()) as Float32Array
  const own = async (name: string) =>
    (await adapter.parameters().get(`model.layers.1.self_attn.${name}.weight`)!.data()) as Float32Array
  t.deepEqual(await read('blk.1.attn_q.weight.lora_a'), await own('q_proj.lora_A'))
  t.deepEqual(await read('blk.1.attn_q.weight.lora_b', 4), await own('q_proj.lora_B'))
  t.deepEqual(await read('blk.1.attn_v.weight.lora_b'), await own('v_proj.lora_B'))
  // 3 / 4 is wanted, 6 / 4 is what llama.cpp makes of it: half of B stands in the file.
  t.deepEqual(
    await read('blk.1.attn_k.weight.lora_b', 2),
    (await own('k_proj.lora_B')).map((value) => value / 2),
  )
  file.close()
  await model.dispose()
})

test('the tokenizer of a GGUF file is kept byte for byte', async (t) => {
  const source = await fetchModel('smollm2')
  const model = await loadModel(source)
  const path = join(temporaryFolder(), 'again.gguf')
  await exportGguf(model, path, { type: 'q8_0' })
  const [before, after] = [await openGguf(source), await openGguf(path)]
  const keys = [...before.metadata.keys()].filter((key) => key.startsWith('tokenizer.'))
  t.true(keys.length > 8)
  for (const key of keys) {
    const [a, b] = [before.metadata.get(key)!, after.metadata.get(key)!]
    if (typeof a === 'object' && typeof b === 'object') t.deepEqual({ ...a, offset: 0 }, { ...b, offset: 0 })
    else t.is(a, b)
  }
  t.is((await openCheckpoint(path)).config.rope_theta, 100000)
  before.close()
  after.close()
  await model.dispose()
})

test('adapters that are no plain LoRA, and unknown types, are refused', async (t) => {
  const model = await tinyModel()
  const path = join(temporaryFolder(), 'x.gguf')
  await t.throwsAsync(exportGguf(model, path, { type: 'q4' as 'f16' }), {
    code: 'ERR_HEDDLE_ARGUMENT',
    message: /type/,
  })
  const dora = await model.attach(lora({ r: 2, target_modules: ['q_proj'], use_dora: true }))
  await t.throwsAsync(exportGgufLora(dora, path), { code: 'ERR_HEDDLE_ARGUMENT', message: /magnitude/ })
  await model.dispose()
})
