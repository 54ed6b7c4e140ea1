/** `heddle merge`: a model with an adapter's change worked into its weights, as a Hugging Face folder. */
import { type Command, Option } from 'commander'
import { type CommonFlags, command, inSession, modelOption, withRequired } from './session.js'

interface Flags extends CommonFlags {
  readonly model: string
  readonly adapter: string
  readonly output: string
  readonly dtype: 'f32' | 'bf16' | 'f16'
}

export const mergeCommand = (): Command =>
  withRequired(
    command('merge'),
    modelOption(),
    new Option('-a, --adapter <folder>', 'PEFT adapter folder'),
    new Option('-o, --output <folder>', 'folder to write'),
  )
    .description('Work an adapter into the weights and write the model as a Hugging Face folder.')
    .addOption(new Option('--dtype <type>', 'how weights are stored').choices(['f32', 'bf16', 'f16']).default('bf16'))
    .addHelpText(
      'after',
      `
Example:
  $ heddle merge --model HuggingFaceTB/SmolLM2-135M --adapter adapters/support --output models/support`,
    )
    .action((flags: Flags) =>
      inSession(flags, {}, async (session) => {
        const { model: source, adapter: adapterFolder, output, dtype } = flags
        const model = await session.loadModel({ model: source, precision: 'f32' })
        const adapter = await model.loadAdapter(adapterFolder)
        await model.merge(adapter)
        await model.save(output, { dtype })
        session.report('merged', { model: source, adapter: adapterFolder, output, dtype }, `Model: ${output}`)
      }),
    )
