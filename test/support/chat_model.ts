/** The tiny model with a chat template, so that conversations can be trained on and asked. */
import { writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { tinyModelFolder } from '../tiny_model.js'

const template =
  "{% for message in messages %}{{ message['role'][0] + ':' + message['content'] }}" +
  "{% if message['role'] == 'assistant' %}{{ '<eos>' }}{% else %}{{ '\\n' }}{% endif %}{% endfor %}" +
  "{% if add_generation_prompt %}{{ 'a:' }}{% endif %}"

/** Makes the model's folder. */
export async function tinyChatFolder(): Promise<string> {
  const folder = await tinyModelFolder()
  const config = { eos_token: '<eos>', chat_template: template }
  await writeFile(join(folder, 'tokenizer_config.json'), JSON.stringify(config))
  return folder
}
