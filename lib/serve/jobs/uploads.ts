/** Uploaded files: each under an id that the server made, in one folder; what the client calls it is only a label. */
import { createReadStream, createWriteStream, type ReadStream } from 'node:fs'
import { mkdir, open, readdir, rename, rm } from 'node:fs/promises'
import { join } from 'node:path'
import type { Readable } from 'node:stream'
import { pipeline } from 'node:stream/promises'
import { syncToDisk } from '../../formats/atomic_file.js'
import { OpenAiError } from '../openai/error.js'
import { newId, seconds } from '../openai/route.js'
import { uploadPath } from './settings.js'
import type { JobStore, UploadRow } from './store.js'

/** What uploads may take. */
export interface UploadLimits {
  /** Most bytes of a file. */
  readonly fileBytes: number
  /** Most bytes of all files together. */
  readonly totalBytes: number
}

/** Bytes that wait beside their place for {@link Uploads.keep}. */
export interface ReceivedFile {
  readonly id: string
  readonly path: string
  readonly filename: string
  readonly bytes: number
}

/** The folder of uploads and what is known about them. */
export class Uploads {
  /** Of all files, those on their way among them: many that come at once must not fill the disk. */
  #bytes: number

  private constructor(
    readonly folder: string,
    readonly store: JobStore,
    readonly limits: UploadLimits,
  ) {
    this.#bytes = store.uploadedBytes
  }

  /** Removes what uploads left that were cut off. */
  static async open(folder: string, store: JobStore, limits: UploadLimits): Promise<Uploads> {
    await mkdir(folder, { recursive: true })
    const known = new Set(store.uploadIds.map((id) => `${id}.jsonl`))
    for (const name of await readdir(folder))
      if (!known.has(name)) await rm(join(folder, name), { recursive: true, force: true })
    return new Uploads(folder, store, limits)
  }

  /** Writes a stream beside its place, to be kept or dropped. @throws OpenAiError 413 when there is no room for it */
  async receive(content: Readable, filename: string): Promise<ReceivedFile> {
    const id = newId('file')
    const file = { id, path: join(this.folder, `.${id}.tmp`), filename, bytes: 0 }
    try {
      const counted = (chunks: AsyncIterable<Buffer>) => this.#counted(chunks, file)
      await pipeline(content, counted, createWriteStream(file.path, { flags: 'wx', mode: 0o600 }))
      return file
    } catch (error) {
      await this.drop(file)
      throw error
    }
  }

  async *#counted(chunks: AsyncIterable<Buffer>, file: { bytes: number }): AsyncGenerator<Buffer, void, void> {
    for await (const chunk of chunks) {
      file.bytes += chunk.length
      this.#bytes += chunk.length
      if (this.#bytes > this.limits.totalBytes)
        throw tooLarge(`All files together may have ${this.limits.totalBytes} bytes. Delete some first.`)
      yield chunk
    }
  }

  /** Puts a file to its place, to stay. */
  async keep({ id, path, filename, bytes }: ReceivedFile, purpose: string): Promise<UploadRow> {
    const handle = await open(path, 'r+')
    await handle.sync().finally(() => handle.close())
    await rename(path, uploadPath(this.folder, id))
    await syncToDisk(this.folder)
    this.store.addUpload({ id, filename, purpose, bytes, created_at: seconds() })
    return this.store.upload(id)!
  }

  async drop({ path, bytes }: ReceivedFile): Promise<void> {
    await rm(path, { force: true })
    this.#bytes -= bytes
  }

  read({ id }: UploadRow): ReadStream {
    return createReadStream(uploadPath(this.folder, id))
  }

  /** @throws OpenAiError 409 while a job needs it */
  async remove({ id, bytes }: UploadRow): Promise<void> {
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
    this.#bytes -= bytes
  }
}

/** 413 */
export const tooLarge = (message: string): OpenAiError =>
  new OpenAiError(413, { message, type: 'invalid_request_error', param: 'file', code: 'file_too_large' })
