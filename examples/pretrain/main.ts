/**
 * Makes the language model that ships in models/heddle-tiny, from nothing but public-domain text: learns a byte-level
 * BPE vocabulary, draws random weights, trains all of them, and saves a Hugging Face folder.
 *
 *   node dist/examples/pretrain/main.js            the shipped model (about 15 minutes on 2 cores)
 *   node dist/examples/pretrain/main.js --ci       a few steps on a part of the text, into a temporary folder
 */
import { mkdir, mkdtemp, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { adamw, loadModel, train, writeRandomCheckpoint } from '../../lib/index.js'
import { tokenizerJson, trainBytePairs } from './byte_pair_encoding.js'
import { loadAddresses } from './corpus.js'

const isShort = process.argv.includes('--ci')
const endOfText = '<|endoftext|>'
/** The model has learned no conversations; this is the form in which it can be taught some. */
const chatTemplate = `{% for message in messages %}{{ message.role }}: {{ message.content }}${endOfText}
{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}`
const config = {
  architectures: ['LlamaForCausalLM'],
  model_type: 'llama',
  vocab_size: isShort ? 512 : 4096,
  hidden_size: isShort ? 64 : 256,
  intermediate_size: isShort ? 128 : 704,
  num_hidden_layers: isShort ? 2 : 4,
  num_attention_heads: 4,
  num_key_value_heads: 2,
  max_position_embeddings: 512,
  rms_norm_eps: 1e-5,
  rope_theta: 10000,
  tie_word_embeddings: true,
  bos_token_id: 0,
  eos_token_id: 0,
}

const root = fileURLToPath(new URL('../../../', import.meta.url))
const work = await mkdtemp(join(tmpdir(), 'heddle-pretrain-'))
const target = isShort ? join(work, 'out') : join(root, 'models', 'heddle-tiny')
try {
  const texts = (await loadAddresses()).slice(0, isShort ? 4 : undefined)
  console.log(`${texts.length} texts, ${(texts.join('').length / 1e6).toFixed(1)} million characters`)
  const data = join(work, 'texts.jsonl')
  await writeFile(data, texts.map((text) => `${JSON.stringify({ text })}\n`).join(''))

  const start = join(work, 'start')
  await mkdir(start)
  const vocabulary = trainBytePairs(texts.join('\n'), config.vocab_size - 1)
  await writeFile(join(start, 'tokenizer.json'), JSON.stringify(tokenizerJson(vocabulary, endOfText)))
  const tokenizerConfig = {
    tokenizer_class: 'PreTrainedTokenizerFast',
    eos_token: endOfText,
    bos_token: endOfText,
    chat_template: chatTemplate,
  }
  await writeFile(join(start, 'tokenizer_config.json'), JSON.stringify(tokenizerConfig))
  await writeRandomCheckpoint(start, config, { seed: 1 })

  const model = await loadModel(start, { precision: 'bf16' })
  const run = train(model, {
    data,
    full: true,
    evaluationFraction: 0.02,
    batchSize: isShort ? 4 : 16,
    maxLength: 256,
    optimizer: adamw({ lr: 2e-3, beta2: 0.95, weightDecay: 0.1 }),
    ...(isShort ? { maxSteps: 5 } : { epochs: 2 }),
    evaluateEvery: 250,
    seed: 1,
  })
  for await (const { index, total, loss, tokensPerSecond, evaluation } of run) {
    if (index % 50 === 0 || index === total || index === 1)
      console.log(`step ${index}/${total}  loss ${loss.toFixed(3)}  ${tokensPerSecond.toFixed(0)} tokens/s`)
    if (evaluation) console.log(`held-out loss ${evaluation.loss.toFixed(3)}`)
  }
  await model.save(target, { dtype: 'bf16' })
  for await (const text of model.generate('The people of the United States', { maxTokens: 40, chat: false }))
    process.stdout.write(text)
  console.log(`\nsaved to ${target}`)
  await model.dispose()
} finally {
  await rm(work, { recursive: true, force: true })
}
