// DSEE's structured pruning as a smaller model: a folder without the heads and channels, loaded as any other.
import { readFile, stat } from 'node:fs/promises'
import { join } from 'node:path'
import test from 'ava'
import { Adapter } from '../lib/adapters/adapter.js'
import { type DseeOptions, dsee } from '../lib/adapters/methods/dsee.js'
import { dseeSave } from '../lib/adapters/methods/dsee_save.js'
import { type DseePruneStructuredOptions, dseePruneStructured } from '../lib/adapters/methods/dsee_structured.js'
import { lora } from '../lib/adapters/methods/lora.js'
import { openCheckpoint } from '../lib/formats/checkpoint.js'
import { computed } from '../lib/graph/computed.js'
import { program } from '../lib/graph/program.js'
import { assign, read, type Sym } from '../lib/graph/sym.js'
import { buildNetwork } from '../lib/models/build.js'
import type { CausalLm } from '../lib/models/causal_lm.js'
import type { Encoder } from '../lib/models/encoder.js'
import { decoders, encoders } from '../lib/models/registry.js'
import { saveNetwork } from '../lib/models/save.js'
import type { SiteHook } from '../lib/nn/site.js'
import { loadSequenceClassifier } from '../lib/sequence_classifier.js'
import { type Tensor, tensor } from '../lib/tensor/tensor.js'
import { golden, relativeError } from './golden.js'
import { fetchModel } from './models/fetch.js'
import { disturb, numbers } from './support/one_site.js'
import { temporaryFolder } from './support/temporary_folder.js'

type Text = CausalLm | Encoder

const opened = async (folder: string): Promise<Text> =>
  buildNetwork<Text>([...decoders, ...encoders], await openCheckpoint(folder))

const ids = tensor(
  Int32Array.from({ length: 48 }, (_, i) => (i * 37 + 11) % 60),
  [2, 24],
)
const mask = tensor(new Int32Array(48).fill(1), [2, 24])

/** Traced: logits of a decoder, hidden states of an encoder. */
async function outputOf(network: Text, hook?: SiteHook): Promise<Sym> {
  const forward = { precision: 'f32' as const, training: false, hook }
  if (!('logits' in network)) return network.hidden({ ids: read(ids), mask: read(mask) }, forward)
  return network.logits(await network.hidden({ ids: read(ids) }, forward), forward)
}

const output = (network: Text, hook?: SiteHook): Promise<Tensor> => computed(() => outputOf(network, hook))

async function flopsOf(network: Text): Promise<number> {
  const forward = program(() => outputOf(network))
  const { flops } = await forward.plan([])
  forward.dispose()
  return flops
}

async function pruned(folder: string, method: DseeOptions, options: DseePruneStructuredOptions): Promise<Adapter> {
  const network = await opened(folder)
  const adapter = await Adapter.attach(network, dsee({ num_sparse: 8, sparse_method: 'omp', ...method }))
  await disturb(adapter)
  return (await dseePruneStructured(adapter, options)).adapter
}

const llama: DseeOptions = { target_modules: ['q_proj', 'v_proj', 'up_proj'] }
const bert: DseeOptions = { target_modules: ['query', 'value', 'intermediate.dense'] }
const groups = { prune_key_value_heads_num: 1, prune_neurons_num: 20 }
const heads = { prune_heads_num: 1, prune_neurons_num: 20 }

