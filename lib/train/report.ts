/**
 * The report of a training run: one HTML file that opens anywhere, without a network, and can be mailed or archived.
 */
import { type ScaleLinear, scaleLinear } from 'd3-scale'
import { line } from 'd3-shape'

/** Everything a report shows. Losses are mean negative log-likelihoods per target token, in nats. */
export interface TrainingReport {
  readonly model: {
    /** Folder, .gguf file or hub id, as the user named it. */
    readonly name: string
    readonly architecture?: string
    readonly parameters: number
  }
  readonly data: {
    readonly file: string
    readonly examples: number
    /** Examples that were never trained on. */
    readonly heldOut: number
  }
  readonly adapter: {
    readonly name: string
    readonly trainedParameters: number
    /** Where the adapter was written. */
    readonly folder?: string
  }
  /** What the run was configured with, in the order to show it. */
  readonly config: Readonly<Record<string, ReportValue>>
  readonly steps: readonly ReportStep[]
  /** Held-out evaluations in order: the first one is "before", the last one "after". */
  readonly evaluations: readonly ReportEvaluation[]
  /** The same prompt, answered by the model before and after training. */
  readonly samples: readonly { readonly prompt: string; readonly before: string; readonly after: string }[]
  /** What the model wrote after evaluations, in order. */
  readonly written?: readonly {
    readonly step: number
    readonly samples: readonly { readonly prompt: string; readonly text: string }[]
  }[]
  /** Of the last evaluation of a classification: `counts[true class][predicted class]`. */
  readonly confusion?: ConfusionMatrix | undefined
  readonly tokensPerSecond: number
  readonly peakMemoryBytes: number
  readonly seconds: number
  readonly finishedAt?: Date
}

/** A value in a report's table. */
export type ReportValue = string | number | boolean | null | readonly (string | number)[]

/** One training step in a report; what is absent gets no picture. */
export interface ReportStep {
  readonly index: number
  readonly loss: number
  readonly learningRate: number
  readonly gradientNorm?: number
  readonly tokensPerSecond?: number
  readonly residentBytes?: number
}

/** One held-out evaluation in a report. */
export interface ReportEvaluation {
  readonly step: number
  readonly loss: number
  /** Shown instead of the perplexity, which only a language model has. */
  readonly metrics?: Readonly<Record<string, number>> | undefined
}

/** How often each class was taken for which. */
export interface ConfusionMatrix {
  readonly labels: readonly string[]
  /** `counts[true class][predicted class]` */
  readonly counts: readonly (readonly number[])[]
}

/** The report as one self-contained HTML document: styles and pictures are inline, it loads nothing and runs no script. */
export function renderReport(report: TrainingReport): string {
  const { model, adapter } = report
  return `<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>${escapeHtml(`${adapter.name} on ${model.name}`)} · Heddle</title>
<style>${styles}</style>
</head>
<body>
<main>
<header>
<p class="kicker">Heddle training report</p>
<h1>${escapeHtml(adapter.name)} on ${escapeHtml(model.name)}</h1>
<p class="lead">${headline(report)}</p>
</header>
${tiles(report)}
${curves(report)}
${samples(report)}
${confusion(report)}
${written(report)}
${details(report)}
</main>
</body>
</html>
`
}

function headline({ data, evaluations, steps }: TrainingReport): string {
  const run = `${count(steps.length)} ${steps.length === 1 ? 'step' : 'steps'} on <code>${escapeHtml(data.file)}</code>`
  const [before, after] = ends(evaluations)
  if (before === undefined || after === undefined) return `${run}.`
  const change = before.loss === 0 ? '' : ` (${signedPercent(after.loss / before.loss - 1)})`
  return `${run}: held-out loss ${number(before.loss, 3)} → ${number(after.loss, 3)}${change}.`
}

