// VeRA, and the random numbers of PyTorch that its bases are made of.
import test from 'ava'
import { Adapter } from '../lib/adapters/adapter.js'
import { vera } from '../lib/adapters/methods/vera.js'
import { kaimingUniform, TorchGenerator, uniform } from '../lib/adapters/torch_random.js'
import { openSafetensors } from '../lib/formats/safetensors.js'
import { goldenJson, goldenLlama, goldenTensors } from './golden.js'
import { gradientsAt, mergedWeight, near, numbers, oneSite, outputOf, setTensors } from './support/one_site.js'
import { testGoldens } from './support/peft_method_goldens.js'
import { temporaryFolder } from './support/temporary_folder.js'

interface Drawn {
  readonly key: number
  readonly kind: 'uniform' | 'kaiming'
  readonly dtype: 'f32' | 'bf16'
  readonly shape: readonly number[]
  readonly values: readonly number[]
}

const torch = goldenJson<{ readonly step: number; readonly entries: readonly Drawn[] }>('torch_random.json')

for (const key of [...new Set(torch.entries.map((entry) => entry.key))])
  test(`PyTorch's numbers of key ${key} come out bit for bit, f32 and bf16`, async (t) => {
    const generator = new TorchGenerator(key)
    for (const { kind, dtype, shape, values } of torch.entries.filter((entry) => entry.key === key)) {
      const count = shape.reduce((product, n) => product * n, 1)
      const drawn =
        kind === 'uniform'
          ? await uniform(generator, count, { from: -0.3, to: 0.7, dtype })
          : await kaimingUniform(generator, shape, { slope: Math.sqrt(5), dtype })
      t.deepEqual([...drawn.filter((_, i) => i % torch.step === 0)], values.map(Math.fround), `${kind} ${dtype}`)
    }
  })

const options = { r: 2, target_modules: ['proj'] }
/** A = [1 2; 0 1], B = [1 0; 2 1; 0 3] */
const known = { vera_A: [1, 2, 0, 1], vera_B: [1, 0, 2, 1, 0, 3], vera_lambda_b: [1, 2, -1], vera_lambda_d: [3, 0.5] }
const W = [
  [1, 0],
  [0, 1],
  [1, 1],
]

test('y = W x + λ_b ⊙ B (λ_d ⊙ A x); merged, W + diag(λ_b) B diag(λ_d) A', async (t) => {
  const one = oneSite(W)
  const adapter = await Adapter.attach(one.network, vera(options))
  await setTensors(one, adapter, known)
  // A x = [3, 1], λ_d ⊙ = [9, 0.5], B = [9, 18.5, 1.5], λ_b ⊙ = [9, 37, -1.5]
  t.deepEqual(await outputOf(one, [[1, 1]], adapter), [10, 38, 0.5])
  t.deepEqual(await mergedWeight(one, adapter), [4, 6, 12, 26, 1, -0.5])
})

test('the gradients of both vectors are those of the equation, and A and B get none', async (t) => {
  const one = oneSite(W)
  const adapter = await Adapter.attach(one.network, vera(options))
  await setTensors(one, adapter, known)
  const found = await gradientsAt(one, adapter, [[1, 1]], [[1, 10, 100]])
  t.deepEqual(Object.keys(found).sort(), ['vera_lambda_b', 'vera_lambda_d', 'x'])
  t.true(near(found.vera_lambda_b!, [9, 185, 150]))
  // A x ⊙ Bᵀ (λ_b ⊙ g) = [3, 1] ⊙ [1 + 40, 20 - 300]
  t.true(near(found.vera_lambda_d!, [123, -280]))
})

test('smaller modules use the corners of the shared matrices', async (t) => {
  const model = await goldenLlama('tiny-llama-untied')
  const adapter = await Adapter.attach(model, vera({ r: 4, target_modules: ['k_proj', 'down_proj', 'up_proj'] }))
  t.deepEqual(
    [...adapter.buffers()].map(([name, { shape }]) => [name, shape]),
    [
      ['vera_A', [4, 96]],
      ['vera_B', [96, 4]],
    ],
  )
})

test("the matrices drawn from a key are those in PEFT's file", async (t) => {
  const stored = await goldenTensors('peft-methods/vera/adapter_model.safetensors')
  const adapter = await Adapter.attach(
    await goldenLlama('tiny-llama-untied'),
    vera({ r: 16, target_modules: ['q_proj', 'v_proj', 'down_proj'] }),
  )
  for (const name of ['vera_A', 'vera_B'])
    t.deepEqual(await numbers(adapter.buffers().get(name)!), await numbers(stored.get(`base_model.${name}`)!))
})

test('save_projection: false leaves them out of the file', async (t) => {
  const model = await goldenLlama('tiny-llama-untied')
  const method = vera({ r: 4, target_modules: ['q_proj'], save_projection: false })
  const folder = temporaryFolder()
  await (await Adapter.attach(model, method)).save(folder)
  const archive = await openSafetensors(`${folder}/adapter_model.safetensors`)
  t.deepEqual(
    [...archive.tensors.keys()].filter((name) => !name.includes('lambda')),
    [],
  )
  archive.close()
})

testGoldens(test, 'vera')
