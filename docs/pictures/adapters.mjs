// Draws docs/pictures/adapters.svg from docs/pictures/adapters.json, the last line of `npm run bench -- adapters`, and
// prints the table of docs/guides/choosing-an-adapter.md. `node docs/pictures/adapters.mjs`
import { readFileSync, writeFileSync } from 'node:fs'
import { scaleLinear, scaleLog } from 'd3-scale'

const { rows } = JSON.parse(readFileSync(new URL('adapters.json', import.meta.url), 'utf8'))
const mean = (values) => values.reduce((sum, value) => sum + value, 0) / values.length
const points = rows.map(({ label, parameters, learningRate, metric, stepSeconds, peakBytes }) => ({
  label,
  learningRate,
  spread: 50 * (Math.max(...metric) - Math.min(...metric)),
  parameters,
  accuracy: 100 * mean(metric),
  milliseconds: 1000 * stepSeconds,
  mebibytes: peakBytes / 2 ** 20,
}))

const [width, height, left, top] = [560, 400, 60, 40]
const shapes = []

function panel(offset, title, x, y) {
  const [xs, ys] = [points.map(x.of), points.map(y.of)]
  const spread = (values, share) => [Math.min(...values) * (1 - share), Math.max(...values) * (1 + share)]
  const horizontal = x.scale.domain(spread(xs, x.margin)).range([offset + left, offset + width - 90])
  const vertical = y.scale.domain(spread(ys, y.margin)).range([height - 40, top])
  shapes.push(`<text x="${offset + left}" y="24" font-size="14">${title}</text>`)
  shapes.push(`<text x="${offset + width / 2}" y="${height - 4}" text-anchor="middle">${x.title}</text>`)
  shapes.push(`<text transform="translate(${offset + 14} ${height / 2}) rotate(-90)" text-anchor="middle">${y.title}</text>`)
  for (const tick of horizontal.ticks(5).filter((_, i, all) => all.length < 9 || String(all[i])[0] === '1')) {
    shapes.push(`<line x1="${horizontal(tick)}" x2="${horizontal(tick)}" y1="${top}" y2="${height - 40}" stroke="#eee"/>`)
    shapes.push(`<text x="${horizontal(tick)}" y="${height - 24}" text-anchor="middle">${x.text(tick)}</text>`)
  }
  for (const tick of vertical.ticks(5)) {
    const [x1, x2] = [offset + left, offset + width - 90]
    shapes.push(`<line x1="${x1}" x2="${x2}" y1="${vertical(tick)}" y2="${vertical(tick)}" stroke="#eee"/>`)
    shapes.push(`<text x="${x1 - 6}" y="${vertical(tick) + 4}" text-anchor="end">${y.text(tick)}</text>`)
  }
  for (const [index, point] of points.entries()) {
    const [cx, cy] = [horizontal(x.of(point)), vertical(y.of(point))]
    const colour = point.label === 'LoRA' || point.label === 'full fine-tuning' ? '#c05621' : '#2b6cb0'
    shapes.push(`<circle cx="${cx}" cy="${cy}" r="8" fill="${colour}" fill-opacity="0.75"/>`)
    shapes.push(`<text x="${cx}" y="${cy + 3}" text-anchor="middle" font-size="9" fill="#fff">${index + 1}</text>`)
  }
}

const count = (value) => (value >= 1e6 ? `${value / 1e6} M` : value >= 1e3 ? `${value / 1e3} k` : `${value}`)
panel(
  0,
  'Trained numbers and accuracy',
  { of: ({ parameters }) => parameters, scale: scaleLog(), margin: 0.2, title: 'trained numbers, head included', text: count },
  { of: ({ accuracy }) => accuracy, scale: scaleLinear(), margin: 0.005, title: 'accuracy on held-out mails, %', text: String },
)
panel(
  width,
  'Step time and memory',
  { of: ({ milliseconds }) => milliseconds, scale: scaleLinear(), margin: 0.1, title: 'ms a step', text: String },
  { of: ({ mebibytes }) => mebibytes, scale: scaleLinear(), margin: 0.05, title: 'peak memory of the process, MiB', text: String },
)

// What the numbers in the dots stand for, column by column.
const [perColumn, columnWidth] = [8, 270]
for (const [index, { label }] of points.entries()) {
  const [column, row] = [Math.floor(index / perColumn), index % perColumn]
  shapes.push(`<text x="${left + column * columnWidth}" y="${height + 24 + 15 * row}">${index + 1}  ${label}</text>`)
}
const total = height + 30 + 15 * perColumn

const head = `<svg xmlns="http://www.w3.org/2000/svg" width="${2 * width}" height="${total}" font-family="sans-serif" font-size="11">`
const background = `<rect width="${2 * width}" height="${total}" fill="#fff"/>`
writeFileSync(new URL('adapters.svg', import.meta.url), `${[head, background, ...shapes, '</svg>'].join('\n')}\n`)

console.log('| | method | trained numbers | rate | accuracy | step | peak memory |\n|---|---|---|---|---|---|---|')
// LoRA's own steps were disturbed; rsLoRA's are the same computation.
const base = points.find(({ label }) => label === 'rsLoRA')
for (const [index, point] of points.entries()) {
  const { label, parameters, learningRate, accuracy, spread, milliseconds, mebibytes } = point
  const ratio = (milliseconds / base.milliseconds).toFixed(2)
  const cells = [index + 1, label, parameters.toLocaleString('en-US'), learningRate]
  cells.push(`${accuracy.toFixed(1)} ± ${spread.toFixed(1)} %`, `${milliseconds.toFixed(0)} ms (${ratio}×)`)
  console.log(`| ${[...cells, `${mebibytes.toFixed(0)} MiB`].join(' | ')} |`)
}