function tiles(report: TrainingReport): string {
  const { adapter, evaluations, model } = report
  const [before, after] = ends(evaluations)
  const evaluated: [string, string, string][] =
    before === undefined || after === undefined
      ? []
      : [
          ['Held-out loss', pair(number(before.loss, 3), number(after.loss, 3)), 'before → after, nats per token'],
          ...metricTiles(before, after),
        ]
  const share =
    model.parameters > 0 ? `${number((100 * adapter.trainedParameters) / model.parameters, 2)} % of ` : 'of '
  const all: [string, string, string][] = [
    ...evaluated,
    ['Parameters trained', compact(adapter.trainedParameters), `${share}${compact(model.parameters)}`],
    ['Speed', `${count(report.tokensPerSecond)} tok/s`, 'training, mean of the run'],
    ['Peak memory', bytes(report.peakMemoryBytes), 'of the whole process'],
    [
      'Duration',
      duration(report.seconds),
      report.finishedAt ? `until ${timestamp(report.finishedAt)}` : 'start to end',
    ],
  ]
  const items = all.map(([name, value, note]) => `<div><dt>${name}</dt><dd>${value}<small>${note}</small></dd></div>`)
  return `<dl class="tiles">\n${items.join('\n')}\n</dl>`
}

function metricTiles(before: ReportEvaluation, after: ReportEvaluation): [string, string, string][] {
  if (!after.metrics)
    return [['Perplexity', pair(perplexity(before.loss), perplexity(after.loss)), 'before → after, held-out text']]
  return Object.entries(after.metrics)
    .slice(0, 2)
    .map(([name, value]) => {
      const earlier = before.metrics?.[name]
      const text = earlier === undefined ? number(value, 4) : pair(number(earlier, 4), number(value, 4))
      return [escapeHtml(name), text, 'before → after, held-out data']
    })
}

function curves({ steps, evaluations }: TrainingReport): string {
  if (steps.length === 0 && evaluations.length === 0) return ''
  const last = Math.max(1, ...ends(steps).map((step) => step?.index ?? 0), evaluations.at(-1)?.step ?? 0)
  const first = Math.min(steps[0]?.index ?? last, evaluations[0]?.step ?? last)
  const x = scaleLinear([Math.min(first, last - 1), last], [frame.left, frame.width - frame.right])
  const points = thinned(steps)

  const losses = [...points, ...evaluations].map(({ loss }) => loss).filter(Number.isFinite)
  const lossY = axisScale(losses, 300)
  const lossPicture = picture({
    id: 'loss',
    title: 'Loss by training step',
    description: `Training loss goes from ${lossText(steps[0])} to ${lossText(steps.at(-1))}; held-out loss from ${lossText(evaluations[0])} to ${lossText(evaluations.at(-1))}.`,
    height: 300,
    x,
    y: lossY,
    format: lossY.tickFormat(5),
    marks: [
      path(
        points,
        'raw',
        ({ index }) => x(index),
        ({ loss }) => lossY(loss),
      ),
      path(
        smoothed(points),
        'train',
        ({ index }) => x(index),
        ({ loss }) => lossY(loss),
      ),
      path(
        evaluations,
        'held',
        ({ step }) => x(step),
        ({ loss }) => lossY(loss),
      ),
      ...evaluations
        .filter(({ loss }) => Number.isFinite(loss))
        .map(({ step, loss }) => {
          const label = `Held-out loss ${number(loss, 4)} after step ${count(step)}`
          return `<circle class="held" cx="${pixel(x(step))}" cy="${pixel(lossY(loss))}" r="4"><title>${label}</title></circle>`
        }),
    ],
  })

  const below = courses.flatMap(({ of, ...course }) => {
    const known = points.filter((step) => Number.isFinite(of(step)))
    return known.length === 0 ? [] : [coursePicture({ ...course, points: known, of, x })]
  })

  return `<section aria-labelledby="curves">
<h2 id="curves">Loss</h2>
<p class="legend"><span><i class="train"></i>Training, smoothed</span><span><i class="raw"></i>Training, each step</span><span><i class="held dot"></i>Held-out</span></p>
${lossPicture}
${below.join('\n')}
</section>`
}

interface Course {
  readonly id: string
  readonly title: string
  readonly of: (step: ReportStep) => number
  readonly format: (value: number) => string
}

