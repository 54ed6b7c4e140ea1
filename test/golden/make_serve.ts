/**
 * Writes `serve/` and `serve_jobs/`: what curl sends to a served heddle-tiny, and what it gets. Look at the difference before you keep it.
 *
 *   node dist/test/golden/make_serve.js
 */
import { writeFile } from 'node:fs/promises'
import { fileURLToPath } from 'node:url'
import { jobTranscripts } from '../support/job_transcripts.js'
import { serveTiny } from '../support/serve.js'
import { requests, transcript } from '../support/transcripts.js'

const folderOf = (name: string): string => fileURLToPath(new URL(`../../../test/golden/${name}/`, import.meta.url))
const { server, close } = await serveTiny({ adapters: ['shout'] })
for (const [name, asked] of Object.entries(requests))
  await writeFile(`${folderOf('serve')}${name}.txt`, await transcript(server.url, asked))
for await (const [name, text] of jobTranscripts(server.url))
  await writeFile(`${folderOf('serve_jobs')}${name}.txt`, text)
await close()