for (const [name, method, options, fields] of [
  [
    'tiny-llama-untied',
    llama,
    groups,
    { num_attention_heads: 2, num_key_value_heads: 1, head_dim: 16, intermediate_size: 76 },
  ],
  [
    'models/llama-biased',
    llama,
    groups,
    { num_attention_heads: 2, num_key_value_heads: 1, head_dim: 8, intermediate_size: 28 },
  ],
  ['models/qwen3', llama, groups, { num_attention_heads: 2, num_key_value_heads: 1, head_dim: 12 }],
  ['models/gemma2', llama, groups, { num_attention_heads: 2, num_key_value_heads: 1, head_dim: 8 }],
  ['models/bert', bert, heads, { num_attention_heads: 3, head_dim: 8, hidden_size: 32, intermediate_size: 28 }],
  ['models/roberta', bert, heads, { num_attention_heads: 3, head_dim: 8, intermediate_size: 28 }],
  [
    'models/distilbert',
    { target_modules: ['q_lin', 'v_lin', 'lin1'] },
    heads,
    { n_heads: 3, head_dim: 8, hidden_dim: 28 },
  ],
  ['models/opt', { target_modules: ['fc1'] }, { prune_neurons_num: 20 }, { num_attention_heads: 4, ffn_dim: 28 }],
] as const)
  test(`${name}: the smaller model computes what the masked one does, in fewer operations and bytes`, async (t) => {
    const adapter = await pruned(golden(name), method, options)
    const network = adapter.model as Text
    const plain = await output(network)
    const wanted = await output(network, adapter.hook)
    t.true((await relativeError(wanted, plain)) > 1e-3)
    const [folder, whole] = [temporaryFolder(), temporaryFolder()]
    await dseeSave(adapter, folder)
    const smaller = await opened(folder)
    t.true((await relativeError(await output(smaller), wanted)) < 1e-5)
    t.like(smaller.config, fields)
    t.true((await flopsOf(smaller)) < 0.9 * (await flopsOf(network)))
    await saveNetwork(network, undefined, whole)
    const bytes = async (at: string): Promise<number> => (await stat(join(at, 'model.safetensors'))).size
    t.true((await bytes(folder)) < (await bytes(whole)))
    // The model is as it was.
    t.deepEqual(await numbers(await output(network)), await numbers(plain))
  })

test('what is left, by the sizes of the matrices', async (t) => {
  const adapter = await pruned(golden('models/bert'), bert, heads)
  const folder = temporaryFolder()
  t.deepEqual(await dseeSave(adapter, folder), {
    before: { heads: 4, keyValueHeads: 4, channels: 48 },
    after: { heads: 3, keyValueHeads: 3, channels: 28 },
  })
  const { sites } = await opened(folder)
  const shape = (name: string): readonly number[] => sites.get(`encoder.layer.1.${name}`)!.weight.shape
  t.deepEqual(shape('attention.self.query'), [24, 32])
  t.deepEqual(shape('attention.output.dense'), [32, 24])
  t.deepEqual(shape('intermediate.dense'), [28, 32])
  t.deepEqual(shape('output.dense'), [32, 28])
})

test('a smaller model is adapted, pruned and saved again', async (t) => {
  const [first, second] = [temporaryFolder(), temporaryFolder()]
  await dseeSave(await pruned(golden('models/bert'), bert, heads), first)
  const again = await pruned(first, bert, heads)
  const { after } = await dseeSave(again, second)
  t.deepEqual(after, { heads: 2, keyValueHeads: 2, channels: 8 })
  const wanted = await output(again.model as Text, again.hook)
  t.true((await relativeError(await output(await opened(second)), wanted)) < 1e-5)
})

test('layers that have lost different numbers keep as many as the one with most', async (t) => {
  const network = await opened(golden('models/bert'))
  const adapter = await Adapter.attach(network, dsee({ ...bert, num_sparse: 0 }))
  await disturb(adapter)
  const once = (await dseePruneStructured(adapter, { prune_neurons_num: 20, prune_mode: 'random' })).adapter
  const { adapter: twice } = await dseePruneStructured(once, { prune_neurons_num: 20, prune_mode: 'random', seed: 1 })
  const folder = temporaryFolder()
  const { after } = await dseeSave(twice, folder)
  t.true(after.channels > 8 && after.channels < 28, `${after.channels}`)
  const wanted = await output(network, twice.hook)
  t.true((await relativeError(await output(await opened(folder)), wanted)) < 1e-5)
})