/** What is drawn below the loss, where steps have it. */
const courses: readonly Course[] = [
  { id: 'rate', title: 'Learning rate', of: ({ learningRate }) => learningRate, format: (value) => rate(value) },
  {
    id: 'norm',
    title: 'Gradient norm, before clipping',
    of: ({ gradientNorm }) => gradientNorm ?? Number.NaN,
    format: (value) => compact(value),
  },
  {
    id: 'speed',
    title: 'Tokens per second',
    of: ({ tokensPerSecond }) => tokensPerSecond ?? Number.NaN,
    format: (value) => compact(value),
  },
  {
    id: 'memory',
    title: 'Resident memory',
    of: ({ residentBytes }) => residentBytes ?? Number.NaN,
    format: (value) => bytes(value),
  },
]

function coursePicture({
  id,
  title,
  of,
  format,
  points,
  x,
}: Course & { readonly points: readonly ReportStep[]; readonly x: Picture['x'] }): string {
  const values = points.map(of)
  const y = axisScale([0, ...values], 130)
  const highest = format(values.reduce((a, b) => Math.max(a, b), 0))
  const drawn = picture({
    id,
    title: `${title} by training step`,
    description: `${title}: at most ${highest}, ${format(values.at(-1)!)} at the end.`,
    height: 130,
    x,
    y,
    format,
    marks: [
      path(
        points,
        'rate',
        ({ index }) => x(index),
        (step) => y(of(step)),
      ),
    ],
  })
  return `<h3>${title}</h3>\n${drawn}`
}

function samples({ samples }: TrainingReport): string {
  if (samples.length === 0) return ''
  const items = samples.map(
    ({ prompt, before, after }) => `<article class="sample">
<p class="prompt"><span>Prompt</span>${escapeHtml(prompt)}</p>
<div class="answers">
<div><h3>Before</h3><p>${answer(before)}</p></div>
<div class="after"><h3>After</h3><p>${answer(after)}</p></div>
</div>
</article>`,
  )
  return `<section aria-labelledby="samples">
<h2 id="samples">The same prompt, before and after</h2>
${items.join('\n')}
</section>`
}

function confusion({ confusion: matrix }: TrainingReport): string {
  if (!matrix) return ''
  const head = matrix.labels.map((label) => `<th scope="col">${escapeHtml(label)}</th>`)
  const rows = matrix.labels.map((label, row) => {
    const cells = matrix.counts[row]!.map((value, column) =>
      row === column ? `<td><strong>${count(value)}</strong></td>` : `<td>${count(value)}</td>`,
    )
    return `<tr><th scope="row">${escapeHtml(label)}</th>${cells.join('')}</tr>`
  })
  return `<section aria-labelledby="confusion">
<h2 id="confusion">Confusion matrix</h2>
<table class="numbers">
<caption>Rows: the class it is. Columns: the class it was taken for.</caption>
<thead><tr><td></td>${head.join('')}</tr></thead>
<tbody>${rows.join('\n')}</tbody>
</table>
</section>`
}

function written({ written: groups = [] }: TrainingReport): string {
  if (groups.length === 0) return ''
  const prompts = [...new Set(groups.flatMap(({ samples: texts }) => texts.map(({ prompt }) => prompt)))]
  const items = prompts.map((prompt) => {
    const texts = groups.flatMap(({ step, samples: all }) =>
      all
        .filter((sample) => sample.prompt === prompt)
        .map(({ text }) => `<div><h3>After step ${count(step)}</h3><p>${answer(text)}</p></div>`),
    )
    return `<article class="sample">
<p class="prompt"><span>Prompt</span>${escapeHtml(prompt)}</p>
<div class="answers">${texts.join('\n')}</div>
</article>`
  })
  return `<section aria-labelledby="written">
<h2 id="written">Written during training</h2>
${items.join('\n')}
</section>`
}

