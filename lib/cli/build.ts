/** `heddle build`: builds the native core from source, where no package for this platform is installed. */
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { Command } from 'commander'
import { packageFile } from './session.js'

interface BuildFlags {
  readonly cuda?: boolean
  readonly fetchToolkit?: boolean
}

export const buildCommand = (): Command =>
  new Command('build')
    .description(
      'Build the native core on this machine, for its compiler and libraries. Says what is missing, if anything.',
    )
    .option('--cuda', 'build the CUDA addon instead, with the toolkit that CUDA_HOME, PATH or /usr/local/cuda has')
    .option('--fetch-toolkit', "with --cuda: get the toolkit from Python's package index where there is none (1.7 GB)")
    .action(async ({ cuda = false, fetchToolkit = false }: BuildFlags) => {
      const script = packageFile(cuda ? 'install/cuda.mjs' : 'install/addon.mjs')
      const child = spawn(process.execPath, [script, ...(fetchToolkit ? ['--fetch-toolkit'] : [])], {
        stdio: 'inherit',
      })
      const [code] = (await once(child, 'exit')) as [number | null]
      process.exitCode = code ?? 1
    })
