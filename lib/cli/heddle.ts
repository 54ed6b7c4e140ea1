#!/usr/bin/env node
/** The `heddle` command. Each subcommand is a file of its own; this one puts them together and ends the process. */
import { Command, CommanderError } from 'commander'
import { adaptersCommand } from './adapters.js'
import { buildCommand } from './build.js'
import { chatCommand } from './chat.js'
import { doctorCommand } from './doctor.js'
import { evalCommand } from './eval.js'
import { exportCommand } from './export.js'
import { generateCommand } from './generate.js'
import { initCommand } from './init.js'
import { inspectCommand } from './inspect.js'
import { mergeCommand } from './merge.js'
import { pullCommand } from './pull.js'
import { quickstartCommand } from './quickstart.js'
import { serveCommand } from './serve.js'
import { packageVersion } from './session.js'
import { trainCommand } from './train.js'

const commands = [
  quickstartCommand,
  initCommand,
  trainCommand,
  evalCommand,
  generateCommand,
  chatCommand,
  serveCommand,
  mergeCommand,
  exportCommand,
  inspectCommand,
  adaptersCommand,
  pullCommand,
  doctorCommand,
  buildCommand,
]

const exitCodes = `
Exit codes: 0 done, 1 failed, 2 wrong use, 130 interrupted.
Environment: HEDDLE_NUM_THREADS (threads), HF_TOKEN and HF_ENDPOINT (hub), HF_HOME (cache).`

function heddle(): Command {
  const root = new Command('heddle')
    .description('Fine-tune, evaluate, run and merge open language models, in this process, without Python.')
    .version(packageVersion())
    .showSuggestionAfterError()
    .showHelpAfterError('(--help shows what there is)')
    .addHelpText(
      'after',
      `
Examples:
  $ heddle quickstart
  $ heddle train --model HuggingFaceTB/SmolLM2-135M-Instruct --data support.jsonl --output adapters/support
  $ heddle generate --model HuggingFaceTB/SmolLM2-135M-Instruct --adapter adapters/support "How do I log in?"

A model is a Hugging Face folder, a .gguf file, or a hub id such as HuggingFaceTB/SmolLM2-135M-Instruct.
${exitCodes}`,
    )
  for (const make of commands) root.addCommand(make().copyInheritedSettings(root).exitOverride())
  return root.exitOverride()
}

// A reader that has seen enough (`heddle generate … | head`) is no failure.
process.stdout.on('error', (error: NodeJS.ErrnoException) => {
  if (error.code === 'EPIPE') process.exit(0)
  throw error
})

try {
  await heddle().parseAsync()
} catch (error) {
  if (!(error instanceof CommanderError)) throw error
  process.exitCode = error.exitCode === 0 ? 0 : 2
}
