/** tiny-llama (random weights, 2 layers) with a tokenizer of single bytes, as a model folder made for a test. */

import { cp, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { Dataset } from '../lib/data/dataset.js'
import { loadModel, type Model } from '../lib/model.js'
import { temporaryFolder } from './support/temporary_folder.js'

const original = fileURLToPath(new URL('../../test/golden/tiny-llama', import.meta.url))

/** Makes the model's folder. */
export async function tinyModelFolder(): Promise<string> {
  const folder = join(temporaryFolder(), 'tiny')
  await cp(original, folder, { recursive: true })
  await writeFile(join(folder, 'tokenizer.json'), JSON.stringify(byteTokenizer()))
  await writeFile(join(folder, 'tokenizer_config.json'), JSON.stringify({ eos_token: '<eos>' }))
  return folder
}

/** A folder of classifier-bert (random weights, 2 layers) with the same tokenizer. */
export async function tinyEncoderFolder(): Promise<string> {
  const folder = join(temporaryFolder(), 'tiny-encoder')
  await cp(join(original, '..', 'classifier-bert'), folder, { recursive: true })
  await writeFile(join(folder, 'tokenizer.json'), JSON.stringify(byteTokenizer()))
  await writeFile(join(folder, 'tokenizer_config.json'), JSON.stringify({ eos_token: '<eos>' }))
  return folder
}

export const tinyModel = async (): Promise<Model> => loadModel(await tinyModelFolder())

/** A text with enough structure to be learned from. */
export const proverbs = Array.from(
  { length: 40 },
  (_, i) => `${i}. ${['A stitch in time saves nine.', 'Still waters run deep.', 'Haste makes waste.'][i % 3]}\n`,
).join('')

export async function textFile(text: string = proverbs): Promise<string> {
  const path = join(temporaryFolder(), 'data.txt')
  await writeFile(path, text)
  return path
}

export const tinyDataset = async (model: Model, maxLength = 32, evaluationFraction = 0): Promise<Dataset> =>
  Dataset.open(await textFile(), model.tokenizer, { maxLength, evaluationFraction })

/** Token 0 ends a text, token 1 + b is byte b. */
function byteTokenizer(): unknown {
  const vocab = Object.fromEntries([['<eos>', 0], ...byteCharacters().map((char, byte) => [char, byte + 1] as const)])
  const byteLevel = { type: 'ByteLevel', add_prefix_space: false, trim_offsets: true, use_regex: true }
  return {
    version: '1.0',
    truncation: null,
    padding: null,
    added_tokens: [
      { id: 0, content: '<eos>', single_word: false, lstrip: false, rstrip: false, normalized: false, special: true },
    ],
    normalizer: null,
    pre_tokenizer: byteLevel,
    post_processor: null,
    decoder: byteLevel,
    model: { type: 'BPE', vocab, merges: [] },
  }
}

/** How byte-level BPE spells bytes: printable ones as themselves, the others as characters from U+0100 on. */
function byteCharacters(): string[] {
  let next = 0x100
  const isPrintable = (byte: number): boolean =>
    (byte >= 0x21 && byte <= 0x7e) || (byte >= 0xa1 && byte <= 0xac) || byte >= 0xae
  return Array.from({ length: 256 }, (_, byte) => String.fromCharCode(isPrintable(byte) ? byte : next++))
}
