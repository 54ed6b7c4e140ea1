/** The base and its adapters: where they are, how large, and a way to ask one. */
import { useState } from 'preact/hooks'
import type { AdapterCard, PageModels } from '../messages.js'
import { bytes, counted, short } from './format.js'
import { html } from './html.js'

/** From so many adapters on, there is a field to find one. */
const many = 8

/** @param onChoose asks for an adapter in the right column of the chat */
export function Models({
  models: { base, adapters },
  onChoose,
}: {
  readonly models: PageModels
  readonly onChoose: (name: string) => void
}) {
  const [wanted, setWanted] = useState('')
  const found = adapters.filter(({ name }) => name.toLowerCase().includes(wanted.toLowerCase()))
  const loaded = adapters.filter(({ isLoaded }) => isLoaded).length
  return html`<section class="panel models" aria-labelledby="models-title">
    <header>
      <h2 id="models-title">Models</h2>
      <span class="quiet">${counted(adapters.length, 'adapter')}, ${loaded} in memory</span>
    </header>
    <ul class="cards" aria-label="Base">
      <li class="card base">
        <span class="name">${base.name}</span>
        <span class="quiet">base · ${short(base.parameters)} weights in ${base.precision} · ${short(base.maxTokens)} tokens</span>
      </li>
    </ul>
    ${
      adapters.length >= many &&
      html`<label class="find">
      <span class="unseen">Find an adapter</span>
      <input type="search" placeholder="Find an adapter" value=${wanted}
        onInput=${(event: InputEvent) => setWanted((event.currentTarget as HTMLInputElement).value)} />
    </label>`
    }
    ${
      adapters.length === 0
        ? html`<p class="quiet">No adapters yet. A training job makes one.</p>`
        : html`<ul class="cards scroll" aria-label="Adapters" tabindex="0">
      ${found.map((card) => html`<${Card} key=${card.name} card=${card} onChoose=${onChoose} />`)}
    </ul>`
    }
    ${adapters.length > 0 && found.length === 0 && html`<p class="quiet" role="status">None is called like that.</p>`}
  </section>`
}

function Card({
  card: { name, isLoaded, about },
  onChoose,
}: {
  readonly card: AdapterCard
  readonly onChoose: (name: string) => void
}) {
  const facts =
    about === null
      ? ['not in the folder of adapters']
      : [about.method.toLowerCase(), ...rankOf(about.rank), bytes(about.bytes)]
  return html`<li class="card">
    <span class="name">${name}</span>
    <button type="button" class="small" aria-label=${`Compare ${name} with the base`} onClick=${() => onChoose(name)}>Compare</button>
    <span class="quiet">${facts.join(' · ')}</span>
    <span class=${isLoaded ? 'badge on' : 'badge'}>${isLoaded ? 'in memory' : 'on disk'}</span>
  </li>`
}

const rankOf = (rank: number | null): string[] => (rank === null ? [] : [`r ${rank}`])
