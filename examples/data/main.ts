/**
 * Reads data of several kinds and shows what Heddle makes of it: which shape, how many tokens, what was wrong.
 *
 *   node dist/examples/data/main.js [file, folder or glob]
 */
import { mkdtemp, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { Dataset, loadModel, readExamples } from '../../lib/index.js'

const file = (path: string) => fileURLToPath(new URL(`../../../${path}`, import.meta.url))
const source = process.argv.slice(2).find((argument) => !argument.startsWith('--'))
const folder = await mkdtemp(join(tmpdir(), 'heddle-data-'))
const write = async (name: string, content: string): Promise<string> => {
  await writeFile(join(folder, name), content)
  return join(folder, name)
}

const files = source
  ? [source]
  : [
      file('examples/data/support.jsonl'),
      await write('questions.csv', 'question,answer\nWhich way does the warp run?,Lengthwise.\n"And the weft?"\n'),
      await write('alpaca.json', '[{"instruction": "Translate.", "input": "Kette", "output": "warp"}, {"output": 7}]'),
      file('examples/data/quickstart.txt'),
    ]

const model = await loadModel(file('models/heddle-tiny'))
for (const path of files) {
  const data = await Dataset.open(path, model.tokenizer, { maxLength: 256, packing: true, cacheFolder: folder })
  console.log(data.description)
  for (const { line, reason } of data.skipped.slice(0, 3)) console.log(`  line ${line}: ${reason}`)
  for await (const { tokens, rows, length } of data.batches({ batchSize: 4 })) {
    console.log(`  first batch: ${tokens} tokens to learn in ${rows} rows of ${length}`)
    break
  }
  data.close()
}

if (!source) {
  const mail = await write('mail.csv', 'text,label\nBuy now!,spam\nSee you at the loom.,ham\n')
  for await (const { examples, description } of readExamples('classification', mail)) {
    console.log(description)
    for (const { example } of examples) console.log(`  ${example.label}: ${example.text}`)
  }
}
await model.dispose()
await rm(folder, { recursive: true })
