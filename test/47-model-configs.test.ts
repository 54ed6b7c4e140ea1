// What a config.json may say: a field without a meaning is refused by name; every architecture can start from nothing.
import { readdirSync } from 'node:fs'
import { readFile, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import test from 'ava'
import { openCheckpoint } from '../lib/formats/checkpoint.js'
import { jsonText, numberTexts } from '../lib/formats/json_numbers.js'
import { openSafetensors } from '../lib/formats/safetensors.js'
import { buildNetwork } from '../lib/models/build.js'
import { writeRandomCheckpoint } from '../lib/models/random_checkpoint.js'
import { type Architecture, architectureOf, decoders, encoders, imageClassifiers } from '../lib/models/registry.js'
import { saveNetwork } from '../lib/models/save.js'
import { checkpointWeights } from '../lib/models/weights.js'
import type { Network } from '../lib/nn/network.js'
import { golden, goldenJson } from './golden.js'
import { temporaryFolder } from './support/temporary_folder.js'

type Config = Record<string, unknown>
const known: readonly Architecture<Network>[] = [...decoders, ...encoders, ...imageClassifiers]
const names = readdirSync(golden('models'))
const configOf = (name: string): Config => goldenJson<Config>(`models/${name}/config.json`)

for (const name of names)
  test(`${name}: a random checkpoint has the parameters that transformers saves, and loads`, async (t) => {
    const folder = temporaryFolder()
    await writeRandomCheckpoint(folder, configOf(name), { seed: 1, dtype: 'bf16' })
    const [made, theirs] = await Promise.all(
      [folder, golden(`models/${name}`)].map((each) => openSafetensors(join(each, 'model.safetensors'))),
    )
    const shapes = (archive: typeof made): [string, readonly number[]][] =>
      [...archive!.tensors.values()]
        .filter((stored) => !stored.name.startsWith('pooler.'))
        .map((stored): [string, readonly number[]] => [stored.name, stored.shape])
        .sort()
    t.deepEqual(shapes(made), shapes(theirs))
    t.is(buildNetwork(known, await openCheckpoint(folder)).architecture, configOf(name).model_type as string)
  })

for (const [name, change, message] of [
  ['gpt2', { n_embd: 30 }, /n_head|num_attention_heads/],
  ['gpt2', { scale_attn_by_inverse_layer_idx: true }, /scale_attn_by_inverse_layer_idx: expected .* got true/],
  ['gpt2', { num_experts: 4 }, /num_experts: expected a field that the architecture "gpt2" knows, got 4/],
  ['mistral', { sliding_window: -1 }, /sliding_window/],
  ['qwen3', { layer_types: ['full_attention'] }, /layer_types: expected 2 entries, got 1/],
  ['qwen3', { layer_types: ['full_attention', 'linear_attention'] }, /layer_types/],
  ['gemma3', { use_bidirectional_attention: true }, /use_bidirectional_attention/],
  ['gemma2', { final_logit_softcapping: 'high' }, /final_logit_softcapping/],
  ['phi3', { rope_scaling: { type: 'longrope', short_factor: [1] } }, /rope_scaling: .* got .*longrope/],
  ['phi', { partial_rotary_factor: 2 }, /partial_rotary_factor/],
  ['gpt-neox', { hidden_act: 'gelu_9' }, /hidden_act: expected one of "gelu"/],
  ['opt', { layer_norm_elementwise_affine: false }, /layer_norm_elementwise_affine/],
  ['bert', { position_embedding_type: 'relative_key' }, /position_embedding_type/],
  ['bert', { is_decoder: true }, /is_decoder/],
  ['distilbert', { n_heads: 5 }, /num_attention_heads|n_heads/],
  ['vit', { patch_size: 5 }, /patch_size/],
  ['llama-yarn', { quantization_config: { bits: 4 } }, /quantization_config: expected a field/],
] as const)
  test(`${name} with ${JSON.stringify(change)} is refused`, (t) => {
    const config = { ...configOf(name), ...change }
    const build = () => architectureOf(known, config, 'm').build(config, checkpointWeights(new Map(), 'm'), 'm')
    t.throws(build, { code: 'ERR_HEDDLE_FORMAT', message })
  })

test('fields without bearing on the network, and fields that are off, may be there', (t) => {
  const config = {
    ...configOf('gpt2'),
    _name_or_path: 'x',
    'transformers.js_config': {},
    unsloth_version: '1',
    some_future_switch: false,
    another: null,
  }
  const build = () => architectureOf(known, config, 'm').build(config, checkpointWeights(new Map(), 'm'), 'm')
  // It gets as far as the weights.
  t.throws(build, { message: /a tensor "transformer\.wte\.weight"/ })
})

test("GPT-2's old files, without the prefix and with the mask as a buffer, load as the new ones do", async (t) => {
  const { config, tensors } = await openCheckpoint(golden('models/gpt2'))
  const old = new Map([...tensors].map(([key, stored]) => [key.replace('transformer.', ''), stored]))
  old.set('h.0.attn.bias', tensors.get('transformer.wpe.weight')!)
  const network = buildNetwork(decoders, { config, path: 'old', tensors: old })
  t.true(network.sites.has('transformer.h.0.attn.c_attn'))
})

test("BERT's old files, with a prefix, gamma and beta and a head for pre-training, load as an encoder", async (t) => {
  const { config, tensors } = await openCheckpoint(golden('models/bert'))
  const old = new Map(
    [...tensors].map(([key, stored]) => {
      const tensorFlow = key.replace('LayerNorm.weight', 'LayerNorm.gamma').replace('LayerNorm.bias', 'LayerNorm.beta')
      return [`bert.${tensorFlow}`, stored]
    }),
  )
  old.set('cls.predictions.bias', tensors.get('pooler.dense.bias')!)
  const named = { ...config, architectures: ['BertForMaskedLM'] }
  t.true(
    buildNetwork(encoders, { config: named, path: 'old', tensors: old }).sites.has('encoder.layer.0.output.LayerNorm'),
  )
})

test('a tensor that no part of the network reads is refused by name', async (t) => {
  const folder = temporaryFolder()
  for (const file of ['config.json', 'model.safetensors'])
    await writeFile(join(folder, file), await readFile(golden(`models/qwen2/${file}`)))
  const { config, tensors } = await openCheckpoint(folder)
  const more = new Map([...tensors, ['model.layers.0.mlp.router.weight', tensors.get('model.norm.weight')!]])
  t.throws(() => buildNetwork(decoders, { config, path: 'm', tensors: more }), {
    code: 'ERR_HEDDLE_FORMAT',
    message: /no tensors but .* got "model\.layers\.0\.mlp\.router\.weight"/,
  })
})

test('an architecture of another kind is refused with the function that loads it', (t) => {
  t.throws(() => architectureOf(decoders, { model_type: 'bert' }, 'm'), { message: /got "bert".*loadEncoder\(\)/ })
  t.throws(() => architectureOf(encoders, { model_type: 'gpt2' }, 'm'), { message: /got "gpt2".*loadModel\(\)/ })
})

for (const name of names)
  test(`${name}: what is saved says the config that was read, number by number, and nothing besides`, async (t) => {
    const folder = temporaryFolder()
    const network = buildNetwork(known, await openCheckpoint(golden(`models/${name}`)))
    await saveNetwork(network, undefined, folder)
    const [written, theirs] = await Promise.all(
      [folder, golden(`models/${name}`)].map((each) => readFile(join(each, 'config.json'), 'utf8')),
    )
    const lines = (text: string): string[] => text.split('\n').filter((line) => !/"(torch_)?dtype":/.test(line))
    const sorted = (text: string): string[] => lines(text.replaceAll(',\n', '\n')).sort()
    t.deepEqual(sorted(written!), sorted(theirs!))
  })

test('a number that is changed before it is saved is written as the new one', async (t) => {
  const folder = temporaryFolder()
  const network = buildNetwork(known, await openCheckpoint(golden('models/gemma2')))
  const config = { ...network.config, attn_logit_softcapping: 7, rope_theta: 5000 }
  await saveNetwork({ ...network, config, weights: () => [] }, undefined, folder)
  const text = await readFile(join(folder, 'config.json'), 'utf8')
  t.regex(text, /"attn_logit_softcapping": 7,/)
  t.regex(text, /"final_logit_softcapping": 3\.0,/)
  t.regex(text, /"rope_theta": 5000\b/)
})

test('texts of JSON are those of JSON.stringify, but for numbers whose own text is known', (t) => {
  const own = '{"a": [1.0, -2, {"b": 1e-06, "c": "3.0 \\" 4.0"}], "d": {}, "e": [], "f": 10000000000000000000000.0}'
  const value = { ...(JSON.parse(own) as object), g: 2, h: undefined, i: [null, undefined, 'x'] }
  t.is(jsonText(value, undefined), JSON.stringify(value, null, 2))
  const text = jsonText(value, numberTexts(own))
  t.deepEqual(JSON.parse(text), JSON.parse(JSON.stringify(value)))
  for (const number of ['1.0', '-2', '1e-06', '10000000000000000000000.0']) t.true(text.includes(number), text)
})
