/** `heddle inspect`: what is in a model, an adapter folder or a weight file, without loading any of it. */
import { stat } from 'node:fs/promises'
import { extname, join } from 'node:path'
import type { Command } from 'commander'
import { type JsonObject, openCheckpoint, readJsonFile } from '../formats/checkpoint.js'
import { openSafetensors } from '../formats/safetensors.js'
import type { StoredTensor } from '../formats/tensor_archive.js'
import { elementCount, shapeText } from '../tensor/dtype.js'
import { type CommonFlags, command, inSession } from './session.js'

interface Flags extends CommonFlags {
  readonly tensors?: boolean
  readonly filter?: string
}

export const inspectCommand = (): Command =>
  command('inspect')
    .usage('<model, adapter or file> [options]')
    .description('Show architecture, sizes and tensors of a model, an adapter folder, a .gguf or a .safetensors file.')
    .argument('<source>', 'Hugging Face or PEFT folder, .gguf or .safetensors file, or hub id')
    .option('--tensors', 'list every tensor')
    .option('--filter <text>', 'list the tensors whose names contain this text')
    .addHelpText(
      'after',
      '\nExamples:\n  $ heddle inspect model.gguf\n  $ heddle inspect adapters/support --tensors --filter layers.0',
    )
    .action((source: string, flags: Flags) =>
      inSession(flags, {}, async (session) => {
        const contents = await open(source, session.signal)
        try {
          const tensors = [...contents.tensors.values()]
          const summary = { ...contents.summary, ...totals(tensors) }
          session.report('summary', { source, ...summary }, lines(summary))
          if (flags.tensors || flags.filter !== undefined) {
            const listed = tensors.filter(({ name }) => name.includes(flags.filter ?? ''))
            const width = Math.max(0, ...listed.map(({ name }) => name.length))
            for (const { name, shape, encoding } of listed)
              session.report(
                'tensor',
                { name, shape, encoding },
                `${name.padEnd(width)}  ${encoding.padEnd(5)} ${shapeText(shape)}`,
              )
          }
        } finally {
          contents.close()
        }
      }),
    )

interface Contents {
  readonly tensors: ReadonlyMap<string, StoredTensor>
  readonly summary: Readonly<Record<string, unknown>>
  close(): void
}

async function open(source: string, signal: AbortSignal): Promise<Contents> {
  const adapterConfig = await readJsonFile(join(source, 'adapter_config.json'))
  if (adapterConfig) return openAdapter(source, adapterConfig)
  if (extname(source) === '.safetensors' && (await isFile(source))) {
    const archive = await openSafetensors(source)
    return { tensors: archive.tensors, summary: Object.fromEntries(archive.metadata), close: () => archive.close() }
  }
  const checkpoint = await openCheckpoint(source, { signal })
  return { tensors: checkpoint.tensors, summary: modelSummary(checkpoint.config), close: () => checkpoint.close() }
}

async function openAdapter(folder: string, config: JsonObject): Promise<Contents> {
  const archive = await openSafetensors(join(folder, 'adapter_model.safetensors'))
  const { peft_type, r, lora_alpha, base_model_name_or_path, target_modules } = config
  const summary = { adapter: peft_type, base: base_model_name_or_path, r, lora_alpha, target_modules }
  return { tensors: archive.tensors, summary, close: () => archive.close() }
}

/** What every architecture's config.json calls the same. */
function modelSummary(config: JsonObject): Readonly<Record<string, unknown>> {
  const { model_type, num_hidden_layers, hidden_size, num_attention_heads, num_key_value_heads, vocab_size } = config
  return {
    architecture: model_type,
    layers: num_hidden_layers,
    hidden: hidden_size,
    heads: num_attention_heads,
    'key/value heads': num_key_value_heads,
    vocabulary: vocab_size,
    positions: config.max_position_embeddings,
  }
}

function totals(tensors: readonly StoredTensor[]): Readonly<Record<string, unknown>> {
  const parameters = tensors.reduce((total, { shape }) => total + elementCount(shape), 0)
  const stored: Record<string, number> = {}
  for (const { encoding, shape } of tensors) stored[encoding] = (stored[encoding] ?? 0) + elementCount(shape)
  return {
    tensors: tensors.length,
    parameters,
    stored,
    'bytes as f32': 4 * parameters,
    'bytes as bf16': 2 * parameters,
  }
}

function lines(summary: Readonly<Record<string, unknown>>): string {
  const shown = Object.entries(summary).filter(([, value]) => value !== undefined && value !== null)
  return shown.map(([name, value]) => `${name.padEnd(16)} ${textOf(name, value)}`).join('\n')
}

function textOf(name: string, value: unknown): string {
  if (name.startsWith('bytes'))
    return `${(Number(value) / 2 ** 20).toLocaleString('en-US', { maximumFractionDigits: 0 })} MiB`
  if (typeof value === 'number') return value.toLocaleString('en-US')
  if (Array.isArray(value)) return value.join(', ')
  if (typeof value !== 'object') return String(value)
  return Object.entries(value as object)
    .map(([encoding, count]) => `${encoding} ${(count as number).toLocaleString('en-US')}`)
    .join(', ')
}

const isFile = (path: string): Promise<boolean> =>
  stat(path).then(
    (stats) => stats.isFile(),
    () => false,
  )