function details({ model, data, adapter, config, evaluations }: TrainingReport): string {
  const rows: [string, string][] = [
    ['model', escapeHtml(model.name)],
    ...(model.architecture ? [['architecture', escapeHtml(model.architecture)] satisfies [string, string]] : []),
    ['data', `${escapeHtml(data.file)} (${count(data.examples)} examples, ${count(data.heldOut)} held out)`],
    ...(adapter.folder ? [['adapter folder', escapeHtml(adapter.folder)] satisfies [string, string]] : []),
    ...Object.entries(config).map(([name, value]): [string, string] => [
      escapeHtml(name),
      escapeHtml(valueText(value)),
    ]),
  ]
  const table = rows.map(([name, value]) => `<tr><th scope="row">${name}</th><td>${value}</td></tr>`)
  const metricNames = Object.keys(evaluations.at(-1)?.metrics ?? {})
  const columns = metricNames.length > 0 ? metricNames : ['Perplexity']
  const evaluated = evaluations.map(({ step, loss, metrics }) => {
    const others =
      metricNames.length > 0 ? metricNames.map((name) => number(metrics?.[name] ?? Number.NaN, 4)) : [perplexity(loss)]
    const cells = [count(step), number(loss, 4), ...others].map((text) => `<td>${text}</td>`)
    return `<tr>${cells.join('')}</tr>`
  })
  const evaluationTable =
    evaluated.length === 0
      ? ''
      : `<section aria-labelledby="evaluations">
<h2 id="evaluations">Held-out evaluations</h2>
<table class="numbers">
<thead><tr>${['After step', 'Loss', ...columns].map((name) => `<th scope="col">${escapeHtml(name)}</th>`).join('')}</tr></thead>
<tbody>${evaluated.join('')}</tbody>
</table>
</section>`
  return `<div class="tables">
<section aria-labelledby="configuration">
<h2 id="configuration">Configuration</h2>
<table>
<tbody>${table.join('\n')}</tbody>
</table>
</section>
${evaluationTable}
</div>`
}

const frame = { width: 760, left: 56, right: 16, top: 12, bottom: 30 } as const

interface Picture {
  readonly id: string
  readonly title: string
  readonly description: string
  readonly height: number
  readonly x: ScaleLinear<number, number>
  readonly y: ScaleLinear<number, number>
  readonly format: (value: number) => string
  readonly marks: readonly string[]
}

function picture({ id, title, description, height, x, y, format, marks }: Picture): string {
  const bottom = height - frame.bottom
  const right = frame.width - frame.right
  const steps = x.ticks(8).filter(Number.isInteger)
  const vertical = steps.map(
    (step) => `<text class="tick" x="${pixel(x(step))}" y="${bottom + 18}" text-anchor="middle">${count(step)}</text>`,
  )
  const horizontal = y.ticks(height > 200 ? 5 : 3).map((value) => {
    const at = pixel(y(value))
    return `<line class="grid" x1="${frame.left}" x2="${right}" y1="${at}" y2="${at}"/><text class="tick" x="${frame.left - 8}" y="${at}" dy="0.32em" text-anchor="end">${format(value)}</text>`
  })
  return `<figure>
<svg viewBox="0 0 ${frame.width} ${height}" role="img" aria-labelledby="${id}-title ${id}-description">
<title id="${id}-title">${title}</title>
<desc id="${id}-description">${escapeHtml(description)}</desc>
${horizontal.join('\n')}
${vertical.join('\n')}
<line class="axis" x1="${frame.left}" x2="${right}" y1="${bottom}" y2="${bottom}"/>
${marks.join('\n')}
</svg>
</figure>`
}

function path<T>(data: readonly T[], name: string, x: (point: T) => number, y: (point: T) => number): string {
  const draw = line<T>(x, y).defined((point) => Number.isFinite(y(point)))
  const shape = draw.digits(1)([...data])
  return shape === null ? '' : `<path class="${name}" d="${shape}"/>`
}

function axisScale(values: readonly number[], height: number): ScaleLinear<number, number> {
  const low = values.reduce((a, b) => Math.min(a, b), Number.POSITIVE_INFINITY)
  const high = values.reduce((a, b) => Math.max(a, b), Number.NEGATIVE_INFINITY)
  const domain = values.length === 0 ? [0, 1] : low === high ? [low - 0.5 * (Math.abs(low) || 1), high] : [low, high]
  return scaleLinear(domain, [height - frame.bottom, frame.top]).nice(height > 200 ? 5 : 3)
}

