/** Who frees tensors: what a step that fails has made so far, and what a method found once and begins every adapter with. */
import { copied } from '../graph/computed.js'
import type { Tensor } from '../tensor/tensor.js'

/** Tensors by name. */
export type Values = Readonly<Record<string, Tensor>>

/**
 * What `make` gives. Where it fails, or is aborted, everything is freed that it has called its own, which is given back as
 * it is; otherwise the caller has it.
 */
export async function freedOnFailure<T>(make: (own: Own) => Promise<T>): Promise<T> {
  const owned: Tensor[] = []
  const own: Own = (values) => {
    owned.push(...('dispose' in values ? [values as Tensor] : Object.values(values as Values)))
    return values
  }
  try {
    return await make(own)
  } catch (error) {
    for (const each of owned) each.dispose()
    throw error
  }
}

/** Takes a tensor, or all of an object's. */
export type Own = <V extends Tensor | object>(values: V) => V

/** Copies that an adapter may own: the method stays as it is, and can be attached again. */
export const copiesOf = (values: Values): Promise<Values> =>
  freedOnFailure(async (own) => {
    const copies: Record<string, Tensor> = {}
    for (const [name, value] of Object.entries(values)) copies[name] = own(await copied(value))
    return copies
  })

/**
 * What `find` adds, by module path. Where it fails, or is aborted, all of it is freed; otherwise it lives until the method
 * that has it is collected.
 */
export const foundValues = (
  find: (add: (path: string, values: Values) => void) => Promise<void>,
): Promise<ReadonlyMap<string, Values>> =>
  freedOnFailure(async (own) => {
    const found = new Map<string, Values>()
    await find((path, values) => {
      found.set(path, own(values))
    })
    return found
  })
