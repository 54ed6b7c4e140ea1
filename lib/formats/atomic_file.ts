/** Small files that are either whole or not there: written beside their place, synced, renamed. */
import { mkdir, open, rename, rm } from 'node:fs/promises'
import { dirname } from 'node:path'
import { HeddleError } from '../errors.js'

/**
 * Writes a file so that a reader, or a machine that loses power, sees the old content or all of the new one.
 * Missing folders are made.
 * @throws ERR_HEDDLE_IO
 */
export async function writeFileAtomic(path: string, content: string | Uint8Array): Promise<void> {
  const beside = `${path}.${process.pid}.tmp`
  try {
    await mkdir(dirname(path), { recursive: true })
    await writeSynced(beside, content)
    await rename(beside, path)
    await syncToDisk(dirname(path))
  } catch (cause) {
    await rm(beside, { force: true })
    const got = cause instanceof Error ? cause.message : String(cause)
    throw new HeddleError('ERR_HEDDLE_IO', { place: path, expected: 'a file that can be written', got, cause })
  }
}

/** As {@link writeFileAtomic}, with a value as indented JSON. */
export function writeJsonAtomic(path: string, value: unknown): Promise<void> {
  return writeFileAtomic(path, `${JSON.stringify(value, null, 2)}\n`)
}

/** Makes a file's content, or renames and new files in a folder, survive a loss of power. */
export async function syncToDisk(path: string): Promise<void> {
  const handle = await open(path, 'r')
  try {
    await handle.sync()
  } finally {
    await handle.close()
  }
}

async function writeSynced(path: string, content: string | Uint8Array): Promise<void> {
  const handle = await open(path, 'w')
  try {
    await handle.writeFile(content)
    await handle.sync()
  } finally {
    await handle.close()
  }
}
