// What a merged weight computes is what the adapter computes: in f64 to 1e-12. What is left in f32 is rounding, also where a
// network makes more of it.
import test from 'ava'
import type { Adapter } from '../lib/adapters/adapter.js'
import { replaced } from '../lib/adapters/attachment.js'
import { lamda } from '../lib/adapters/methods/lamda.js'
import type { AttachedSite, Parametrization, SitePlan } from '../lib/adapters/parametrization.js'
import { parametrizations } from '../lib/adapters/registry.js'
import { computed } from '../lib/graph/computed.js'
import { abs, add, cast, div, mul, sub } from '../lib/graph/ops/elementwise.js'
import { matmul } from '../lib/graph/ops/matmul.js'
import { max } from '../lib/graph/ops/reduce.js'
import { read } from '../lib/graph/sym.js'
import { loadModel, type Model } from '../lib/model.js'
import { type Forward, linear, type Site } from '../lib/nn/site.js'
import { causalLm } from '../lib/objectives/causal_lm.js'
import { type Calibration, calibrationOf } from '../lib/observers/calibration.js'
import { type Tensor, tensor } from '../lib/tensor/tensor.js'
import { methodCases } from './conformance/cases/index.js'
import type { MethodCase } from './conformance/method_case.js'
import { callOn } from './conformance/subjects.js'
import { relativeError } from './golden.js'
import { fetchModel } from './models/fetch.js'
import { randomNumbers } from './random_numbers.js'
import { disturb } from './support/one_site.js'
import { tinyDataset, tinyModel } from './tiny_model.js'

const calibrated = async (model: Model): Promise<Calibration> =>
  calibrationOf(causalLm(), await tinyDataset(model), { batches: 4, batchSize: 4 }) as Calibration

const methodOf = ({ method, make, config, targets = ['q_proj', 'down_proj'] }: MethodCase): Parametrization =>
  (make ?? parametrizations.find(({ name }) => name === method)!.create)({ ...config, target_modules: targets })

/** f32 numbers as f64, anything else as it is. */
const widened = (value: Tensor): Promise<Tensor> | Tensor =>
  value.dtype === 'f32' ? computed(() => cast(read(value), 'f64')) : value

async function allWidened(values: Readonly<Record<string, Tensor>>): Promise<Record<string, Tensor>> {
  const wide: Record<string, Tensor> = {}
  for (const [name, value] of Object.entries(values)) wide[name] = await widened(value)
  return wide
}

/** An adapter at one site: the site with its own tensors, and the adapter's. */
interface Part extends Pick<AttachedSite, 'parameters' | 'buffers'> {
  readonly site: Site
  readonly plan: SitePlan
}

function partsOf(adapter: Adapter): Part[] {
  return adapter.attachedSites.map(({ site, parameters, buffers }) => {
    const attachment = adapter.attachments.get(site.path)!
    return { site: replaced(site, attachment), plan: attachment.plan!, parameters, buffers }
  })
}

const inF64 = async ({ site, plan, parameters, buffers }: Part): Promise<Part> => ({
  site: { ...site, weight: await widened(site.weight) },
  plan,
  parameters: await allWidened(parameters),
  buffers: await allWidened(buffers),
})

const rows = 7
const forward: Forward = { precision: 'f32', training: false }

/** |forward − merged| at its largest, relative to the largest output. */
async function apart({ site, plan, parameters, buffers }: Part): Promise<number> {
  const inner = site.transposed ? site.weight.shape[0]! : site.weight.shape[1]!
  using x = tensor(Float32Array.from(randomNumbers(rows * inner, 5)), [rows, inner])
  using result = await computed(() => {
    const input = cast(read(x), site.weight.dtype)
    const base = (part = site, given = input) => linear(part, given, forward)
    const y = plan.forward({ site, x: input, base, parameters, buffers, forward, stream: 0 })
    const { weight, bias } = plan.merged!({
      weight: read(site.weight),
      bias: site.bias && read(site.bias),
      parameters,
      buffers,
    })
    const product = matmul(input, weight, { transposeB: !site.transposed })
    const merged = bias ? add(product, bias) : product
    return cast(div(max(abs(sub(y, merged))), max(abs(y))), 'f32')
  })
  return result.item()
}

for (const given of methodCases.filter(({ neverMerges }) => !neverMerges)) {
  const title = given.variant ? `${given.method} (${given.variant})` : given.method
  test(`${title}: forward and merged are the same to 1e-12 in f64, and to rounding in f32`, async (t) => {
    const model = await tinyModel()
    const adapter = await model.attach(methodOf(given), { seed: 3, calibration: await calibrated(model) })
    await disturb(adapter, 0.1)
    for (const part of partsOf(adapter)) {
      const [narrow, wide] = [await apart(part), await apart(await inF64(part))]
      t.log(`${part.site.path}: ${wide.toExponential(1)} ${narrow.toExponential(1)}`)
      t.true(wide < 1e-12, `${part.site.path}: ${wide}`)
      t.true(narrow < 1e-5, `${part.site.path}: ${narrow}`)
    }
    await model.dispose()
  })
}

test('LaMDA with strong noise on SmolLM2: merging moves the output no further than the rounding of its sums may', async (t) => {
  const model = await loadModel(await fetchModel('smollm2'))
  const { network } = model
  const method = lamda({ r: 16, target_modules: ['q_proj', 'down_proj'], layers_to_transform: [0, 1] })
  const adapter = await model.attach(method, { seed: 3 })
  await disturb(adapter, 0.1)
  const wanted = await callOn(network, adapter)
  // Of W' = R + B S A with sums of n terms each element may be off by about √n u (|R| + |B| |S| |A|).
  const errors = new Map<Site, Tensor>()
  for (const { site, parameters, buffers } of partsOf(adapter)) {
    const size = (name: string, among = parameters) => abs(read(among[name]!))
    const product = () => matmul(matmul(size('lora_B.weight'), size('sigma.weight')), size('lora_A.weight', buffers))
    const own = network.sites.get(site.path)!
    const signs = Float32Array.from(randomNumbers(own.weight.size, 9), (value) => 2 ** -22 * Math.sign(value))
    using random = tensor(signs, own.weight.shape)
    errors.set(own, await computed(() => mul(read(random), add(abs(read(site.weight)), product()))))
  }
  await model.merge(adapter)
  const merged = await callOn(network)
  for (const [site, error] of errors) site.weight = await computed(() => add(read(site.weight), read(error)))
  const shaken = await callOn(network)
  const [ours, rounding] = [await relativeError(merged, wanted), await relativeError(shaken, merged)]
  t.log(`merged ${ours.toExponential(1)}, rounding ${rounding.toExponential(1)}`)
  t.true(ours < 2 * rounding, `${ours} and ${rounding}`)
  await model.dispose()
})
