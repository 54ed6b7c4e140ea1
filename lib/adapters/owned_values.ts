/** Tensors that belong to a method: what it found once, of data or of the network, and begins every adapter with. */
import { copied } from '../graph/computed.js'
import type { Tensor } from '../tensor/tensor.js'

/** Tensors by name. */
export type Values = Readonly<Record<string, Tensor>>

/** Copies that an adapter may own: the method stays as it is, and can be attached again. */
export async function copiesOf(values: Values): Promise<Values> {
  const copies: Record<string, Tensor> = {}
  for (const [name, value] of Object.entries(values)) copies[name] = await copied(value)
  return copies
}

/**
 * What `find` adds, by module path. Where it fails, or is aborted, all of it is freed; otherwise it lives until the method
 * that has it is collected.
 */
export async function foundValues(
  find: (add: (path: string, values: Values) => void) => Promise<void>,
): Promise<ReadonlyMap<string, Values>> {
  const found = new Map<string, Values>()
  try {
    await find((path, values) => {
      found.set(path, values)
    })
    return found
  } catch (error) {
    for (const values of found.values()) for (const each of Object.values(values)) each.dispose()
    throw error
  }
}
