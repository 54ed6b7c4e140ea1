/** `heddle pull`: fetches a model from the Hugging Face hub into the cache that Hugging Face's own tools share. */
import type { Command } from 'commander'
import { HeddleError } from '../errors.js'
import { fetchFromHub, isHubId } from '../formats/hub.js'
import type { Progress } from './progress.js'
import { type CommonFlags, command, inSession } from './session.js'

interface Flags extends CommonFlags {
  readonly revision?: string
}

export const pullCommand = (): Command =>
  command('pull')
    .usage('<hub id> [options]')
    .description('Fetch a model from the Hugging Face hub, so that it is there offline. Goes on where it broke off.')
    .argument('<hub id>', 'such as HuggingFaceTB/SmolLM2-135M-Instruct')
    .option('--revision <name>', 'branch, tag or commit (default: main)')
    .addHelpText('after', '\nExamples:\n  $ heddle pull HuggingFaceTB/SmolLM2-135M-Instruct')
    .action((id: string, { revision, ...flags }: Flags) =>
      inSession(flags, {}, async (session) => {
        if (!isHubId(id))
          throw new HeddleError('ERR_HEDDLE_ARGUMENT', {
            place: 'pull',
            expected: 'a hub id such as HuggingFaceTB/SmolLM2-135M-Instruct',
            got: `"${id}"`,
          })
        let bar: Progress | undefined
        const folder = await fetchFromHub(id, {
          ...(revision === undefined ? {} : { revision }),
          signal: session.signal,
          onProgress: ({ loaded, total }) => {
            bar ??= session.progress(`Fetching ${id}`, total, 'bytes')
            bar.update(loaded, { total })
          },
        })
        bar?.stop()
        session.report('done', { id, folder }, folder)
      }),
    )
