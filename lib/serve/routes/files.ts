/** `/v1/files`: data to fine-tune with. */
import multipart, { type MultipartFile } from '@fastify/multipart'
import type { FastifyInstance, FastifyRequest } from 'fastify'
import { z } from 'zod'
import type { UploadRow } from '../jobs/store.js'
import { type ReceivedFile, tooLarge, type Uploads } from '../jobs/uploads.js'
import { invalidRequest, OpenAiError } from '../openai/error.js'
import { maybe, queryInteger, readBody } from '../openai/request.js'

/** Options of {@link fileRoutes}. */
export interface FileRouteOptions {
  readonly uploads: Uploads
}

/** Most files of a page, even where more are asked for: they would hold the event loop. */
const mostRows = 1000

const listSchema = z.strictObject({
  after: maybe(z.string()),
  limit: queryInteger(1, 10_000),
  order: maybe(z.enum(['asc', 'desc'])),
  purpose: maybe(z.string()),
})

type WithId = { readonly Params: { readonly id: string } }

/** Adds the routes. */
export async function fileRoutes(app: FastifyInstance, { uploads }: FileRouteOptions): Promise<void> {
  const { store, limits } = uploads
  await app.register(multipart, {
    limits: { files: 1, fields: 8, fieldSize: 1000, fieldNameSize: 100, fileSize: limits.fileBytes },
    throwFileSizeLimit: false,
  })
  const named = (id: string): UploadRow => {
    const row = store.upload(id)
    if (row) return row
    throw noSuchFile(id)
  }
  app.post('/v1/files', async (request) => {
    if (!request.isMultipart()) throw invalidRequest('Expected a multipart/form-data body with a file.', 'file')
    // Fields around the file are small.
    if (Number(request.headers['content-length'] ?? 0) > limits.fileBytes + 2 ** 16)
      throw tooLarge(`The file is larger than ${limits.fileBytes} bytes.`)
    return fileOf(await receive(request, uploads))
  })
  app.get('/v1/files', async ({ query }) => {
    const { limit = mostRows, order = 'desc', ...page } = readBody(listSchema, query)
    const { data, has_more } = store.uploads({ ...page, order, limit: Math.min(limit, mostRows) })
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

/** Takes a file in; what comes with it may stand before or behind it. */
async function receive(request: FastifyRequest, uploads: Uploads): Promise<UploadRow> {
  const received: ReceivedFile[] = []
  try {
    let purpose: unknown
    for await (const part of request.parts()) {
      if (part.type === 'field' && part.fieldname === 'purpose') purpose = part.value
      else if (part.type === 'file' && part.fieldname === 'file') received.push(await receivePart(part, uploads))
      else throw unexpectedPart(part.fieldname)
    }
    const [file] = received
    if (!file) throw invalidRequest("Missing required parameter: 'file'.", 'file', 'missing_required_parameter')
    expectPurpose(purpose)
    expectFile(file)
    const row = await uploads.keep(file, 'fine-tune')
    received.pop()
    return row
  } catch (error) {
    throw isOfForm(error) ? invalidRequest(`The form cannot be read: ${error.message}.`) : error
  } finally {
    for (const file of received) await uploads.drop(file)
  }
}

/** What the parser finds wrong with a form is a plain error without the code that failures of the disk have. */
const isOfForm = (error: unknown): error is Error =>
  error instanceof Error && error.constructor === Error && !('code' in error)

const unexpectedPart = (name: string): OpenAiError =>
  name === 'file' || name === 'purpose'
    ? invalidRequest(
        `Invalid type for '${name}': expected ${name === 'file' ? 'a file' : 'a text'}.`,
        name,
        'invalid_type',
      )
    : invalidRequest(`Unknown parameter: '${name}'.`, name, 'unknown_parameter')

async function receivePart({ file, filename }: MultipartFile, uploads: Uploads): Promise<ReceivedFile> {
  const received = await uploads.receive(file, labelOf(filename))
  if (!file.truncated) return received
  await uploads.drop(received)
  throw tooLarge(`The file is larger than ${uploads.limits.fileBytes} bytes.`)
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
