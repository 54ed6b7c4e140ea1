/** The adapters that test/golden/make_peft_methods.py makes, and what each of them has to do here. */
import { readFile } from 'node:fs/promises'
import { join } from 'node:path'
import type { TestFn } from 'ava'
import { Adapter } from '../../lib/adapters/adapter.js'
import { golden, goldenJson, goldenLlama, goldenTensors, relativeError } from '../golden.js'
import { logits, trainFiveSteps, type Variant } from './adapter_goldens.js'
import { temporaryFolder } from './temporary_folder.js'

/** An adapter of one of PEFT's methods. */
export interface MethodVariant extends Omit<Variant, 'options'> {
  /** Name in the registry. */
  readonly method: string
  readonly options: Readonly<Record<string, unknown>>
}

/** The variants of one such script: `peft-methods`, or what another calls them. */
export const methodGoldensOf = (made: string): Readonly<Record<string, MethodVariant>> =>
  goldenJson<{ readonly variants: Readonly<Record<string, MethodVariant>> }>(`${made}.golden.json`).variants

/** The tests of every golden adapter of a method. */
export function testGoldens(test: TestFn, method: string, made = 'peft-methods'): void {
  for (const [name, variant] of Object.entries(methodGoldensOf(made))) {
    if (variant.method !== method) continue
    const { base, ids } = variant

    test(`${name}: PEFT's adapter gives PEFT's logits to 1e-4, with as many parameters`, async (t) => {
      const model = await goldenLlama(base)
      const adapter = await Adapter.load(model, golden(`${made}/${name}`))
      const expected = (await goldenTensors(`${made}.golden.safetensors`)).get(`${name}.logits`)!
      t.true((await relativeError(await logits(model, ids, adapter), expected)) < 1e-4)
      t.is(adapter.parameterCount, variant.trainable)
    })

    test(`${name}: five AdamW steps give PEFT's losses, gradient norms and logits`, async (t) => {
      const model = await goldenLlama(base)
      const adapter = await Adapter.load(model, golden(`${made}/${name}`))
      for (const [i, { loss, gradientNorm }] of (await trainFiveSteps(model, adapter, variant)).entries()) {
        t.true(Math.abs(loss / variant.losses[i]! - 1) < 1e-4, `loss ${loss}, PEFT has ${variant.losses[i]}`)
        const norm = variant.gradient_norms[i]!
        t.true(Math.abs(gradientNorm / norm - 1) < 1e-3, `gradient norm ${gradientNorm}, PEFT has ${norm}`)
      }
      const expected = (await goldenTensors(`${made}.golden.safetensors`)).get(`${name}.trained`)!
      t.true((await relativeError(await logits(model, ids, adapter), expected)) < 1e-3)
    })

    test(`${name}: what Heddle writes, PEFT computes, and Heddle writes it again byte for byte`, async (t) => {
      const model = await goldenLlama(base)
      const from = golden(`${made}-heddle/${name}`)
      const adapter = await Adapter.load(model, from, { baseModel: base.split('/').at(-1)! })
      const expected = (await goldenTensors(`${made}-heddle.golden.safetensors`)).get(`${name}.logits`)!
      t.true((await relativeError(await logits(model, ids, adapter), expected)) < 1e-4)
      const folder = temporaryFolder()
      await adapter.save(folder)
      for (const file of ['adapter_config.json', 'adapter_model.safetensors'])
        t.deepEqual(await readFile(join(folder, file)), await readFile(join(from, file)))
    })
  }
}
