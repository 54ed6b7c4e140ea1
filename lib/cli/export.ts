/** `heddle export`: a model, with or without an adapter, in the form that other programs load. */
import { type Command, Option } from 'commander'
import { HeddleError } from '../errors.js'
import { exportGguf, exportGgufLora } from '../formats/gguf_export.js'
import { type CommonFlags, command, inSession, modelOption, withRequired } from './session.js'

interface Flags extends CommonFlags {
  readonly model: string
  readonly output: string
  readonly adapter?: string
  readonly lora?: boolean
  readonly type: 'f32' | 'f16' | 'bf16' | 'q8_0'
}

export const exportCommand = (): Command =>
  withRequired(
    command('export'),
    modelOption(),
    new Option('-o, --output <path>', 'a .gguf file (llama.cpp, Ollama), or a folder (Hugging Face)'),
  )
    .description('Write a model as one GGUF file or a Hugging Face folder; an adapter is worked into the weights.')
    .option('-a, --adapter <folder>', 'PEFT adapter folder')
    .option('--lora', "write the adapter alone, as a GGUF file for llama.cpp's --lora and Ollama's ADAPTER")
    .addOption(
      new Option('--type <type>', 'how matrices are stored; q8_0 in GGUF only')
        .choices(['f32', 'f16', 'bf16', 'q8_0'])
        .default('f16'),
    )
    .addHelpText(
      'after',
      `
Examples:
  $ heddle export --model HuggingFaceTB/SmolLM2-135M-Instruct --adapter adapters/support --output support.gguf --type q8_0
  $ heddle export --model model.gguf --adapter adapters/support --lora --output support-lora.gguf
  $ heddle export --model model.gguf --output models/plain`,
    )
    .action((flags: Flags) =>
      inSession(flags, {}, async (session) => {
        const { model: source, adapter: folder, output, type } = flags
        const isGguf = output.toLowerCase().endsWith('.gguf')
        if (type === 'q8_0' && !isGguf) throw misuse('--type f32, f16 or bf16 for a folder', '--type q8_0')
        if (flags.lora && (folder === undefined || !isGguf))
          throw misuse('--adapter and a .gguf output with --lora', folder === undefined ? 'no adapter' : output)
        const model = await session.loadModel({ model: source, precision: 'f32' })
        const adapter = folder === undefined ? undefined : await model.loadAdapter(folder)
        if (flags.lora) await exportGgufLora(adapter!, output)
        else {
          if (adapter) await model.merge(adapter)
          if (type !== 'q8_0' && !isGguf) await model.save(output, { dtype: type })
          else await exportGguf(model, output, { type })
        }
        session.report('exported', { model: source, adapter: folder, output, type }, output)
      }),
    )

const misuse = (expected: string, got: string): HeddleError =>
  new HeddleError('ERR_HEDDLE_ARGUMENT', { place: 'export', expected, got })
