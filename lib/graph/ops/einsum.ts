/** Einstein's sums: parsed here, computed by diagonals, sums, transposes and matrix products in the cheapest order. */
import { shapeText } from '../../tensor/dtype.js'
import { misuse } from '../operator.js'
import type { Sym } from '../sym.js'
import { mul } from './elementwise.js'
import { slice, transpose } from './index.js'
import { matmul } from './matmul.js'
import { reshape, sum } from './reduce.js'

/** A value whose axes have names. An axis that the ellipsis stands for has a name like `...0`, counted from the end. */
interface Term {
  readonly value: Sym
  readonly labels: readonly string[]
}

/** Orders of more operands than this would take too long to compare. */
const maxOperands = 10

/**
 * Σ over the labels that the result does not name, of the product of all operands. As in NumPy and PyTorch: `...`
 * stands for leading axes that broadcast, a label twice in one operand for its diagonal, and without `->` the result
 * has the labels that occur once, in alphabetical order. Several operands are multiplied in pairs, in the order that
 * takes the fewest multiplications.
 * @example einsum('bqhd,bkhd->bhqk', q, k)
 * @throws ERR_HEDDLE_ARGUMENT when the equation cannot be read; ERR_HEDDLE_SHAPE when operands do not fit it
 */
export function einsum(equation: string, ...operands: readonly Sym[]): Sym {
  const { terms, output, sizes } = parse(equation, operands)
  const result = contract(terms, output, sizes)
  return arrange(result, output).value
}

interface Parsed {
  readonly terms: readonly Term[]
  readonly output: readonly string[]
  readonly sizes: ReadonlyMap<string, number>
}

function parse(equation: string, operands: readonly Sym[]): Parsed {
  const refuse = (expected: string, got: string): never => misuse('einsum', expected, got, 'ERR_HEDDLE_ARGUMENT')
  const [left, right, ...more] = equation.replaceAll(/\s/g, '').split('->')
  const parts = left!.split(',')
  if (more.length > 0 || ![...parts, right ?? ''].every((part) => /^[a-zA-Z]*(\.\.\.)?[a-zA-Z]*$/.test(part)))
    refuse("an equation like 'ij,jk->ik'", equation)
  if (parts.length !== operands.length) refuse(`${parts.length} operands for ${equation}`, `${operands.length}`)
  if (operands.length > maxOperands) refuse(`at most ${maxOperands} operands`, `${operands.length}`)
  const named = parts.map((part, i) => ({ value: operands[i]!, labels: labelsOf(part, operands[i]!) }))
  const sizes = sizesOf(named)
  const output = right === undefined ? impliedOutput(parts, sizes) : outputLabels(right, sizes)
  const wrong = output.find((label, i) => !sizes.has(label) || output.indexOf(label) !== i)
  if (wrong) refuse('a result of labels that the operands have, each once', `${wrong} in ${equation}`)
  return { terms: named.map((term) => withoutStretched(diagonal(term), sizes)), output, sizes }
}

/** One label per axis. */
function labelsOf(part: string, value: Sym): string[] {
  const [before, after] = part.split('...')
  const named = before!.length + (after?.length ?? 0)
  const hidden = value.rank - named
  if (hidden < 0 || (after === undefined && hidden !== 0))
    misuse('einsum', `an operand with axes '${part}'`, shapeText(value.shape))
  return [...before!, ...ellipsis(hidden), ...(after ?? '')]
}

const ellipsis = (count: number): string[] => Array.from({ length: count }, (_, i) => `...${count - 1 - i}`)

function sizesOf(terms: readonly Term[]): Map<string, number> {
  const sizes = new Map<string, number>()
  for (const { value, labels } of terms)
    for (const [axis, label] of labels.entries()) {
      const size = value.shape[axis]!
      const known = sizes.get(label) ?? size
      const stretches = label.startsWith('.') && (known === 1 || size === 1)
      if (known !== size && !stretches) misuse('einsum', `size ${known} for '${label}'`, `${size}`)
      sizes.set(label, stretches ? known * size : size)
    }
  return sizes
}

const hiddenLabels = (sizes: ReadonlyMap<string, number>): string[] =>
  ellipsis([...sizes.keys()].filter((label) => label.startsWith('.')).length)

function impliedOutput(parts: readonly string[], sizes: ReadonlyMap<string, number>): string[] {
  const letters = [...parts.join('').replaceAll('.', '')]
  const once = letters.filter((label) => letters.indexOf(label) === letters.lastIndexOf(label))
  return [...hiddenLabels(sizes), ...once.sort()]
}

function outputLabels(right: string, sizes: ReadonlyMap<string, number>): string[] {
  const [before, after] = right.split('...')
  return [...before!, ...(after === undefined ? [] : hiddenLabels(sizes)), ...(after ?? '')]
}

/** The diagonal of each pair of axes of one label: every (n + 1)-th element of the two axes laid in a row. */
function diagonal({ value, labels }: Term): Term {
  const second = labels.findIndex((label, axis) => labels.indexOf(label) !== axis)
  if (second < 0) return { value, labels }
  const first = labels.indexOf(labels[second]!)
  const others = [...labels.keys()].filter((axis) => axis !== first && axis !== second)
  const n = value.shape[first]!
  const shape = others.map((axis) => value.shape[axis]!)
  const flat = reshape(transpose(value, [...others, first, second]), [...shape, n * n])
  const axis = others.length
  const taken = n === 0 ? flat : slice(flat, [{ axis, start: 0, end: n * n, step: n + 1 }])
  return diagonal({ value: taken, labels: [...others.map((other) => labels[other]!), labels[first]!] })
}

