/** A job's adapter in the folder of adapters: whole, or not there. */
import { cp, readdir, rename, rm } from 'node:fs/promises'
import { join } from 'node:path'
import { syncToDisk } from '../../formats/atomic_file.js'

/** Beside its place an adapter has a name that no adapter can have. */
const beside = (adapters: string, name: string): string => join(adapters, `.${name}.tmp`)

/**
 * Copies an adapter to its place. One that is there already is the same: names are never given twice.
 * @returns its folder
 */
export async function publishAdapter(from: string, adapters: string, name: string): Promise<string> {
  const target = join(adapters, name)
  if ((await readdir(adapters)).includes(name)) return target
  const copy = beside(adapters, name)
  await rm(copy, { recursive: true, force: true })
  await cp(from, copy, { recursive: true })
  for (const file of await readdir(copy)) await syncToDisk(join(copy, file))
  await syncToDisk(copy)
  await rename(copy, target)
  await syncToDisk(adapters)
  return target
}

/** Takes an adapter from its place: at once, and then what there was of it. */
export async function withdrawAdapter(adapters: string, name: string): Promise<void> {
  const copy = beside(adapters, name)
  await rename(join(adapters, name), copy)
  await rm(copy, { recursive: true, force: true })
}

/** Removes what a server left that was killed while it published or withdrew. */
export async function sweepUnpublished(adapters: string): Promise<void> {
  for (const name of await readdir(adapters))
    if (/^\.ft:.*\.tmp$/.test(name)) await rm(join(adapters, name), { recursive: true, force: true })
}
