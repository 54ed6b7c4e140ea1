/** Matrices of plain numbers: what tests hold the factors of the core against. */
import { type Tensor, tensor } from '../../lib/tensor/tensor.js'

/** Row-major, one after the other. */
export interface Numbers {
  readonly values: Float64Array
  readonly rows: number
  readonly columns: number
}

export const numbersOf = async (a: Tensor, index = 0): Promise<Numbers> => {
  const [rows, columns] = a.shape.slice(-2) as [number, number]
  const all = Float64Array.from((await a.data()) as Float32Array)
  return { values: all.slice(index * rows * columns, (index + 1) * rows * columns), rows, columns }
}

export function product(a: Numbers, b: Numbers): Numbers {
  const values = new Float64Array(a.rows * b.columns)
  for (let i = 0; i < a.rows; i += 1)
    for (let k = 0; k < a.columns; k += 1)
      for (let j = 0; j < b.columns; j += 1)
        values[i * b.columns + j]! += a.values[i * a.columns + k]! * b.values[k * b.columns + j]!
  return { values, rows: a.rows, columns: b.columns }
}

export const transposed = ({ values, rows, columns }: Numbers): Numbers => ({
  values: Float64Array.from(values, (_, at) => values[(at % rows) * columns + Math.floor(at / rows)]!),
  rows: columns,
  columns: rows,
})

export const scaled = (a: Numbers, s: ArrayLike<number>): Numbers => ({
  ...a,
  values: a.values.map((value, at) => value * (s[at % a.columns] ?? 0)),
})

export const frobenius = ({ values }: Numbers): number => {
  const largest = values.reduce((most, value) => Math.max(most, Math.abs(value)), 0) || 1
  return largest * Math.sqrt(values.reduce((sum, value) => sum + (value / largest) ** 2, 0))
}

/** ‖a − b‖ / ‖b‖, or ‖a‖ for b = 0. */
export function distance(a: Numbers, b: Numbers): number {
  const difference = frobenius({ ...a, values: a.values.map((value, at) => value - b.values[at]!) })
  return difference / (frobenius(b) || 1)
}

/** ‖aᵀ a − 1‖ */
export function notOrthonormal(a: Numbers): number {
  const gram = product(transposed(a), a)
  return frobenius({
    ...gram,
    values: gram.values.map((value, at) => value - (at % (gram.columns + 1) === 0 ? 1 : 0)),
  })
}

export const matrixOf = (values: readonly number[] | Float32Array, shape: readonly number[], dtype: 'f32' | 'f64') =>
  tensor(dtype === 'f64' ? Float64Array.from(values) : Float32Array.from(values), shape)

export const epsilonOf = { f32: 2 ** -23, f64: 2 ** -52 } as const
