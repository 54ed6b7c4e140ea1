// S²FT where one module computes queries, keys and values, or gate and up: heads and channels are chosen inside of it.
import test from 'ava'
import { Adapter } from '../lib/adapters/adapter.js'
import { asLora } from '../lib/adapters/as_lora.js'
import { lora } from '../lib/adapters/methods/lora.js'
import { type S2ftOptions, s2ft } from '../lib/adapters/methods/s2ft.js'
import { openCheckpoint } from '../lib/formats/checkpoint.js'
import { computed } from '../lib/graph/computed.js'
import { gradients } from '../lib/graph/grad.js'
import { add, mul } from '../lib/graph/ops/elementwise.js'
import { indexSelect } from '../lib/graph/ops/gather.js'
import { slice } from '../lib/graph/ops/index.js'
import { sum } from '../lib/graph/ops/reduce.js'
import { program } from '../lib/graph/program.js'
import { read, type Sym } from '../lib/graph/sym.js'
import { buildNetwork } from '../lib/models/build.js'
import type { CausalLm } from '../lib/models/causal_lm.js'
import { decoders } from '../lib/models/registry.js'
import { linear, oriented, type Site, type SiteHook } from '../lib/nn/site.js'
import { type Tensor, tensor } from '../lib/tensor/tensor.js'
import { golden, relativeError } from './golden.js'
import { randomTensor } from './random_numbers.js'
import { disturb, networkOf, numbers } from './support/one_site.js'
import { temporaryFolder } from './support/temporary_folder.js'

const range = (from: number, count: number): number[] => Array.from({ length: count }, (_, i) => from + i)

/** The tiny random models of test/golden: 32 wide, 2 layers, 4 heads of 8. Which rows are whose: */
const models = {
  // Of 96: queries, keys, values of 32 each. GPT-2 stores columns, and has no gate.
  gpt2: { qkv: 'transformer.h.0.attn.c_attn', value: (head: number) => range(64 + 8 * head, 8), up: undefined },
  // Each head has its query, key and value together.
  'gpt-neox': {
    qkv: 'gpt_neox.layers.0.attention.query_key_value',
    value: (head: number) => range(24 * head + 16, 8),
    up: undefined,
  },
  // 32 rows of queries, 2 heads of 8 each of keys and of values; 48 channels of gate, then of up.
  phi3: {
    qkv: 'model.layers.0.self_attn.qkv_proj',
    value: (head: number) => range(48 + 8 * head, 8),
    up: { path: 'model.layers.0.mlp.gate_up_proj', row: (channel: number) => [48 + channel] },
  },
} as const
type Name = keyof typeof models

const opened = async (name: string): Promise<CausalLm> =>
  buildNetwork(decoders, await openCheckpoint(golden(`models/${name}`)))

const logits = (network: CausalLm, hook?: SiteHook): Promise<Tensor> =>
  computed(async () => {
    const ids = read(
      tensor(
        Int32Array.from(range(0, 48), (i) => (i * 37 + 11) % 60),
        [2, 24],
      ),
    )
    const forward = { precision: 'f32' as const, training: false, hook }
    return network.logits(await network.hidden({ ids }, forward), forward)
  })

/** Makes rows of a weight the longest of all. */
async function grow(site: Site, rows: readonly number[]): Promise<void> {
  const [height, width] = site.weight.shape as [number, number]
  const chosen = new Set(rows)
  const values = await numbers(site.weight)
  const row = (i: number): number => (site.transposed ? i % width : Math.floor(i / width))
  site.weight = tensor(
    Float32Array.from(values, (value, i) => (chosen.has(row(i)) ? 50 * value : value)),
    [height, width],
  )
}

async function chosen(network: CausalLm, options: S2ftOptions): Promise<Record<string, number[]>> {
  const adapter = await Adapter.attach(network, s2ft({ selection: 'weight', selection_order: 'largest', ...options }))
  const found = [...adapter.attachments].map(async ([path, { buffers }]) => [
    path,
    [...((await buffers.indices!.data()) as Int32Array)],
  ])
  return Object.fromEntries(await Promise.all(found))
}