/** At most 600 points, so that the file stays small after a hundred thousand steps: each is the mean of its neighbours. */
function thinned(steps: readonly ReportStep[]): readonly ReportStep[] {
  const size = Math.ceil(steps.length / 600)
  if (size <= 1) return steps
  return Array.from({ length: Math.ceil(steps.length / size) }, (_, bucket) => {
    const members = steps.slice(bucket * size, (bucket + 1) * size)
    const mean = (of: (step: ReportStep) => number) => members.reduce((sum, step) => sum + of(step), 0) / members.length
    return {
      index: mean((s) => s.index),
      loss: mean((s) => s.loss),
      learningRate: mean((s) => s.learningRate),
      gradientNorm: mean((s) => s.gradientNorm ?? Number.NaN),
      tokensPerSecond: mean((s) => s.tokensPerSecond ?? Number.NaN),
      residentBytes: mean((s) => s.residentBytes ?? Number.NaN),
    }
  })
}

/** Exponential moving average over about a twentieth of the run, unbiased at its start. */
function smoothed(steps: readonly ReportStep[]): readonly ReportStep[] {
  const decay = 1 - 1 / Math.max(1, Math.min(10, steps.length / 20))
  let average = 0
  let weight = 0
  return steps.map((step) => {
    if (!Number.isFinite(step.loss)) return step
    average = decay * average + (1 - decay) * step.loss
    weight = decay * weight + (1 - decay)
    return { ...step, loss: average / weight }
  })
}

const ends = <T>(items: readonly T[]): readonly [T | undefined, T | undefined] => [items[0], items.at(-1)]
const pixel = (value: number): string => value.toFixed(1)
const count = (value: number): string => Math.round(value).toLocaleString('en-US')
const number = (value: number, digits: number): string =>
  Number.isFinite(value) ? value.toFixed(digits) : String(value)
const pair = (before: string, after: string): string => `${before} <span aria-label="to">→</span> ${after}`
const lossText = (point: { readonly loss: number } | undefined): string => (point ? number(point.loss, 3) : 'none')
const timestamp = (date: Date): string => `${date.toISOString().slice(0, 16).replace('T', ' ')} UTC`
const rate = (value: number): string => (value === 0 ? '0' : value.toExponential(1).replace('.0e', 'e'))
const compact = (value: number): string =>
  value.toLocaleString('en-US', { notation: 'compact', maximumSignificantDigits: 4 })

function perplexity(loss: number): string {
  const value = Math.exp(loss)
  return value < 1000 ? number(value, 1) : Number.isFinite(value) ? compact(value) : '∞'
}

function signedPercent(ratio: number): string {
  return `${ratio < 0 ? '−' : '+'}${Math.abs(100 * ratio).toFixed(1)} %`
}

function bytes(value: number): string {
  return value < 1e9 ? `${count(value / 2 ** 20)} MiB` : `${number(value / 2 ** 30, 2)} GiB`
}

function duration(seconds: number): string {
  if (seconds < 60) return `${number(seconds, 1)} s`
  const whole = Math.round(seconds)
  const minutes = Math.floor(whole / 60)
  return minutes < 60 ? `${minutes} min ${whole % 60} s` : `${Math.floor(minutes / 60)} h ${minutes % 60} min`
}

function valueText(value: ReportValue): string {
  return Array.isArray(value) ? value.join(', ') : String(value)
}

function answer(text: string): string {
  return text.trim() === '' ? '<em>(nothing)</em>' : escapeHtml(text)
}

