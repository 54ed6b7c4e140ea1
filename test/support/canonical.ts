/**
 * What results of a factorisation have in common, whichever signs and bases an algorithm chooses: products and
 * projections that are unique.
 */
import type { Call } from './kernel_calls.js'

type Numbers = readonly number[]

interface Matrix {
  readonly rows: number
  readonly columns: number
  readonly numbers: Numbers
}

function product(a: Matrix, b: Matrix): Matrix {
  const numbers = new Array<number>(a.rows * b.columns).fill(0)
  for (let i = 0; i < a.rows; ++i)
    for (let k = 0; k < a.columns; ++k)
      for (let j = 0; j < b.columns; ++j)
        numbers[i * b.columns + j]! += a.numbers[i * a.columns + k]! * b.numbers[k * b.columns + j]!
  return { rows: a.rows, columns: b.columns, numbers }
}

function turned({ rows, columns, numbers }: Matrix): Matrix {
  const turn = Array.from({ length: rows * columns }, (_, i) => numbers[(i % rows) * columns + Math.floor(i / rows)]!)
  return { rows: columns, columns: rows, numbers: turn }
}

/** Column j times factors[j]; columns beyond the factors are left out. */
function scaled({ rows, columns, numbers }: Matrix, factors: Numbers): Matrix {
  const kept = Math.min(columns, factors.length)
  const from = (i: number) => numbers[Math.floor(i / kept) * columns + (i % kept)]! * factors[i % kept]!
  return { rows, columns: kept, numbers: Array.from({ length: rows * kept }, (_, i) => from(i)) }
}

const gram = (a: Matrix): Numbers => product(turned(a), a).numbers

/** How far a is from its upper triangle. */
const below = ({ columns, numbers }: Matrix): Numbers =>
  numbers.map((value, i) => (i % columns < Math.floor(i / columns) ? value : 0))

type Form = (outputs: readonly (Matrix | undefined)[]) => Numbers[]

const factorised: Form = ([q, r]) => [
  ...(q ? [gram(q)] : []),
  ...(r ? [gram(r), below(r)] : []),
  ...(q && r ? [product(q, r).numbers] : []),
]

const forms: Readonly<Record<string, Form>> = {
  svd: ([u, s, vh]) => {
    const squares = s!.numbers.map((value) => value * value)
    const v = vh && turned(vh)
    const left = u && scaled(u, s!.numbers)
    return [
      s!.numbers,
      ...[u, v].flatMap((side) =>
        side ? [gram(side), product(scaled(side, squares), firstRows(side, squares)).numbers] : [],
      ),
      ...(left && v ? [product(left, firstRows(v, squares)).numbers] : []),
    ]
  },
  eigh: ([w, v]) => [w!.numbers, gram(v!), product(scaled(v!, w!.numbers), turned(v!)).numbers],
  qr: factorised,
  qr_pivoted: (outputs) => [...factorised(outputs), outputs[2]!.numbers],
  lu: ([order, lower, upper]) => [order!.numbers, product(lower!, upper!).numbers, below(upper!)],
}

/** Its first columns, as many as there are factors, as rows. */
function firstRows(side: Matrix, factors: Numbers): Matrix {
  return turned(
    scaled(
      side,
      factors.map(() => 1),
    ),
  )
}

/** The results themselves, where they are unique. `outputs` are those that are present. */
export function canonical(op: string, call: Call, outputs: readonly Numbers[]): readonly Numbers[] {
  const form = forms[op]
  if (form === undefined) return outputs
  const { shape } = call.inputs[0]!
  const count = shape.slice(0, -2).reduce((product, size) => product * size, 1)
  return Array.from({ length: count }, (_, index) => {
    let present = 0
    return form(
      call.outputs.map((operand) => {
        if (operand === null) return undefined
        const sizes = operand.shape.slice(shape.length - 2)
        const [rows, columns] = [sizes.length === 2 ? sizes[0]! : 1, sizes.at(-1)!]
        const size = rows * columns
        return { rows, columns, numbers: outputs[present++]!.slice(index * size, (index + 1) * size) }
      }),
    )
  }).flat()
}
