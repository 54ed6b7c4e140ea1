/** `/v1/files`: data to fine-tune with. */
import multipart from '@fastify/multipart'
import type { FastifyInstance, FastifyRequest } from 'fastify'
import { z } from 'zod'
import type { UploadRow } from '../jobs/store.js'
import type { ReceivedFile, Uploads } from '../jobs/uploads.js'
import { invalidRequest, OpenAiError } from '../openai/error.js'
import { integer, maybe, readBody } from '../openai/request.js'

/** What uploads may take. */
export interface UploadLimits {
  /** Most bytes of a file. */
  readonly fileBytes: number
  /** Most bytes of all files together. */
  readonly totalBytes: number
}

/** Options of {@link fileRoutes}. */
export interface FileRouteOptions {
  readonly uploads: Uploads
  readonly limits: UploadLimits
}

/** A field of a query is a text. */
const count = (most: number) => maybe(z.string().regex(/^\d+$/).transform(Number).pipe(integer(1, most)))

const listSchema = z.strictObject({
  after: maybe(z.string()),
  limit: count(10_000),
  order: maybe(z.enum(['asc', 'desc'])),
  purpose: maybe(z.string()),
})

type WithId = { readonly Params: { readonly id: string } }

/** Adds the routes. */
export async function fileRoutes(app: FastifyInstance, { uploads, limits }: FileRouteOptions): Promise<void> {
  const { store } = uploads
  await app.register(multipart, {
    limits: { files: 1, fields: 8, fieldSize: 1000, fieldNameSize: 100, fileSize: limits.fileBytes },
    throwFileSizeLimit: false,
  })
  const named = (id: string): UploadRow => {
    const row = store.upload(id)
    if (row) return row
    throw noSuchFile(id)
  }
  // Fields around the file are small.
  app.post('/v1/files', { bodyLimit: limits.fileBytes + 2 ** 16 }, async (request) => {
    if (!request.isMultipart()) throw invalidRequest('Expected a multipart/form-data body with a file.', 'file')
    return fileOf(await receive(request, uploads, limits))
  })
  app.get('/v1/files', async ({ query }) => {
    const { limit = 10_000, order = 'desc', ...page } = readBody(listSchema, query)
    const { data, has_more } = store.uploads({ ...page, order, limit })
    return { object: 'list', data: data.map(fileOf), ...ends(data), has_more }
  })
  app.get<WithId>('/v1/files/:id', async ({ params: { id } }) => fileOf(named(id)))
  app.get<WithId>('/v1/files/:id/content', async ({ params: { id } }, reply) => {
    const row = named(id)
    reply.headers({
      'content-type': 'application/jsonl',
      'content-length': row.bytes,
      'x-content-type-options': 'nosniff',
    })
    return reply.send(uploads.read(row))
  })
  app.delete<WithId>('/v1/files/:id', async ({ params: { id } }) => {
    await uploads.remove(named(id))
    return { id, object: 'file', deleted: true }
  })
}

/** 404 with the id, as OpenAI says it. */
export const noSuchFile = (id: string): OpenAiError =>
  new OpenAiError(404, {
    message: `No such File object: ${id.slice(0, 100)}`,
    type: 'invalid_request_error',
    param: 'id',
    code: null,
  })

/** The first and the last id of a page. */
export const ends = (data: readonly { readonly id: string }[]) => ({
  first_id: data[0]?.id ?? null,
  last_id: data.at(-1)?.id ?? null,
})

async function receive(request: FastifyRequest, uploads: Uploads, limits: UploadLimits): Promise<UploadRow> {
  let file: ReceivedFile | undefined
  let kept = false
  try {
    let purpose: unknown
    for await (const part of request.parts()) {
      if (part.type === 'field') {
        if (part.fieldname !== 'purpose')
          throw invalidRequest(`Unknown parameter: '${part.fieldname}'.`, part.fieldname, 'unknown_parameter')
        purpose = part.value
        continue
      }
      if (part.fieldname !== 'file')
        throw invalidRequest(`Unknown parameter: '${part.fieldname}'.`, part.fieldname, 'unknown_parameter')
      file = await uploads.receive(part.file, labelOf(part.filename))
      if (part.file.truncated) throw tooLarge(`The file is larger than ${limits.fileBytes} bytes.`)
    }
    if (!file) throw invalidRequest("Missing required parameter: 'file'.", 'file', 'missing_required_parameter')
    expectPurpose(purpose)
    expectFile(file)
    if (uploads.store.uploadedBytes + file.bytes > limits.totalBytes)
      throw tooLarge(`All files together may have ${limits.totalBytes} bytes. Delete some first.`)
    const row = await uploads.keep(file, 'fine-tune')
    kept = true
    return row
  } finally {
    if (file && !kept) await uploads.drop(file)
  }
}

function expectPurpose(purpose: unknown): void {
  if (purpose === undefined)
    throw invalidRequest("Missing required parameter: 'purpose'.", 'purpose', 'missing_required_parameter')
  if (purpose !== 'fine-tune')
    throw invalidRequest(
      `Invalid value: '${String(purpose).slice(0, 100)}'. Supported values are: 'fine-tune'.`,
      'purpose',
      'invalid_value',
    )
}

function expectFile({ filename, bytes }: ReceivedFile): void {
  if (!/\.jsonl$/i.test(filename))
    throw invalidRequest(
      'Invalid file format: files to fine-tune with are .jsonl, one conversation a line.',
      'file',
      'invalid_file_format',
    )
  if (bytes === 0) throw invalidRequest('The file is empty.', 'file', 'invalid_file_format')
}

/** What the client calls the file, fit to be shown: a name without folders and control characters. */
const labelOf = (filename: string): string =>
  filename
    .replaceAll(/\p{Cc}/gu, '')
    .replace(/^.*[/\\]/, '')
    .slice(-200)

const tooLarge = (message: string): OpenAiError =>
  new OpenAiError(413, { message, type: 'invalid_request_error', param: 'file', code: 'file_too_large' })

const fileOf = ({ id, bytes, created_at, filename, purpose }: UploadRow) => ({
  id,
  object: 'file',
  bytes,
  created_at,
  filename,
  purpose,
  status: 'processed',
  status_details: null,
})
