/**
 * Teaches MiniLM which passages of a book follow each other: the first half of a paragraph is to find the second half
 * among those of all held-out paragraphs. The text is Moby-Dick's opening, which ships with Heddle.
 *
 *   node dist/examples/embed/main.js [encoder] [--ci]     a folder or hub id; default: all-MiniLM-L6-v2, fetched once
 */
import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { adamw, loadEncoder, lora, multipleNegatives, train } from '../../lib/index.js'
import { fetchModel } from '../../test/models/fetch.js'

const isShort = process.argv.includes('--ci')
const source = process.argv.slice(2).find((argument) => !argument.startsWith('--')) ?? (await fetchModel('minilm'))
const book = await readFile(fileURLToPath(new URL('../../../examples/data/quickstart.txt', import.meta.url)), 'utf8')

/** Sentences in a row, as pairs of what comes first and what follows. */
const sentences = book.replace(/\s+/g, ' ').match(/[^.!?]{40,}[.!?]/g) ?? []
const pairs = sentences.slice(1).map((positive, i) => ({ anchor: sentences[i]!.trim(), positive: positive.trim() }))
const rows = isShort ? pairs.slice(0, 96) : pairs

const folder = await mkdtemp(join(tmpdir(), 'heddle-embed-'))
const data = join(folder, 'pairs.jsonl')
await writeFile(data, rows.map((row) => `${JSON.stringify(row)}\n`).join(''))

const model = await loadEncoder(source)
const adapter = await model.attach(lora({ r: 8, lora_alpha: 16 }))
const steps = train(model, {
  objective: multipleNegatives({ pooling: model.settings.pooling }),
  data,
  adapter,
  evaluationFraction: 0.2,
  epochs: isShort ? 1 : 3,
  batchSize: 16,
  maxLength: 64,
  evalOnStart: true,
  optimizer: adamw({ lr: 3e-4 }),
  onEvaluation: ({ step, evaluation }) =>
    console.log(
      `after step ${step}: recall@1 ${evaluation.recallAt1.toFixed(3)}, recall@10 ${evaluation.recallAt10.toFixed(3)}, ` +
        `mean reciprocal rank ${evaluation.meanReciprocalRank.toFixed(3)} over ${evaluation.examples} held-out pairs`,
    ),
})
for await (const { index, total, loss } of steps)
  if (index % 5 === 0) console.log(`step ${index}/${total}  loss ${loss.toFixed(3)}`)

const [vector] = await model.embed([rows[0]!.anchor], { adapter })
console.log(`A vector of ${vector!.length} numbers for: ${rows[0]!.anchor.slice(0, 60)}…`)
await model.dispose()
await rm(folder, { recursive: true })