test('query heads of a group go where every group loses one', async (t) => {
  const network = (await opened(golden('tiny-llama-untied'))) as CausalLm
  const adapter = await Adapter.attach(network, dsee({ ...llama, num_sparse: 0 }))
  await disturb(adapter)
  // The second head of each group: its rows have changed less than those of the others.
  for (const { site, parameters } of adapter.attachedSites) {
    if (!site.path.endsWith('q_proj')) continue
    const b = parameters['lora_B.weight']!
    const values = await numbers(b)
    const small = tensor(
      Float32Array.from(values, (value, i) => (Math.floor(i / 4 / 16) % 2 === 1 ? value / 100 : value)),
      b.shape,
    )
    await computed(() => {
      assign(b, read(small))
      return []
    })
  }
  const { adapter: fewer } = await dseePruneStructured(adapter, { prune_heads_num: 2 })
  const folder = temporaryFolder()
  const { after } = await dseeSave(fewer, folder)
  t.deepEqual(after, { heads: 2, keyValueHeads: 2, channels: 96 })
  const wanted = await output(network, fewer.hook)
  t.true((await relativeError(await output(await opened(folder)), wanted)) < 1e-5)
})

test("3 of 12 heads of a MiniLM with a classifier: the trained head is in the folder, a quarter of attention's rows is not", async (t) => {
  const model = await loadSequenceClassifier(await fetchModel('minilm'), { labels: ['no', 'yes'] })
  const method = dsee({ target_modules: ['query', 'value'], num_sparse: 16, sparse_method: 'omp' })
  const adapter = await model.attach(method)
  await disturb(adapter, 0.05)
  const { adapter: fewer } = await dseePruneStructured(adapter, { prune_heads_num: 3 })
  const folder = temporaryFolder()
  await dseeSave(fewer, folder, { tokenizer: model.tokenizer })
  const again = await loadSequenceClassifier(folder)
  t.deepEqual(again.network.sites.get('bert.encoder.layer.5.attention.self.query')!.weight.shape, [288, 384])
  const texts = ['You have won a prize, call now', 'See you at six']
  const [wanted, plain, got] = [
    await model.classify(texts, { adapter: fewer }),
    await model.classify(texts),
    await again.classify(texts),
  ]
  for (const [i, { scores }] of got.entries()) {
    t.true(Math.abs(scores.yes! - wanted[i]!.scores.yes!) < 1e-5)
    t.true(Math.abs(scores.yes! - plain[i]!.scores.yes!) > 1e-4)
  }
  const { architectures } = JSON.parse(await readFile(join(folder, 'config.json'), 'utf8')) as Record<string, unknown>
  t.deepEqual(architectures, ['BertForSequenceClassification'])
  await Promise.all([model.dispose(), again.dispose()])
})

test('what cannot be made smaller is said, with what would help', async (t) => {
  const folder = temporaryFolder()
  const reader = { target_modules: ['query', 'value', 'attention.output.dense'] }
  const filled = await pruned(golden('models/bert'), reader, { prune_heads_num: 1 })
  await t.throwsAsync(dseeSave(filled, folder), { message: /leave the output and down projections out/ })
  const uneven = await pruned(golden('tiny-llama-untied'), llama, { prune_heads_num: 1 })
  await t.throwsAsync(dseeSave(uneven, folder), { message: /prune_key_value_heads_num/ })
  const opt = await pruned(golden('models/opt'), { target_modules: ['q_proj', 'v_proj'] }, { prune_heads_num: 1 })
  await t.throwsAsync(dseeSave(opt, folder), { message: /heads have a size of their own, got opt/ })
  const other = await Adapter.attach(await opened(golden('models/bert')), lora({ target_modules: ['query'] }))
  await t.throwsAsync(dseeSave(other, folder), { message: /an adapter of dsee, got lora/ })
  const both = { prune_heads_num: 1, prune_key_value_heads_num: 1 }
  await t.throwsAsync(pruned(golden('tiny-llama-untied'), llama, both), { message: /one of prune_heads_num and/ })
})
