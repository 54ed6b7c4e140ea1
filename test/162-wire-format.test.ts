// The wire format: requests by curl, answers byte for byte as test/golden/serve has them (made by make_serve.ts).
import { readdirSync, readFileSync } from 'node:fs'
import { fileURLToPath } from 'node:url'
import test from 'ava'
import { type Served, serveTiny } from './support/serve.js'
import { requests, transcript } from './support/transcripts.js'

const folder = fileURLToPath(new URL('../../test/golden/serve/', import.meta.url))

let served: Served

test.before(async () => {
  served = await serveTiny({ adapters: ['shout'] })
})

test.after.always(() => served.close())

for (const [name, asked] of Object.entries(requests))
  test(`${name}: ${asked.path}`, async (t) => {
    t.is(await transcript(served.server.url, asked), readFileSync(`${folder}${name}.txt`, 'utf8'))
  })

test('there are no transcripts besides', (t) => {
  t.deepEqual(
    readdirSync(folder).toSorted(),
    Object.keys(requests)
      .map((name) => `${name}.txt`)
      .toSorted(),
  )
})
