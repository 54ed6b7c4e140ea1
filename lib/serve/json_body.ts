/** JSON bodies: as long as their sender may send, UTF-8, and of so few parts that reading one never holds the event loop. */
import { isUtf8 } from 'node:buffer'
import type { Readable } from 'node:stream'
import type { FastifyInstance, FastifyRequest } from 'fastify'
import { pause } from '../graph/pause.js'

/** The most of each kind that a body may have. */
const most = {
  /** Strings, arrays and objects. */
  parts: 2 ** 14,
  /** Of an array or of all together; numbers, such as token ids, take less time than the other parts. */
  values: 2 ** 18,
  /** Of one object: a name is looked up, checked, and told of where nobody knows it. */
  members: 2 ** 10,
}

/** Takes bodies of this type alone. @param depth most arrays and objects within each other */
export function parseJsonWithin(app: FastifyInstance, depth: number): void {
  const parse = app.getDefaultJsonParser('error', 'error')
  app.removeAllContentTypeParsers()
  app.addContentTypeParser('application/json', async (request: FastifyRequest, payload: Readable) => {
    const body = await received(payload, request)
    if (!isUtf8(body)) throw refusal(400, 'The body is not UTF-8.')
    expectFew(measured(body, depth), depth)
    // Each part takes milliseconds for a body of a mebibyte: they need not come at once.
    await pause()
    const value = await new Promise((resolve, reject) => {
      parse(request, body.toString('utf8'), (error, value) => (error ? reject(error) : resolve(value)))
    })
    await pause()
    return value
  })
}

/** @throws 413 */
async function received(payload: Readable, { headers, limits }: FastifyRequest): Promise<Buffer> {
  const { bodyBytes } = limits
  const tooLarge = () => refusal(413, `The body has more than ${bodyBytes} bytes.`)
  if (Number(headers['content-length'] ?? 0) > bodyBytes) throw tooLarge()
  const chunks: Buffer[] = []
  let bytes = 0
  try {
    // The connection is still needed to say what is wrong.
    for await (const chunk of payload.iterator({ destroyOnReturn: false }) as AsyncIterable<Buffer>) {
      bytes += chunk.length
      if (bytes > bodyBytes) break
      chunks.push(chunk)
    }
  } catch {
    throw refusal(400, 'The body ended too early.')
  }
  if (bytes > bodyBytes) throw tooLarge()
  return Buffer.concat(chunks)
}

/** @throws 400 */
function expectFew({ depth, parts, values, members }: Measure, mostDepth: number): void {
  if (depth > mostDepth) throw refusal(400, `The body nests deeper than ${mostDepth} levels.`)
  if (parts > most.parts) throw refusal(400, `The body has more than ${most.parts} strings, arrays and objects.`)
  if (members > most.members) throw refusal(400, `The body has an object of more than ${most.members} members.`)
  if (values > most.values) throw refusal(400, `The body has more than ${most.values} values.`)
}

const refusal = (statusCode: number, message: string): Error => Object.assign(new Error(message), { statusCode })

const [quote, backslash, open, openArray, close, closeArray, comma] = [...'"\\{[}],'].map((char) => char.charCodeAt(0))

/** How much there is to read. */
interface Measure {
  /** Most brackets that are open at a time. */
  readonly depth: number
  readonly parts: number
  readonly values: number
  /** Of the largest object. */
  readonly members: number
}

/** Measures without reading; stops where it is deeper than `mostDepth`. */
function measured(json: Buffer, mostDepth: number): Measure {
  /** What is open at each level: the members of an object so far, or -1 for an array. */
  const opened = new Int32Array(mostDepth + 1).fill(-1)
  let [inside, depth, parts, values, members, inString] = [0, 0, 0, 1, 0, false]
  for (let i = 0; i < json.length; i += 1) {
    const byte = json[i]
    if (inString) {
      if (byte === backslash) i += 1
      else if (byte === quote) inString = false
    } else if (byte === quote) {
      inString = true
      parts += 1
    } else if (byte === open || byte === openArray) {
      inside += 1
      parts += 1
      depth = Math.max(depth, inside)
      if (depth > mostDepth) break
      opened[inside] = byte === open ? 1 : -1
    } else if (byte === close || byte === closeArray) inside = Math.max(0, inside - 1)
    else if (byte === comma) {
      values += 1
      if (opened[inside]! > 0) {
        opened[inside]! += 1
        members = Math.max(members, opened[inside]!)
      }
    }
  }
  return { depth, parts, values, members }
}
