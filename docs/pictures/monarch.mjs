// Draws docs/pictures/monarch.svg: the pattern of the two factors of a Monarch matrix with the permutation between them,
// and one of the low-rank sub-matrices of their product. `node docs/pictures/monarch.mjs`
import { writeFileSync } from 'node:fs'

const [m, cell, gap] = [4, 9, 60]
const n = m * m
const colours = ['#2b6cb0', '#c05621', '#2f855a', '#6b46c1']
const squares = []

function matrix(index, title, colourOf) {
  const left = 20 + index * (n * cell + gap)
  for (let row = 0; row < n; row += 1)
    for (let column = 0; column < n; column += 1) {
      const [x, y] = [left + column * cell, 40 + row * cell]
      const fill = colourOf(row, column) ?? '#f1f1f1'
      squares.push(`<rect x="${x}" y="${y}" width="${cell - 1}" height="${cell - 1}" fill="${fill}"/>`)
    }
  squares.push(`<text x="${left}" y="28">${title}</text>`)
  if (index > 0) squares.push(`<text x="${left - gap / 2 - 5}" y="${45 + (n * cell) / 2}">${index === 1 ? '=' : '·'}</text>`)
}

const block = (index) => Math.floor(index / m)
// W: row o belongs to phase o mod L; one (phase, block) pair is a sub-matrix of rank 1.
matrix(0, 'W: rows of phase 1, columns of block 2', (row, column) =>
  row % m === 1 && block(column) === 2 ? colours[2] : undefined,
)
// The second factor with both permutations: unit r·L + l feeds the outputs s·L + l.
matrix(1, 'P₂ diag(blkdiag2) P₁', (row, column) => (row % m === column % m ? colours[row % m] : undefined))
matrix(2, 'diag(blkdiag1)', (row, column) => (block(row) === block(column) ? colours[block(row)] : undefined))

const width = 40 + 3 * n * cell + 2 * gap
const style = 'font-family="sans-serif" font-size="13"'
const head = `<svg xmlns="http://www.w3.org/2000/svg" width="${width}" height="${60 + n * cell}" ${style}>`
writeFileSync(new URL('monarch.svg', import.meta.url), `${[head, ...squares, '</svg>'].join('\n')}\n`)
