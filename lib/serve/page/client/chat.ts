/** The same question to two models, whose answers come side by side. */
import { useEffect, useRef, useState } from 'preact/hooks'
import type { PageModels } from '../messages.js'
import { type Answer, answerOf, isOpen, type Turn } from './conversation.js'
import { duration, rate } from './format.js'
import { useRedraw } from './hooks.js'
import { html } from './html.js'

const sides = ['Left', 'Right'] as const

/** What is asked of both. */
interface Settings {
  readonly temperature: number
  readonly maxTokens: number
}

/** @param right the name that was chosen elsewhere for the right column */
export function Chat({
  models: { base, adapters },
  right,
  onRight,
}: {
  readonly models: PageModels
  readonly right: string | undefined
  readonly onRight: (name: string) => void
}) {
  const names = [base.name, ...adapters.map(({ name }) => name)]
  const [left, setLeft] = useState(base.name)
  const chosen = [nameIn(names, left, 0), nameIn(names, right, 1)] as const
  const [settings, setSettings] = useState<Settings>({ temperature: 0.7, maxTokens: Math.min(256, base.newTokens) })
  const chat = useConversation()
  if (!base.isChat)
    return html`<section class="panel chat" aria-labelledby="chat-title">
      <header><h2 id="chat-title">Chat</h2></header>
      <p class="quiet">${base.name} has no chat template, so it cannot be chatted with. Ask it through /v1/completions.</p>
    </section>`
  return html`<section class="panel chat" aria-labelledby="chat-title">
    <header>
      <h2 id="chat-title">Chat</h2>
      <button type="button" class="small" aria-disabled=${chat.turns.length === 0} onClick=${chat.clear}>New chat</button>
    </header>
    <div class="columns heads">
      ${sides.map(
        (side, index) => html`<label>
        <span class="unseen">${side} model</span>
        <select value=${chosen[index]} onChange=${(event: Event) =>
          [setLeft, onRight][index]!((event.currentTarget as HTMLSelectElement).value)}>
          ${names.map((name) => html`<option key=${name} value=${name}>${name === base.name ? `${name} (base)` : name}</option>`)}
        </select>
      </label>`,
      )}
    </div>
    <${Conversation} turns=${chat.turns} />
    <${Composer} isBusy=${chat.isBusy} onStop=${chat.stop} settings=${settings} onSettings=${setSettings} most=${base.newTokens}
      onAsk=${(question: string) => chat.ask(question, chosen, settings)} />
  </section>`
}

/** The chosen one; as long as none is, the left column is the base and the right one the first adapter. */
const nameIn = (names: readonly string[], chosen: string | undefined, index: number): string =>
  chosen !== undefined && names.includes(chosen) ? chosen : (names[index] ?? names[0]!)

function useConversation() {
  const turns = useRef<readonly Turn[]>([])
  const stop = useRef<AbortController>(new AbortController())
  const redraw = useRedraw()
  const isBusy = turns.current.at(-1)?.answers.some(isOpen) ?? false
  useEffect(() => () => stop.current.abort(), [])
  return {
    turns: turns.current,
    isBusy,
    stop: () => stop.current.abort(),
    clear: () => {
      stop.current.abort()
      turns.current = []
      redraw()
    },
    ask: (question: string, models: readonly string[], { temperature, maxTokens }: Settings) => {
      const past = turns.current
      stop.current = new AbortController()
      const { signal } = stop.current
      // With the same seed, what differs is the models.
      const [seed] = crypto.getRandomValues(new Uint32Array(1)).map((bits) => bits >>> 1)
      const answers = models.map((model, side) =>
        answerOf({ model, side, past, question, fields: { temperature, max_tokens: maxTokens, seed }, signal }, redraw),
      )
      turns.current = [...past, { question, answers }]
      redraw()
    },
  }
}

