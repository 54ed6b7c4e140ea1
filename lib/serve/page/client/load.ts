/** What the server does now: four numbers with the curves of the last minutes. */
import { useMemo, useRef, useState } from 'preact/hooks'
import type { LoadSample, PageLoad } from '../messages.js'
import { Chart, type Curve } from './chart.js'
import { bytes, rate } from './format.js'
import { usePolled } from './hooks.js'
import { html } from './html.js'

const seconds = 1
/** Samples that are shown. */
const shown = 180

/** The strip below the head. */
export function Load() {
  const [load, setLoad] = useState<PageLoad | undefined>(undefined)
  const last = useRef(0)
  const { problem } = usePolled<PageLoad>(
    () => `page/load?after=${last.current}`,
    seconds,
    (next) => {
      last.current = next.samples.at(-1)?.at ?? last.current
      setLoad((known) => ({ ...next, samples: [...(known?.samples ?? []), ...next.samples].slice(-shown) }))
    },
  )
  return html`<section class="load" aria-labelledby="load-title">
    <h2 id="load-title" class="unseen">Memory and throughput</h2>
    ${problem !== undefined && html`<p class="problem" role="status">Memory and throughput: ${problem}</p>`}
    ${load && html`<${Tiles} load=${load} />`}
  </section>`
}

function Tiles({ load: { samples, limits } }: { readonly load: PageLoad }) {
  const last = samples.at(-1)
  if (last === undefined) return html`<p class="quiet">Numbers come in a second.</p>`
  return html`<${Tile} id="throughput" name="Throughput" value=${rate(last.newTokens)} unit="tokens/s"
      detail=${`${rate(last.promptTokens)} read/s`} samples=${samples} fields=${['newTokens']} format=${rate} />
    <${Tile} id="texts" name="Texts" value=${last.running} unit="running"
      detail=${`${last.waiting} waiting · ${limits.texts} at most`} samples=${samples} fields=${['running', 'waiting']} format=${rate} />
    <${Tile} id="cache" name="Cache" value=${bytes(last.cacheBytes)} unit="in use"
      detail=${`of ${bytes(limits.cacheBytes)}`} samples=${samples} fields=${['cacheBytes']} format=${bytes} />
    <${Tile} id="memory" name="Memory" value=${bytes(last.residentBytes)} unit="resident"
      detail=${`adapters ${bytes(last.adapterBytes)} of ${bytes(limits.adapterBytes)}`} samples=${samples} fields=${['residentBytes']} format=${bytes} />`
}

interface TileProps {
  readonly id: string
  readonly name: string
  readonly value: string | number
  readonly unit: string
  readonly detail: string
  readonly samples: readonly LoadSample[]
  readonly fields: readonly Exclude<keyof LoadSample, 'at'>[]
  readonly format: (value: number) => string
}

const colours = ['--accent', '--second'] as const

function Tile({ id, name, value, unit, detail, samples, fields, format }: TileProps) {
  const x = useMemo(() => samples.map(({ at }) => at), [samples])
  const curves = useMemo(
    () =>
      fields.map(
        (field, index): Curve => ({
          label: field,
          values: samples.map((sample) => sample[field]),
          colour: colours[index]!,
          format,
        }),
      ),
    [samples],
  )
  const most = Math.max(...samples.map((sample) => sample[fields[0]!]))
  return html`<div class="tile" id=${id}>
    <h3>${name}</h3>
    <p class="number"><strong>${value}</strong> <span>${unit}</span></p>
    <p class="quiet">${detail}</p>
    <${Chart} label=${`${name} of the last minutes, at most ${format(most)}`} x=${x} curves=${curves} height=${36} fromZero />
  </div>`
}
