/** A form that starts a training job: a file of conversations, a name, epochs. */
import { useRef, useState } from 'preact/hooks'
import { json, messageOf } from './api.js'
import { html } from './html.js'

/**
 * @param base name of the model that is trained
 * @param onStart there is a new job
 */
export function NewJob({ base, onStart }: { readonly base: string; readonly onStart: () => void }) {
  const [state, setState] = useState<'ready' | 'sending' | { readonly problem: string }>('ready')
  const place = useRef<HTMLDetailsElement>(null)
  const submit = async (event: Event): Promise<void> => {
    event.preventDefault()
    if (state === 'sending') return
    const form = event.currentTarget as HTMLFormElement
    setState('sending')
    try {
      await start(base, new FormData(form))
      form.reset()
      setState('ready')
      place.current!.open = false
      onStart()
    } catch (error) {
      setState({ problem: messageOf(error) })
    }
  }
  return html`<details class="new-job" ref=${place}>
    <summary>New job</summary>
    <form onSubmit=${submit}>
      <label>Conversations, one JSON object per line
        <input type="file" name="file" accept=".jsonl" required />
      </label>
      <label>Name
        <input type="text" name="suffix" required pattern="[A-Za-z0-9_.\\-]{1,64}" title="Letters, digits, and _ . -" autocomplete="off" />
      </label>
      <label>Epochs
        <input type="number" name="epochs" min="1" max="100" step="1" value="3" required />
      </label>
      <button type="submit" class="main" aria-disabled=${state === 'sending'}>${state === 'sending' ? 'Sending…' : 'Start'}</button>
    </form>
    ${typeof state === 'object' && html`<p class="problem" role="alert">${state.problem}</p>`}
  </details>`
}

async function start(model: string, fields: FormData): Promise<void> {
  const upload = new FormData()
  upload.set('purpose', 'fine-tune')
  upload.set('file', fields.get('file')!)
  const { id } = await json<{ readonly id: string }>('v1/files', { method: 'POST', body: upload })
  const hyperparameters = { n_epochs: Number(fields.get('epochs')) }
  const body = { model, training_file: id, suffix: fields.get('suffix'), hyperparameters }
  await json('v1/fine_tuning/jobs', { method: 'POST', body })
}
