/** `heddle build`: builds the native core from source, where no package for this platform is installed. */
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { Command } from 'commander'
import { packageFile } from './session.js'

export const buildCommand = (): Command =>
  new Command('build')
    .description(
      'Build the native core on this machine, for its compiler and libraries. Says what is missing, if anything.',
    )
    .action(async () => {
      const child = spawn(process.execPath, [packageFile('install/addon.mjs')], { stdio: 'inherit' })
      const [code] = (await once(child, 'exit')) as [number | null]
      process.exitCode = code ?? 1
    })
