/** Reads the golden files of test/golden (made by the scripts beside them). */
import { readFileSync } from 'node:fs'
import { dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { openCheckpoint } from '../lib/formats/checkpoint.js'
import { openSafetensors } from '../lib/formats/safetensors.js'
import { buildNetwork } from '../lib/models/build.js'
import type { CausalLm } from '../lib/models/causal_lm.js'
import { decoders } from '../lib/models/registry.js'
import { Tensor } from '../lib/tensor/tensor.js'

/** The repository's root, from dist/test. */
export const root = join(dirname(fileURLToPath(import.meta.url)), '..', '..')
export const golden = (name: string): string => join(root, 'test', 'golden', name)

export const goldenJson = <T>(name: string): T => JSON.parse(readFileSync(golden(name), 'utf8')) as T

/** All tensors of a golden file in their own dtype (f32 or i32). */
export async function goldenTensors(name: string): Promise<Map<string, Tensor>> {
  const archive = await openSafetensors(golden(name))
  return new Map([...archive.tensors].map(([key, stored]) => [key, new Tensor(stored.load(stored.encoding as 'f32'))]))
}

/** A tiny random Llama of test/golden. */
export async function goldenLlama(name: string): Promise<CausalLm> {
  return buildNetwork(decoders, await openCheckpoint(golden(name)))
}

/** max |a - b| / max |b| */
export async function relativeError(a: Tensor, b: Tensor): Promise<number> {
  const [left, right] = [await a.data(), await b.data()] as [Float32Array, Float32Array]
  if (left.length !== right.length) return Number.POSITIVE_INFINITY
  let difference = 0
  let scale = 0
  for (const [i, expected] of right.entries()) {
    difference = Math.max(difference, Math.abs(left[i]! - expected))
    scale = Math.max(scale, Math.abs(expected))
  }
  return Number.isNaN(difference) ? Number.POSITIVE_INFINITY : difference / scale
}

/** |g| and Σ gᵢ cos(0.7 i), which stand for a whole gradient in a small file. */
export function probes(g: Float32Array): [number, number] {
  let [squares, sum] = [0, 0]
  for (const [i, value] of g.entries()) {
    squares += value * value
    sum += value * Math.cos(0.7 * i)
  }
  return [Math.sqrt(squares), sum]
}
