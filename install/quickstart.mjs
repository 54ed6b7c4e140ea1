// `npm run quickstart`: from a bare clone to a fine-tuned model in one command.
import { join } from 'node:path'
import { exitOnFailure, prepare, Refusal, root, runNode } from './build.mjs'

await exitOnFailure(async () => {
  refuseSwallowedFlags()
  await prepare({ database: false })
  await runNode([join(root, 'dist/lib/cli/heddle.js'), 'quickstart', ...process.argv.slice(2)])
})

/** `npm run quickstart --data x` without the `--` gives the flags to npm, which drops them: say so instead of ignoring them. */
function refuseSwallowedFlags() {
  if (process.env.npm_lifecycle_event !== 'quickstart') return
  const swallowed = ['model', 'data', 'out', 'steps', 'epochs', 'help'].filter(
    (flag) => process.env[`npm_config_${flag}`],
  )
  if (swallowed.length === 0) return
  const example = swallowed.map((flag) => `--${flag}`).join(' … ')
  throw new Refusal(`npm took ${example} for itself. Put -- before it:\n\n  npm run quickstart -- ${example} …`)
}