/** Without axes of size 1 that broadcast: an operand that lacks a label is the same all along it. */
function withoutStretched({ value, labels }: Term, sizes: ReadonlyMap<string, number>): Term {
  const kept = [...labels.keys()].filter((axis) => value.shape[axis] === sizes.get(labels[axis]!))
  return {
    value: reshape(
      value,
      kept.map((axis) => value.shape[axis]!),
    ),
    labels: kept.map((axis) => labels[axis]!),
  }
}

/** Sums over the axes that are not kept. */
function summed({ value, labels }: Term, keep: (label: string) => boolean): Term {
  const axes = [...labels.keys()].filter((axis) => !keep(labels[axis]!))
  return axes.length === 0 ? { value, labels } : { value: sum(value, { axes }), labels: labels.filter(keep) }
}

/** Axes in the order of their labels. */
function arrange({ value, labels }: Term, order: readonly string[]): Term {
  const permutation = order.map((label) => labels.indexOf(label))
  const turned = permutation.every((axis, i) => axis === i) ? value : transpose(value, permutation)
  return { value: turned, labels: order }
}

/** A way to multiply the terms of a set (of bits): one term, or the products of two halves. */
interface Plan {
  readonly cost: number
  readonly set: number
  readonly halves?: readonly [Plan, Plan]
}

/** Multiplies all terms in the order of least cost; the result has the output's labels in some order. */
function contract(terms: readonly Term[], output: readonly string[], sizes: ReadonlyMap<string, number>): Term {
  const has = (set: number, label: string): boolean =>
    terms.some(({ labels }, i) => ((set >> i) & 1) === 1 && labels.includes(label))
  const all = 2 ** terms.length - 1
  const keeps =
    (set: number) =>
    (label: string): boolean =>
      output.includes(label) || has(all & ~set, label)
  const place = (a: Term, b: Term): number => {
    const own = output.findIndex((label) => a.labels.includes(label) && !b.labels.includes(label))
    return own < 0 ? output.length : own
  }
  const build = ({ set, halves }: Plan): Term => {
    if (!halves) return summed(terms[Math.log2(set)]!, keeps(set))
    const [a, b] = halves.map(build) as [Term, Term]
    // The side whose own labels come first in the result becomes the rows: then nothing is left to transpose.
    return place(a, b) <= place(b, a) ? product(a, b, keeps(set)) : product(b, a, keeps(set))
  }
  return build(cheapest(terms, sizes, keeps))
}

/** The best plan for every set of terms, from small sets to the whole one. */
function cheapest(
  terms: readonly Term[],
  sizes: ReadonlyMap<string, number>,
  keeps: (set: number) => (label: string) => boolean,
): Plan {
  const best: Plan[] = []
  const open: (readonly string[])[] = []
  for (let set = 1; set < 2 ** terms.length; set += 1) {
    const members = terms.filter((_, i) => ((set >> i) & 1) === 1)
    open[set] = [...new Set(members.flatMap(({ labels }) => labels))].filter(keeps(set))
    if (members.length === 1) {
      best[set] = { cost: 0, set }
      continue
    }
    for (let half = (set - 1) & set; half > 0; half = (half - 1) & set) {
      const rest = set & ~half
      if (half < rest) continue
      const touched = new Set([...open[half]!, ...open[rest]!])
      const work = [...touched].reduce((total, label) => total * sizes.get(label)!, 1)
      const cost = best[half]!.cost + best[rest]!.cost + work
      if (!best[set] || cost < best[set]!.cost) best[set] = { cost, set, halves: [best[half]!, best[rest]!] }
    }
  }
  return best.at(-1)!
}

/** Σ over the shared labels that are not kept. Both sides have only labels that the other has, or that are kept. */
function product(a: Term, b: Term, keep: (label: string) => boolean): Term {
  const shared = a.labels.filter((label) => b.labels.includes(label))
  const batch = shared.filter(keep)
  const inner = shared.filter((label) => !keep(label))
  const rows = a.labels.filter((label) => !shared.includes(label))
  const columns = b.labels.filter((label) => !shared.includes(label))
  const size = (term: Term, labels: readonly string[]): number[] =>
    labels.map((label) => term.value.shape[term.labels.indexOf(label)]!)
  const shape = [...size(a, batch), ...size(a, rows), ...size(b, columns)]
  const labels = [...batch, ...rows, ...columns]
  if (inner.length === 0) {
    const ones = (count: number): number[] => new Array<number>(count).fill(1)
    const left = reshape(arrange(a, [...batch, ...rows]).value, [
      ...size(a, batch),
      ...size(a, rows),
      ...ones(columns.length),
    ])
    const right = reshape(arrange(b, [...batch, ...columns]).value, [
      ...size(a, batch),
      ...ones(rows.length),
      ...size(b, columns),
    ])
    return { value: mul(left, right), labels }
  }
  const left = matrix(a, batch, rows, inner)
  const right = matrix(b, batch, inner, columns)
  const y = matmul(left.value, right.value, { transposeA: left.turned, transposeB: right.turned })
  return { value: reshape(y, shape), labels }
}

/** A term as matrices [batch, rows, columns], or turned where it lies that way already. */
function matrix(
  term: Term,
  batch: readonly string[],
  rows: readonly string[],
  columns: readonly string[],
): { readonly value: Sym; readonly turned: boolean } {
  const count = (labels: readonly string[]): number =>
    labels.reduce((total, label) => total * term.value.shape[term.labels.indexOf(label)]!, 1)
  const other = [...batch, ...columns, ...rows]
  const turned = other.every((label, i) => label === term.labels[i])
  const sides = turned ? [count(columns), count(rows)] : [count(rows), count(columns)]
  const { value } = turned ? term : arrange(term, [...batch, ...rows, ...columns])
  return { value: reshape(value, batch.length ? [count(batch), ...sides] : sides), turned }
}
