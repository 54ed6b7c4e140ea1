/** A served heddle-tiny: a copy with a chat template that knows tools, and adapters of random numbers. */
import { cp, readFile, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import OpenAI from 'openai'
import { loadModel, lora, type Model, write } from '../../lib/index.js'
import { type RunningServer, type ServerOptions, startServer } from '../../lib/serve/index.js'
import { randomNumbers } from '../random_numbers.js'
import { temporaryFolder } from './temporary_folder.js'

const original = fileURLToPath(new URL('../../../models/heddle-tiny', import.meta.url))

/** As that of Qwen and Hermes, in short. */
export const toolTemplate = `{% if tools %}system: Call functions as <tool_call>{"name": …, "arguments": …}</tool_call>. There are:
{% for tool in tools %}{{ tool | tojson }}
{% endfor %}<|endoftext|>
{% endif %}{% for message in messages %}{{ message.role }}{% if message.name %} ({{ message.name }}){% endif %}: {{ message.content }}{% for call in message.tool_calls or [] %}<tool_call>
{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}
</tool_call>{% endfor %}<|endoftext|>
{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}`

/** The model's folder, with another chat template. */
export async function tinyFolder(template: string | null = toolTemplate): Promise<string> {
  const folder = join(temporaryFolder(), 'heddle-tiny')
  await cp(original, folder, { recursive: true })
  const path = join(folder, 'tokenizer_config.json')
  const { chat_template: _, ...config } = JSON.parse(await readFile(path, 'utf8')) as Record<string, unknown>
  await writeFile(path, JSON.stringify(template === null ? config : { ...config, chat_template: template }))
  return folder
}

/** Writes adapters of random numbers, each other than the others. */
export async function writeAdapters(model: Model, folder: string, names: readonly string[]): Promise<void> {
  for (const [index, name] of names.entries()) {
    const adapter = await model.attach(lora({ r: 4, target_modules: ['q_proj', 'v_proj'] }))
    for (const [at, value] of [...adapter.parameters().values()].entries())
      write(
        value,
        randomNumbers(value.size, 100 * index + at).map((number) => 0.3 * number),
      )
    await adapter.save(join(folder, name))
  }
}

/** A server with its model and a client. */
export interface Served {
  readonly server: RunningServer
  readonly model: Model
  readonly client: OpenAI
  /** The adapters' folder. */
  readonly adapters: string
  close(): Promise<void>
}

export const clientOf = ({ url }: { readonly url: string }): OpenAI =>
  new OpenAI({ baseURL: `${url}/v1`, apiKey: 'none', maxRetries: 0 })

/** Serves the copy at a free port. */
export async function serveTiny({
  template,
  adapters = [],
  ...options
}: Partial<Omit<ServerOptions, 'model' | 'adapters'>> & {
  readonly template?: string | null
  readonly adapters?: readonly string[]
} = {}): Promise<Served> {
  const model = await loadModel(await tinyFolder(template))
  const data = temporaryFolder()
  await writeAdapters(model, join(data, 'adapters'), adapters)
  const server = await startServer({ model, data, port: 0, logger: false, ...options })
  return {
    server,
    model,
    client: clientOf(server),
    adapters: join(data, 'adapters'),
    close: async () => {
      await server.close()
      await model.dispose()
    },
  }
}