function Conversation({ turns }: { readonly turns: readonly Turn[] }) {
  const place = useRef<HTMLDivElement>(null)
  const isBusy = turns.at(-1)?.answers.some(isOpen) ?? false
  const follows = useRef(true)
  useEffect(() => {
    if (follows.current) place.current!.scrollTop = place.current!.scrollHeight
  })
  const scrolled = ({ currentTarget }: Event): void => {
    const { scrollTop, scrollHeight, clientHeight } = currentTarget as HTMLElement
    follows.current = scrollHeight - scrollTop - clientHeight < 24
  }
  return html`<div class="conversation" role="log" aria-label="Conversation" aria-live="polite" aria-busy=${isBusy} tabindex="0"
    ref=${place} onScroll=${scrolled}>
    ${turns.length === 0 && html`<p class="quiet hint">One question, two answers: the base beside an adapter.</p>`}
    ${turns.map(
      ({ question, answers }, index) => html`<article key=${index} aria-label=${`Turn ${index + 1}`}>
      <p class="question">${question}</p>
      <div class="columns">${answers.map((answer, side) => html`<${Said} key=${side} side=${side} answer=${answer} />`)}</div>
    </article>`,
    )}
  </div>`
}

function Said({ answer, side }: { readonly answer: Answer; readonly side: number }) {
  return html`<div class=${`answer ${isOpen(answer) ? 'open' : ''}`} data-side=${sides[side]!.toLowerCase()}>
    <p class="who">${answer.model}</p>
    <p class="text">${answer.text}</p>
    ${answer.problem !== undefined && html`<p class="problem">${answer.problem}</p>`}
    <p class="quiet">${factsOf(answer)}</p>
  </div>`
}

/** How it went, in words. */
function factsOf({ state, tokens, finish, begun, first, ended }: Answer): string {
  if (state === 'waiting') return 'Waiting…'
  if (state === 'failed') return 'Failed'
  if (state === 'writing' || first === undefined) return state === 'stopped' ? 'Stopped' : 'Writing…'
  const seconds = ((ended ?? first) - first) / 1000
  return [
    state === 'stopped' ? 'Stopped' : finish === 'length' ? 'Cut at the maximum' : 'Done',
    ...(tokens === undefined ? [] : [`${tokens} tokens`]),
    ...(tokens !== undefined && tokens > 1 && seconds > 0 ? [`${rate((tokens - 1) / seconds)}/s`] : []),
    `first after ${duration((first - begun) / 1000)}`,
  ].join(' · ')
}

function Composer({
  isBusy,
  onAsk,
  onStop,
  settings: { temperature, maxTokens },
  onSettings,
  most,
}: {
  readonly isBusy: boolean
  readonly onAsk: (question: string) => void
  readonly onStop: () => void
  readonly settings: Settings
  readonly onSettings: (settings: Settings) => void
  readonly most: number
}) {
  const [question, setQuestion] = useState('')
  const send = (): void => {
    if (isBusy || question.trim() === '') return
    onAsk(question)
    setQuestion('')
  }
  const key = (event: KeyboardEvent): void => {
    if (event.key !== 'Enter' || event.shiftKey || event.isComposing) return
    event.preventDefault()
    // As the button does it, so that the numbers are checked.
    ;(event.currentTarget as HTMLTextAreaElement).form!.requestSubmit()
  }
  const number = (event: Event): number => (event.currentTarget as HTMLInputElement).valueAsNumber
  return html`<form class="composer" onKeyDown=${(event: KeyboardEvent) => event.key === 'Escape' && isBusy && onStop()}
    onSubmit=${(event: Event) => {
      event.preventDefault()
      send()
    }}>
    <label class="ask">
      <span class="unseen">Question to both models</span>
      <textarea id="question" rows="2" placeholder="Ask both…" value=${question} aria-describedby="ask-hint" onKeyDown=${key}
        onInput=${(event: Event) => setQuestion((event.currentTarget as HTMLTextAreaElement).value)}></textarea>
    </label>
    <div class="controls">
      <label>Temperature <input type="number" min="0" max="2" step="0.1" required value=${temperature}
        onInput=${(event: Event) => onSettings({ temperature: number(event), maxTokens })} /></label>
      <label>Max tokens <input type="number" min="1" max=${most} step="1" required value=${maxTokens}
        onInput=${(event: Event) => onSettings({ temperature, maxTokens: number(event) })} /></label>
      <span id="ask-hint" class="quiet">Enter sends, Esc stops</span>
      <span class="buttons">
        <button type="button" aria-disabled=${!isBusy} onClick=${() => isBusy && onStop()}>Stop</button>
        <button type="submit" class="main" aria-disabled=${isBusy || question.trim() === ''}>Send</button>
      </span>
    </div>
  </form>`
}
