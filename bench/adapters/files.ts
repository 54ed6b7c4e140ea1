/** The examples of bench/adapters and of its experiments. */
import { mkdtemp, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { mails } from '../../examples/classify/mails.js'
import { permutation } from '../../lib/data/shuffle.js'
import { fetchModel } from '../../test/models/fetch.js'
import type { AdapterRun } from '../workers/adapter.js'

/** A model and the examples that it learns from, that its rate is chosen by, and that judge it. */
export interface Files extends Pick<AdapterRun, 'model' | 'training' | 'validation' | 'test' | 'steps'> {}

/** 640 mails to learn from, 128 by which the rate is chosen, 512 to judge; or other numbers, as the ends of the parts. */
export const mailFiles = async (ends: readonly [number, number, number] = [640, 768, 1280]): Promise<Files> => ({
  model: await fetchModel('minilm'),
  ...(await splitFiles(
    (await mails()).map((mail) => JSON.stringify(mail)),
    ends,
  )),
  steps: 40,
})

/** Mails of people, as texts: 160 to learn from, 24 by which the rate is chosen, 48 to judge; or other numbers. */
export async function textFiles(ends: readonly [number, number, number] = [160, 184, 232]): Promise<Files> {
  const texts = (await mails()).flatMap(({ text, label }) => (label === 'ham' ? [JSON.stringify({ text })] : []))
  return { model: await fetchModel('smollm2'), ...(await splitFiles(texts, ends)), steps: 15 }
}

/** Three files of the rows in an order that is the same everywhere, up to these places. */
async function splitFiles(
  rows: readonly string[],
  [training, validation, test]: readonly [number, number, number],
): Promise<Pick<Files, 'training' | 'validation' | 'test'>> {
  const order = [...(await permutation(rows.length, 0, 0))]
  const folder = await mkdtemp(join(tmpdir(), 'heddle-bench-adapters-'))
  const write = async (name: string, start: number, end: number): Promise<string> => {
    const path = join(folder, `${name}.jsonl`)
    await writeFile(
      path,
      order
        .slice(start, end)
        .map((index) => `${rows[index]}\n`)
        .join(''),
    )
    return path
  }
  return {
    training: await write('training', 0, training),
    validation: await write('validation', training, validation),
    test: await write('test', validation, test),
  }
}
