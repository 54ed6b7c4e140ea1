// Draws docs/pictures/linalg.svg: time per matrix of batched SVD against its size, from the milliseconds that
// `npm run bench -- structured svd-` printed (docs/performance.md). `node docs/pictures/linalg.mjs`
import { writeFileSync } from 'node:fs'

// [rows and columns, matrices, Heddle's milliseconds, torch's]
const measured = [
  [8, 4096, 3.12, 35.21],
  [32, 1024, 14.18, 109.33],
  [64, 256, 22.65, 91.15],
  [128, 64, 30.45, 90.47],
]
const series = [
  ['torch', '#c2571a', ([n, count, , torch]) => [n, (1000 * torch) / count]],
  ['Heddle', '#2b6cb0', ([n, count, heddle]) => [n, (1000 * heddle) / count]],
]
const [left, right, top, bottom] = [70, 500, 30, 270]
const along = (n) => left + ((Math.log2(n) - 2.5) / 5) * (right - left)
const up = (microseconds) => bottom - ((Math.log10(microseconds) + 0.5) / 4) * (bottom - top)
const parts = []
for (const power of [0, 1, 2, 3]) {
  const y = up(10 ** power)
  parts.push(`<line x1="${left}" x2="${right}" y1="${y}" y2="${y}" stroke="#dde"/>`)
  parts.push(`<text x="${left - 8}" y="${y + 4}" text-anchor="end">${10 ** power} µs</text>`)
}
for (const [n] of measured) parts.push(`<text x="${along(n)}" y="${bottom + 20}" text-anchor="middle">${n} × ${n}</text>`)
for (const [name, colour, pointOf] of series) {
  const points = measured.map(pointOf).map(([n, time]) => [along(n), up(time)])
  parts.push(`<polyline points="${points.map((point) => point.join(',')).join(' ')}" fill="none" stroke="${colour}" stroke-width="2"/>`)
  for (const [x, y] of points) parts.push(`<circle cx="${x}" cy="${y}" r="4" fill="${colour}"/>`)
  const [x, y] = points.at(-1)
  parts.push(`<text x="${x + 12}" y="${y + 4}" fill="${colour}">${name}</text>`)
}
parts.push(`<text x="${left}" y="18">SVD with vectors, f32, two Zen 4 cores: time per matrix of a batch</text>`)
const head =
  '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 580 300" font-family="sans-serif" font-size="13" fill="#334">'
const white = '<rect width="580" height="300" fill="#fff"/>'
writeFileSync(new URL('linalg.svg', import.meta.url), `${[head, white, ...parts, '</svg>'].join('\n')}\n`)
