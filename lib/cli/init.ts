/** `heddle init`: writes a commented config file for `heddle train --config`. */
import { writeFile } from 'node:fs/promises'
import type { Command } from 'commander'
import { HeddleError } from '../errors.js'
import { type CommonFlags, command, inSession } from './session.js'
import { configTemplate } from './train_config.js'

interface Flags extends CommonFlags {
  readonly force?: boolean
}

export const initCommand = (): Command =>
  command('init')
    .description('Write a commented config file for a training run.')
    .argument('[file]', 'where to', 'heddle.yaml')
    .option('--force', 'overwrite a file that is there')
    .addHelpText('after', '\nExamples:\n  $ heddle init\n  $ heddle train --config heddle.yaml')
    .action((path: string, flags: Flags) =>
      inSession(flags, {}, async (session) => {
        try {
          await writeFile(path, configTemplate, { flag: flags.force ? 'w' : 'wx' })
        } catch (cause) {
          const isThere = (cause as NodeJS.ErrnoException).code === 'EEXIST'
          throw new HeddleError('ERR_HEDDLE_IO', {
            place: path,
            expected: isThere ? 'no such file yet' : 'a file that can be written',
            got: isThere ? 'one that is there' : (cause as Error).message,
            ...(isThere ? { hint: 'Use --force to overwrite it' } : {}),
            cause,
          })
        }
        session.report('done', { path }, `Wrote ${path}. Edit it, then:\n\n  heddle train --config ${path}\n`)
      }),
    )
