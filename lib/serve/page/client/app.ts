/** The page: head, load, chat, models, jobs; or the question for a key. */
import { render } from 'preact'
import { useEffect, useRef, useState } from 'preact/hooks'
import type { PageModels } from '../messages.js'
import { hasKey, onKey, setKey, wantsKey } from './api.js'
import { Chat } from './chat.js'
import { short } from './format.js'
import { usePolled, useRedraw } from './hooks.js'
import { html } from './html.js'
import { Jobs } from './jobs.js'
import { Load } from './load.js'
import { Models } from './models.js'

const seconds = 5

function Page() {
  const redraw = useRedraw()
  useEffect(() => onKey(redraw), [])
  return wantsKey() ? html`<${KeyQuestion} />` : html`<${Server} />`
}

/** The key opens what its scopes say; the parts of the page that it does not open say so. */
function KeyQuestion() {
  const [value, setValue] = useState('')
  const field = useRef<HTMLInputElement>(null)
  useEffect(() => field.current!.focus(), [])
  const submit = (event: Event): void => {
    event.preventDefault()
    if (value.trim() !== '') setKey(value.trim())
  }
  return html`<main class="key">
    <form class="panel" onSubmit=${submit}>
      <h1>Heddle</h1>
      <p>${hasKey() ? 'This key is not known to the server.' : 'This server asks for a key.'}</p>
      <label>API key
        <input type="password" autocomplete="off" ref=${field} spellcheck="false" value=${value}
          onInput=${(event: Event) => setValue((event.currentTarget as HTMLInputElement).value)} />
      </label>
      <p class="quiet">It stays in this tab and is forgotten when the tab is closed.</p>
      <button type="submit" class="main">Continue</button>
    </form>
  </main>`
}

function Server() {
  const [models, setModels] = useState<PageModels | undefined>(undefined)
  const [right, setRight] = useState<string | undefined>(undefined)
  const { problem, refresh } = usePolled<PageModels>(() => 'page/models', seconds, setModels)
  const choose = (name: string): void => {
    setRight(name)
    document.getElementById('question')?.focus()
  }
  return html`<a class="skip" href="#content">To the content</a>
    <header class="head">
      <h1>Heddle</h1>
      ${models && html`<p><strong>${models.base.name}</strong> <span class="quiet">${short(models.base.parameters)} weights · ${models.base.precision}</span></p>`}
      <p class="state" role="status">${problem === undefined ? '' : html`<span class="problem">${problem}</span>`}</p>
      ${hasKey() && html`<button type="button" class="small" onClick=${() => setKey('')}>Forget key</button>`}
    </header>
    <main id="content" tabindex="-1">
      <${Load} />
      <div class="parts">
        ${models && html`<${Chat} models=${models} right=${right} onRight=${setRight} />`}
        ${models && html`<${Models} models=${models} onChoose=${choose} />`}
        ${models && html`<${Jobs} base=${models.base.name} onEnd=${refresh} />`}
      </div>
    </main>`
}

render(html`<${Page} />`, document.body)