function escapeHtml(text: string): string {
  return text.replace(/[&<>"']/g, (character) => `&#${character.charCodeAt(0)};`)
}

const styles = `
:root { --page: #fbfbfa; --card: #fff; --ink: #1b1d21; --soft: #5b6069; --rule: #dfe1e5; --train: #1f5fbf; --held: #b3470f; --rate: #3d7a4a }
@media (prefers-color-scheme: dark) {
  :root { --page: #14161a; --card: #1c1f25; --ink: #e9ebee; --soft: #a2a8b3; --rule: #343942; --train: #7fb0ff; --held: #ffa260; --rate: #8fce9c }
}
* { box-sizing: border-box }
body { margin: 0; background: var(--page); color: var(--ink); font: 16px/1.5 system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif }
main { max-width: 860px; margin: 0 auto; padding: 40px 20px 64px }
h1 { margin: 0; font-size: 1.75rem; line-height: 1.2; overflow-wrap: anywhere }
h2 { margin: 40px 0 8px; font-size: 1.15rem }
h3 { margin: 12px 0 4px; font-size: .85rem; font-weight: 600; color: var(--soft) }
code { font-family: ui-monospace, 'SF Mono', Menlo, Consolas, monospace; font-size: .92em }
.kicker { margin: 0 0 4px; color: var(--soft); font-size: .85rem }
.lead { margin: 8px 0 0; font-size: 1.05rem; overflow-wrap: anywhere }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(220px, 1fr)); gap: 1px; margin: 28px 0 0; background: var(--rule); border: 1px solid var(--rule); border-radius: 8px; overflow: hidden }
.tiles div { padding: 14px 16px; background: var(--card) }
dt { color: var(--soft); font-size: .85rem }
dd { margin: 2px 0 0; font-size: 1.3rem; font-variant-numeric: tabular-nums }
dd small { display: block; color: var(--soft); font-size: .8rem }
.legend { display: flex; flex-wrap: wrap; gap: 4px 20px; margin: 0 0 4px; color: var(--soft); font-size: .85rem }
.legend span { display: inline-flex; align-items: center; gap: 8px }
.legend i { width: 20px; border-top: 2.5px solid var(--train) }
.legend i.raw { border-top-width: 1px; opacity: .6 }
.legend i.dot { width: 9px; height: 9px; border: 0; border-radius: 50%; background: var(--held) }
figure { margin: 0 }
svg { display: block; width: 100%; height: auto; overflow: visible }
svg path { fill: none; stroke-width: 2.25; stroke-linejoin: round; stroke-linecap: round }
path.raw { stroke: var(--train); stroke-width: 1; opacity: .35 }
path.train { stroke: var(--train) }
path.held { stroke: var(--held); stroke-dasharray: 5 5; stroke-width: 1.5 }
circle.held { fill: var(--held); stroke: var(--page); stroke-width: 1.5 }
path.rate { stroke: var(--rate) }
.grid { stroke: var(--rule) }
.axis { stroke: var(--soft) }
.tick { fill: var(--soft); font-size: 12px; font-variant-numeric: tabular-nums }
.sample { margin: 0 0 16px; background: var(--card); border: 1px solid var(--rule); border-radius: 8px; overflow: hidden }
.prompt { margin: 0; padding: 12px 16px; border-bottom: 1px solid var(--rule); white-space: pre-wrap; overflow-wrap: anywhere }
.prompt span { display: block; color: var(--soft); font-size: .8rem }
.answers { display: grid; grid-template-columns: repeat(auto-fit, minmax(260px, 1fr)); gap: 1px; background: var(--rule) }
.answers > div { padding: 8px 16px 14px; background: var(--card) }
.answers p { margin: 0; white-space: pre-wrap; overflow-wrap: anywhere }
.answers .after { box-shadow: inset 0 2px 0 var(--held) }
.tables { display: grid; grid-template-columns: repeat(auto-fit, minmax(280px, 1fr)); gap: 0 40px; align-items: start }
table { width: 100%; border-collapse: collapse; font-size: .92rem }
th, td { padding: 6px 12px 6px 0; border-bottom: 1px solid var(--rule); text-align: left; vertical-align: top; overflow-wrap: anywhere }
th { color: var(--soft); font-weight: 400; white-space: nowrap }
caption { padding: 0 0 6px; color: var(--soft); font-size: .85rem; text-align: left }
.numbers td, .numbers th { text-align: right; font-variant-numeric: tabular-nums }
`
