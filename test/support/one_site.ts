/** A network of one linear module, on which a method's closed forms are checked by hand. */
import type { Adapter } from '../../lib/adapters/adapter.js'
import { computed } from '../../lib/graph/computed.js'
import { gradients } from '../../lib/graph/grad.js'
import { add, mul } from '../../lib/graph/ops/elementwise.js'
import { sum } from '../../lib/graph/ops/reduce.js'
import { assign, read } from '../../lib/graph/sym.js'
import type { Network } from '../../lib/nn/network.js'
import { type Forward, linear, type Site } from '../../lib/nn/site.js'
import { type Tensor, tensor } from '../../lib/tensor/tensor.js'
import { randomNumbers } from '../random_numbers.js'

/** Numbers row by row. */
export type Rows = readonly (readonly number[])[]

export interface OneSite {
  readonly network: Network
  readonly site: Site
}

/** `model.proj` with this weight `[out, in]`. */
export function oneSite(rows: Rows, part: Partial<Pick<Site, 'bias' | 'transposed' | 'path'>> = {}): OneSite {
  const site: Site = { path: 'model.proj', kind: 'linear', weight: matrix(rows), ...part }
  return { site, network: networkOf([site]) }
}

/** A network of nothing but these sites. */
export const networkOf = (sites: readonly Site[]): Network => ({
  config: {},
  architecture: 'test',
  sites: new Map(sites.map((site) => [site.path, site])),
  maxPositions: 1,
  embeddingTied: false,
  weights: () => sites.map(({ path, weight }) => ({ name: `${path}.weight`, tensor: weight })),
})

export const matrix = (rows: Rows): Tensor => tensor(Float32Array.from(rows.flat()), [rows.length, rows[0]!.length])

export const numbers = async (each: Tensor): Promise<number[]> => [...((await each.data()) as Float32Array)]

/** Equal up to 1e-5 of the largest. */
export function near(actual: readonly number[], expected: readonly number[], tolerance = 1e-5): boolean {
  const size = Math.max(1, ...expected.map(Math.abs))
  return (
    actual.length === expected.length && actual.every((value, i) => Math.abs(value - expected[i]!) <= tolerance * size)
  )
}

const evaluation: Forward = { precision: 'f32', training: false }

/** What the site computes with the adapter (without one: by itself) for rows x. */
export async function outputOf({ site }: OneSite, x: Rows, adapter?: Adapter): Promise<number[]> {
  using input = matrix(x)
  using y = await computed((given) => linear(site, given!, { ...evaluation, hook: adapter?.hook }), [input])
  return await numbers(y)
}

/** Gradients of ⟨g, y⟩ to everything that is trained, and to x, by name. */
export async function gradientsAt(
  { site }: OneSite,
  adapter: Adapter,
  x: Rows,
  g: Rows,
): Promise<Record<string, number[]>> {
  using input = matrix(x)
  using cotangent = matrix(g)
  const trained = [...adapter.parameters()]
  const found = await computed(
    async (given, weight) => {
      const y = linear(site, given!, { ...evaluation, hook: adapter.hook })
      return await gradients(sum(mul(y, weight!)), [...trained.map(([, each]) => read(each)), given!])
    },
    [input, cotangent],
  )
  const names = [...trained.map(([name]) => name.replace(`${site.path}.`, '')), 'x']
  return Object.fromEntries(await Promise.all(names.map(async (name, i) => [name, await numbers(found[i]!)] as const)))
}

/** Sets what is trained or frozen, by the name within the site (or of what is shared). */
export async function setTensors(
  { site }: OneSite,
  adapter: Adapter,
  values: Readonly<Record<string, readonly number[]>>,
): Promise<void> {
  const all = new Map([...adapter.parameters(), ...adapter.buffers()])
  await computed(() => {
    for (const [name, list] of Object.entries(values)) {
      const target = all.get(name) ?? all.get(`${site.path}.${name}`)
      if (!target) throw new Error(`no ${name} among ${[...all.keys()].join(', ')}`)
      assign(target, read(tensor(Float32Array.from(list), target.shape)))
    }
    return []
  })
}

/** The weight of the merged site; the adapter is unmerged again. */
export async function mergedWeight({ site }: OneSite, adapter: Adapter): Promise<number[]> {
  await adapter.merge()
  const values = await numbers(site.weight)
  adapter.unmerge()
  return values
}

/** Adds seeded noise to everything that is trained, so that the adapter does something. */
export async function disturb(adapter: Adapter, size = 0.1): Promise<void> {
  const trained = [...adapter.parameters().values()]
  const noise = trained.map(({ size: count, shape }, i) =>
    tensor(
      Float32Array.from(randomNumbers(count, i + 1), (value) => size * value),
      shape,
    ),
  )
  await computed(() => {
    for (const [i, each] of trained.entries()) assign(each, add(read(each), read(noise[i]!)))
    return []
  })
  for (const each of noise) each.dispose()
}
