/**
 * Writes `serve/`: what curl sends to a served heddle-tiny, and what it gets. Look at the difference before you keep it.
 *
 *   node dist/test/golden/make_serve.js
 */
import { writeFile } from 'node:fs/promises'
import { fileURLToPath } from 'node:url'
import { serveTiny } from '../support/serve.js'
import { requests, transcript } from '../support/transcripts.js'

const folder = fileURLToPath(new URL('../../../test/golden/serve/', import.meta.url))
const { server, close } = await serveTiny({ adapters: ['shout'] })
for (const [name, asked] of Object.entries(requests))
  await writeFile(`${folder}${name}.txt`, await transcript(server.url, asked))
await close()
