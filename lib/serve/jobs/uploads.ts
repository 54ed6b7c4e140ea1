/** Uploaded files: each under an id that the server made, in one folder; what the client calls it is only a label. */
import { createReadStream, createWriteStream, type ReadStream } from 'node:fs'
import { mkdir, open, readdir, rename, rm } from 'node:fs/promises'
import { join } from 'node:path'
import type { Readable } from 'node:stream'
import { pipeline } from 'node:stream/promises'
import { syncFolder } from '../../formats/atomic_file.js'
import { OpenAiError } from '../openai/error.js'
import { newId, seconds } from '../openai/route.js'
import { uploadPath } from './settings.js'
import type { JobStore, UploadRow } from './store.js'

/** Bytes that wait beside their place for {@link Uploads.keep}. */
export interface ReceivedFile {
  readonly id: string
  readonly path: string
  readonly filename: string
  readonly bytes: number
}

export class Uploads {
  private constructor(
    readonly folder: string,
    readonly store: JobStore,
  ) {}

  /** Removes what uploads left that were cut off. */
  static async open(folder: string, store: JobStore): Promise<Uploads> {
    await mkdir(folder, { recursive: true })
    const known = new Set(store.uploadIds.map((id) => `${id}.jsonl`))
    for (const name of await readdir(folder))
      if (!known.has(name)) await rm(join(folder, name), { recursive: true, force: true })
    return new Uploads(folder, store)
  }

  /** Writes a stream beside its place. */
  async receive(content: Readable, filename: string): Promise<ReceivedFile> {
    const id = newId('file')
    const path = join(this.folder, `.${id}.tmp`)
    const target = createWriteStream(path, { flags: 'wx', mode: 0o600 })
    try {
      await pipeline(content, target)
      return { id, path, filename, bytes: target.bytesWritten }
    } catch (error) {
      await rm(path, { force: true })
      throw error
    }
  }

  /** Puts a file to its place, to stay. */
  async keep({ id, path, filename, bytes }: ReceivedFile, purpose: string): Promise<UploadRow> {
    const handle = await open(path, 'r+')
    await handle.sync().finally(() => handle.close())
    await rename(path, uploadPath(this.folder, id))
    await syncFolder(this.folder)
    this.store.addUpload({ id, filename, purpose, bytes, created_at: seconds() })
    return this.store.upload(id)!
  }

  async drop({ path }: ReceivedFile): Promise<void> {
    await rm(path, { force: true })
  }

  read({ id }: UploadRow): ReadStream {
    return createReadStream(uploadPath(this.folder, id))
  }

  /** @throws OpenAiError 409 while a job needs it */
  async remove({ id }: UploadRow): Promise<void> {
    const job = this.store.userOf(id)
    if (job !== undefined)
      throw new OpenAiError(409, {
        message: `The file '${id}' is needed by the fine-tuning job '${job}'. Cancel the job, or wait until it has ended.`,
        type: 'invalid_request_error',
        param: 'file_id',
        code: 'file_in_use',
      })
    this.store.removeUpload(id)
    await rm(uploadPath(this.folder, id), { force: true })
  }
}