for (const name of Object.keys(models) as Name[]) {
  const { qkv, value, up } = models[name]

  test(`${name}: the value head whose rows are longest is chosen, and rows of queries and keys never are`, async (t) => {
    const network = await opened(name)
    await grow(network.sites.get(qkv)!, value(1))
    const heads = name === 'phi3' ? 2 : 4
    t.deepEqual(await chosen(network, { v_ratio: 1 / (2 * heads) }), { [qkv]: value(1) })
    const all = (await chosen(network, { v_ratio: 1 }))[qkv]!
    t.deepEqual(all, range(0, heads).flatMap(value))
  })

  if (up)
    test(`${name}: of gate and up in one module the rows of up are chosen`, async (t) => {
      const network = await opened(name)
      await grow(network.sites.get(up.path)!, up.row(5))
      t.deepEqual(await chosen(network, { u_ratio: 1 / 96 + 1e-9 }), { [up.path]: up.row(5) })
    })

  const options: S2ftOptions = { v_ratio: 0.5, o_ratio: 0.25, u_ratio: 0.1, d_ratio: 0.1 }

  test(`${name}: a fresh adapter changes nothing, bit for bit; fused it computes the same; unfused the weights are back`, async (t) => {
    const network = await opened(name)
    const adapter = await Adapter.attach(network, s2ft(options), { seed: 2 })
    t.true(adapter.sitePaths.includes(qkv))
    const plain = await logits(network)
    t.deepEqual(await numbers(await logits(network, adapter.hook)), await numbers(plain))
    await disturb(adapter)
    const wanted = await logits(network, adapter.hook)
    t.true((await relativeError(wanted, plain)) > 1e-3)
    await adapter.merge()
    t.true((await relativeError(await logits(network), wanted)) < 1e-5)
    adapter.unmerge()
    t.deepEqual(await numbers(await logits(network)), await numbers(plain))
  })

  test(`${name}: exported as a folder, and as a plain LoRA, it computes the same`, async (t) => {
    const network = await opened(name)
    const adapter = await Adapter.attach(network, s2ft(options), { seed: 2 })
    await disturb(adapter)
    const wanted = await logits(network, adapter.hook)
    const folder = temporaryFolder()
    await adapter.save(folder)
    const again = await Adapter.load(await opened(name), folder)
    t.deepEqual(await numbers(await logits(again.model as CausalLm, again.hook)), await numbers(wanted))
    const plain = await asLora(adapter)
    t.true((await relativeError(await logits(network, plain.hook), wanted)) < 1e-5)
  })

  test(`${name}: the gradient is the slice of that of the whole module, and no other number moves`, async (t) => {
    const network = await opened(name)
    const adapter = await Adapter.attach(network, s2ft({ v_ratio: 1 }))
    const [path, { site, parameters, buffers }] = [...adapter.attachments].find(([each]) => each === qkv)!
    const weigh = randomTensor([48, 67], 5)
    const found = await computed(async () => {
      const forward = { precision: 'f32' as const, training: false, hook: adapter.hook }
      const ids = read(tensor(Int32Array.from(range(0, 48)), [2, 24]))
      const output = network.logits(await network.hidden({ ids }, forward), forward)
      const [own, whole] = await gradients(sum(mul(output, read(weigh))), [parameters.s2!, site.weight].map(read))
      return { own: own!, whole: indexSelect(oriented(site, whole!), 0, read(buffers.indices!)) }
    })
    t.true((await relativeError(found.own, found.whole)) < 1e-5)
    await disturb(adapter)
    const before = await numbers(site.weight)
    const indices = new Set((await buffers.indices!.data()) as Int32Array)
    await adapter.merge()
    const after = await numbers(network.sites.get(path)!.weight)
    const columns = site.weight.shape[1]!
    for (const [i, each] of after.entries()) {
      const isChosen = indices.has(site.transposed ? i % columns : Math.floor(i / columns))
      if (!isChosen) t.is(each, before[i]!)
    }
    t.notDeepEqual(after, before)
  })
}

const [blocks, tokens, width] = [6, 256, 64]

/** Blocks x + W_o f(W_qkv x) by themselves, f taking the values of the fused product: attention that sees itself alone. */
async function peaks(): Promise<Record<'s2ft' | 'lora' | 'full', number>> {
  const site = (name: string, shape: readonly number[], seed: number): Site => ({
    path: name,
    kind: 'linear',
    weight: randomTensor(shape, seed),
  })
  const sites = range(0, blocks).flatMap((i) => [
    site(`model.layers.${i}.self_attn.qkv_proj`, [3 * width, width], 2 * i + 1),
    site(`model.layers.${i}.self_attn.o_proj`, [width, width], 2 * i + 2),
  ])
  const network = { ...networkOf(sites), config: { num_attention_heads: 8 } }
  const x = randomTensor([tokens, width], 99)
  const through = (input: Sym, hook?: SiteHook): Sym => {
    const forward = { precision: 'f32' as const, training: true, hook }
    let y = input
    for (let i = 0; i < blocks; i += 1) {
      const all = linear(sites[2 * i]!, y, forward)
      const values = slice(all, [{ axis: 1, start: 2 * width, end: 3 * width }])
      y = add(y, linear(sites[2 * i + 1]!, values, forward))
    }
    return y
  }
  const peak = async (trained: readonly Tensor[], adapter?: Adapter): Promise<number> => {
    const step = program(async (input) => {
      const y = through(input!, adapter?.hook)
      return await gradients(sum(mul(y, y)), trained.map(read))
    })
    const { peakBytes } = await step.plan([x])
    step.dispose()
    return peakBytes
  }
  const target_modules = ['qkv_proj', 'o_proj']
  const slices = await Adapter.attach(network, s2ft({ v_ratio: 1 / 8, o_ratio: 1 / 8, target_modules }))
  const lowRank = await Adapter.attach(network, lora({ r: 8, target_modules }))
  return {
    s2ft: await peak([...slices.parameters().values()], slices),
    lora: await peak([...lowRank.parameters().values()], lowRank),
    full: await peak(sites.map(({ weight }) => weight)),
  }
}

test('partial backpropagation: a step over fused projections needs less memory than LoRA and whole weights', async (t) => {
  const bytes = await peaks()
  t.log(bytes)
  t.true(bytes.s2ft < 0.8 * bytes.lora && bytes.s2ft < 0.8 * bytes.full, JSON.stringify(bytes))
})
