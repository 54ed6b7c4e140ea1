// Objectives know rows by their columns as `readExamples` does: one way to recognise them, the shapes of docs/guides/data.md.
import { writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import test from 'ava'
import {
  cosineSimilarity,
  dpo,
  HeddleError,
  loadEncoder,
  loadModel,
  loadSequenceClassifier,
  multipleNegatives,
  type Objective,
  sequenceClassification,
} from '../lib/index.js'
import type { Network } from '../lib/nn/network.js'
import type { ExampleData } from '../lib/objectives/example_data.js'
import type { Tokenizer } from '../lib/tokenize/tokenizer.js'
import { temporaryFolder } from './support/temporary_folder.js'
import { tinyEncoderFolder, tinyModelFolder } from './tiny_model.js'

type Rows = readonly Readonly<Record<string, unknown>>[]
type Data = ExampleData<unknown, unknown>

async function opened<N extends Network>(
  { network, tokenizer }: { readonly network: N; readonly tokenizer: Tokenizer },
  objective: Objective<N>,
  rows: Rows,
): Promise<Data> {
  const path = join(temporaryFolder(), 'rows.jsonl')
  await writeFile(path, rows.map((row) => JSON.stringify(row)).join('\n'))
  return (await objective.open(path, { tokenizer, network, maxLength: 64, evaluationFraction: 0, seed: 0 })) as Data
}

test('pairs: query and answer for anchor and positive; similarity for score', async (t) => {
  const model = await loadEncoder(await tinyEncoderFolder())
  const found = await opened(model, multipleNegatives() as Objective<never>, [
    { query: 'warp', answer: 'lengthwise' },
    { query: 'weft' },
  ])
  t.is(found.size, 1)
  t.regex(found.description, /rows\.jsonl: anchor and positive \(query, answer\); 1 example, 1 row skipped$/)
  const scored = [{ sentence1: 'warp', sentence2: 'weft', similarity: '0.5' }]
  t.like((await opened(model, cosineSimilarity() as Objective<never>, scored)).examples[0], { score: 0.5 })
  const error = await t.throwsAsync(opened(model, multipleNegatives() as Objective<never>, scored))
  t.regex(error?.message ?? '', /expected "anchor" and "positive", got two sentences with a score/)
  await model.dispose()
})

test('classification: sentence and class; named columns; two texts are refused, not cut to one', async (t) => {
  const model = await loadSequenceClassifier(await tinyEncoderFolder(), { labels: ['no', 'yes'] })
  const objective = sequenceClassification() as Objective<never>
  t.like((await opened(model, objective, [{ sentence: 'a', class: 'yes' }])).examples[0], { label: 1 })
  const named = sequenceClassification({ textColumn: 'body' }) as Objective<never>
  t.like((await opened(model, named, [{ body: 'a', text: 'not this', label: 'no' }])).examples[0], { label: 0 })
  const pairs = [{ text: 'a', text_pair: 'b', label: 'yes' }]
  await t.throwsAsync(opened(model, objective, pairs), { instanceOf: HeddleError, message: /one text with a label/ })
  t.throws(() => sequenceClassification({ textcolumn: 'x' } as object), { message: /Did you mean "textColumn"/ })
  await model.dispose()
})

test('preferences: the prompt may stand within both answers', async (t) => {
  const folder = await tinyModelFolder()
  const template = '{% for m in messages %}{{ m.role }}: {{ m.content }}\\n{% endfor %}'
  await writeFile(
    join(folder, 'tokenizer_config.json'),
    JSON.stringify({ eos_token: '<eos>', chat_template: template }),
  )
  const model = await loadModel(folder)
  const said = (content: string) => ({ role: 'assistant', content })
  const asked = { role: 'user', content: 'Warp?' }
  const whole = { chosen: [asked, said('yes')], rejected: [asked, said('no')] }
  const apart = { prompt: 'Warp?', chosen: [said('yes')], rejected: [said('no')] }
  const [first, second] = (
    await Promise.all([whole, apart].map((row) => opened(model, dpo() as Objective<never>, [row])))
  ).map(({ examples }) => examples)
  t.deepEqual(first, second)
  await model.dispose()
})
