// Every architecture that GGUF files can hold: the gguf package's names, and the same logits after export and reading.
import { cp, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import test from 'ava'
import { openGguf } from '../lib/formats/gguf.js'
import { ggufArchitectures } from '../lib/formats/gguf_architectures.js'
import { ggufPlace } from '../lib/formats/gguf_names.js'
import { program } from '../lib/graph/program.js'
import { exportGguf, HeddleError, loadModel, type Model } from '../lib/index.js'
import type { Tensor } from '../lib/tensor/tensor.js'
import { golden, goldenJson, goldenTensors, relativeError } from './golden.js'
import { temporaryFolder } from './support/temporary_folder.js'

type Config = Readonly<Record<string, unknown>>
interface Names {
  readonly model: string
  readonly names: Readonly<Record<string, string>>
}

const names = goldenJson<Readonly<Record<string, Names>>>('gguf_names.json')

test('the golden names are those of every architecture', (t) => {
  t.deepEqual(Object.keys(names).sort(), ggufArchitectures.map(({ name }) => name).sort())
})

for (const architecture of ggufArchitectures)
  test(`${architecture.name}: parameters are called as the gguf package calls them`, (t) => {
    for (const [own, theirs] of Object.entries(names[architecture.name]!.names))
      t.is(ggufPlace(architecture, own).name, theirs)
  })

/** A golden model with another config and a tokenizer of 66 characters. */
async function loaded(name: string, change: Config = {}): Promise<Model> {
  const folder = join(temporaryFolder(), name)
  await cp(golden(`models/${name}`), folder, { recursive: true })
  const config = { ...goldenJson<Config>(`models/${name}/config.json`), ...change }
  await writeFile(join(folder, 'config.json'), JSON.stringify(config))
  const characters = Array.from({ length: 66 }, (_, i) => [String.fromCharCode(0x21 + i), i + 1] as const)
  const byteLevel = { type: 'ByteLevel', add_prefix_space: false, trim_offsets: true, use_regex: true }
  const tokenizer = {
    added_tokens: [{ id: 0, content: '<eos>', special: true, single_word: false, lstrip: false, rstrip: false }],
    normalizer: null,
    pre_tokenizer: byteLevel,
    post_processor: null,
    decoder: byteLevel,
    model: { type: 'BPE', vocab: Object.fromEntries([['<eos>', 0], ...characters]), merges: [] },
  }
  await writeFile(join(folder, 'tokenizer.json'), JSON.stringify(tokenizer))
  await writeFile(join(folder, 'tokenizer_config.json'), JSON.stringify({ eos_token: '<eos>' }))
  return loadModel(folder)
}

const plain = { precision: 'f32', training: false } as const
const logits = ({ network }: Model, ids: Tensor): Promise<Tensor> =>
  program(async (input) => network.logits(await network.hidden({ ids: input! }, plain), plain))(ids)

/** What of the golden models has no form in GGUF, set to what has one. */
const writable: Readonly<Record<string, Config>> = {
  'llama-biased': {},
  mistral: { sliding_window: null },
  qwen2: { use_sliding_window: false, layer_types: null },
  qwen3: {},
  gemma: {},
  gemma2: { query_pre_attn_scalar: 8 },
  gemma3: { query_pre_attn_scalar: 8, layer_types: ['sliding_attention', 'sliding_attention'] },
  phi: {},
  phi3: {},
  'phi3-longrope': {},
}

for (const [name, change] of Object.entries(writable))
  test(`${name}: written as GGUF and read again, the logits are the same`, async (t) => {
    const ids = (await goldenTensors(`models/${name}/golden.safetensors`)).get('ids')!
    const model = await loaded(name, change)
    const path = join(temporaryFolder(), 'model.gguf')
    await exportGguf(model, path, { type: 'f32' })
    const again = await loadModel(path)
    const error = await relativeError(await logits(again, ids), await logits(model, ids))
    t.true(error < 1e-6, `${error}`)
    const file = await openGguf(path)
    const known = new Set(Object.values(names[file.metadata.get('general.architecture') as string]!.names))
    for (const tensor of file.tensors.keys()) t.true(known.has(tensor) || tensor.startsWith('rope_'), tensor)
    file.close()
    await Promise.all([model.dispose(), again.dispose()])
  })

for (const [name, change, message] of [
  ['mistral', {}, /sliding_window: expected null, all that GGUF's llama can say, got 5/],
  ['qwen2', {}, /sliding_window: expected null/],
  ['gemma2', {}, /query_pre_attn_scalar: expected 8, .* got 12/],
  ['gemma3', { query_pre_attn_scalar: 8 }, /layer_types/],
  ['llama-biased', { hidden_act: 'gelu' }, /hidden_act: expected "silu", .* got "gelu"/],
  ['llama-yarn', {}, /rope_scaling.* got yarn/],
  ['llama-dynamic', {}, /rope_scaling.* got dynamic/],
  ['phi-qk-norm', {}, /q_layernorm/],
  ['gpt2', {}, /model_type/],
] as const)
  test(`${name} with ${JSON.stringify(change)} would be another network as GGUF, and is refused`, async (t) => {
    const model = await loaded(name, change)
    const path = join(temporaryFolder(), 'model.gguf')
    await t.throwsAsync(exportGguf(model, path), { instanceOf: HeddleError, code: 'ERR_HEDDLE_FORMAT', message })
    await model.dispose()
  })
