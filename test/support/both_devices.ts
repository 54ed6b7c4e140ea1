/** Runs one instruction on the CPU and on the CUDA backend, with the same contents, and compares what they give. */
import { addon, type Device, type NativeTensor } from '../../lib/native.js'
import { type DType, dtypeSize, elementCount } from '../../lib/tensor/dtype.js'
import { randomNumbers } from '../random_numbers.js'
import { type Buffer as Declaration, encode } from './instruction_list.js'
import type { Call, Operand, Random } from './kernel_calls.js'

/** A stream of draws of its own for each kernel. */
export function randomOf(name: string): Random {
  const draws = randomNumbers(100_000, [...name].reduce((sum, letter) => sum * 31 + letter.charCodeAt(0), 11) >>> 0)
  let drawn = 0
  return {
    below: (limit) => Math.floor(((draws[drawn++ % draws.length]! + 1) / 2) * limit),
    pick(values) {
      return values[this.below(values.length)]!
    },
  }
}

/** Contents that every kernel takes: numbers in [-1, 1], indices below 4, which the calls leave room for. */
export function contentsOf({ dtype, shape }: Operand, random: Random): Uint8Array {
  const count = elementCount(shape)
  const bytes = new Uint8Array(count * dtypeSize(dtype))
  const numbers = randomNumbers(count, random.below(1000))
  switch (dtype) {
    case 'f32':
      new Float32Array(bytes.buffer).set(numbers)
      break
    case 'f64':
      new Float64Array(bytes.buffer).set(numbers)
      break
    case 'bf16':
      new Uint16Array(bytes.buffer).set(new Uint32Array(new Float32Array(numbers).buffer).map((bits) => bits >>> 16))
      break
    case 'f16':
      // 2^-8 to 2^7 with random digits, of either sign.
      for (const [i, number] of numbers.entries())
        new Uint16Array(bytes.buffer)[i] = 0x1c00 + Math.floor((number + 1) * 0x1fff) + (i % 3 === 0 ? 0x8000 : 0)
      break
    case 'i32':
    case 'i64':
      for (let i = 0; i < count; ++i) bytes[i * dtypeSize(dtype)] = random.below(4)
      break
    default:
      for (let i = 0; i < bytes.length; ++i) bytes[i] = random.below(256)
  }
  return bytes
}

type Special = (call: Call, input: number, random: Random) => ArrayLike<number> | undefined

/** Row pointers, indices and order of a sparse support; now and then left to chance, which is refused. */
const supportAt =
  (first: number): Special =>
  ({ inputs, outputs }, input, random) => {
    if (input < first || input > first + 2 || random.below(8) === 0) return undefined
    const count = inputs[first + 1]!.shape[0]!
    if (input === first) return pointersTo(count, inputs[first]!.shape[0]! - 1, random)
    if (input === first + 2) return shuffled(count, random)
    const dense = first === 1 ? inputs[0]! : outputs[0]!.shape.length === 2 ? outputs[0]! : inputs[1]!
    // Fewest columns of the matrices that the call might mean.
    const columns = Math.min(...dense.shape, ...(first === 2 && inputs[1] ? inputs[1].shape : []))
    return Array.from({ length: count }, () => random.below(columns))
  }

function pointersTo(count: number, rows: number, random: Random): number[] {
  const inner = Array.from({ length: rows - 1 }, () => random.below(count + 1)).sort((a, b) => a - b)
  return [0, ...inner, count]
}

function shuffled(count: number, random: Random): number[] {
  const order = [...Array(count).keys()]
  for (let i = count - 1; i > 0; --i) {
    const j = random.below(i + 1)
    ;[order[i], order[j]] = [order[j]!, order[i]!]
  }
  return order
}

/** Small numbers, and `large` where row and column are `apart` of each other, in each matrix of the first input; now and
 * then zeros, which are refused. */
const dominated =
  (apart: number, large: number): Special =>
  ({ inputs }, input, random) => {
    if (input !== 0) return undefined
    const { shape } = inputs[0]!
    const n = shape.at(-1)!
    if (random.below(8) === 0) return new Array<number>(elementCount(shape)).fill(0)
    return Array.from({ length: elementCount(shape) }, (_, i) => {
      const [row, column] = [Math.floor(i / n) % n, i % n]
      return (random.below(2001) / 1000 - 1) / n + ((row + apart) % n === column ? large : 0)
    })
  }

/** Settings and a history that each do something, for some rows; others decode greedily. */
const sampling: Special = ({ inputs }, input, random) => {
  const [rows, width] = inputs[0]!.shape
  const between = (low: number, high: number) => low + ((high - low) * random.below(1001)) / 1000
  if (input === 2)
    return Array.from({ length: rows! }, () => [
      ...[random.pick([0, between(0.2, 2)]), random.pick([0, 1 + random.below(9)]), random.pick([1, between(0, 1)])],
      ...[random.pick([0, between(0, 0.5)]), random.pick([1, 1.4]), random.pick([0, 0.3]), random.pick([0, 0.2])],
    ]).flat()
  if (input !== 5) return undefined
  return Array.from({ length: elementCount(inputs[5]!.shape) }, () => random.below(width! + 2) - 1)
}

/** Contents of inputs whose kernels want more than the right range. */
const special: Readonly<Record<string, Special>> = {
  spmm: supportAt(2),
  sddmm: supportAt(2),
  sparse_add: supportAt(2),
  sparse_gather: supportAt(1),
  sample_token: sampling,
  cholesky: dominated(0, 2),
  solve: dominated(1, 2),
  solve_triangular: dominated(0, 2),
}

function specialContents(op: string, call: Call, input: number, random: Random): Uint8Array | undefined {
  const numbers = special[op]?.(call, input, random)
  if (numbers === undefined) return undefined
  const { dtype } = call.inputs[input]!
  const Numbers = { f32: Float32Array, f64: Float64Array, i32: Int32Array }[dtype as 'f32' | 'f64' | 'i32']
  return new Uint8Array(Numbers.from(numbers).buffer)
}

/** What `call` is made of, as buffers of a program, with contents for all that it reads. */
export interface Prepared {
  readonly op: string
  readonly list: Uint8Array
  readonly given: readonly Filled[]
  readonly bound: readonly Filled[]
  /** Operands that it writes: outputs of the program, and bound tensors. */
  readonly outputs: readonly Operand[]
  readonly updated: readonly Operand[]
}

interface Filled {
  readonly operand: Operand
  readonly contents: Uint8Array
}

/** An operand that is an input and an output at once (the same object) is bound, some others are as well. */
export function prepare(op: string, call: Call, random: Random): Prepared {
  const buffers: Declaration[] = []
  const [given, bound]: [Filled[], Filled[]] = [[], []]
  const [outputs, updated]: [Operand[], Operand[]] = [[], []]
  const ids = new Map<Operand, number>()
  const declare = (declaration: Declaration): number => buffers.push(declaration) - 1
  const inputs = call.inputs.map((operand, input) => {
    if (operand === null) return null
    const held = call.outputs.includes(operand) || random.below(3) === 0
    const list = held ? bound : given
    const index =
      list.push({ operand, contents: specialContents(op, call, input, random) ?? contentsOf(operand, random) }) - 1
    const id = declare({ ...operand, kind: held ? 'bound' : 'input', index })
    ids.set(operand, id)
    return id
  })
  const written = call.outputs.map((operand) => {
    if (operand === null) return null
    const shared = ids.get(operand)
    if (shared !== undefined) updated.push(operand)
    return shared ?? declare({ ...operand, kind: 'output', index: outputs.push(operand) - 1 })
  })
  const list = encode({ buffers, instructions: [{ op, inputs, outputs: written, attributes: call.attributes }] })
  return { op, list, given, bound, outputs, updated }
}

/** The contents of what it writes. */
export async function results(prepared: Prepared, device: Device): Promise<NativeTensor[]> {
  const native = ({ operand, contents }: Filled) => addon.tensorFromData(operand.dtype, operand.shape, contents)
  const bound = prepared.bound.map(native)
  const program = await addon.compile(prepared.list, bound, device)
  try {
    const outputs = await program.run(prepared.given.map(native))
    return [
      ...outputs,
      ...prepared.updated.map((operand) => bound[prepared.bound.findIndex((each) => each.operand === operand)]!),
    ]
  } finally {
    program.dispose()
  }
}

/** Elements as numbers. */
export async function numbersOf(tensor: NativeTensor): Promise<readonly number[]> {
  const data = await addon.tensorData(tensor)
  return Array.from(view(data, tensor.dtype), Number)
}

function view(data: ArrayBuffer, dtype: DType): ArrayLike<number | bigint> {
  switch (dtype) {
    case 'f32':
      return new Float32Array(data)
    case 'f64':
      return new Float64Array(data)
    case 'bf16':
      return new Float32Array(Uint32Array.from(new Uint16Array(data), (bits) => bits << 16).buffer)
    case 'f16':
      return Array.from(new Uint16Array(data), halfValue)
    case 'i32':
      return new Int32Array(data)
    case 'i64':
      return new BigInt64Array(data)
    case 'u8':
      return new Uint8Array(data)
    case 'u32':
      return new Uint32Array(data)
  }
}

function halfValue(bits: number): number {
  const exponent = (bits >> 10) & 31
  const fraction = bits & 1023
  const sign = bits & 0x8000 ? -1 : 1
  if (exponent === 31) return fraction === 0 ? sign * Number.POSITIVE_INFINITY : Number.NaN
  return sign * (exponent === 0 ? fraction * 2 ** -24 : (1 + fraction / 1024) * 2 ** (exponent - 15))
}

/** By dtype, the relative difference of neighbouring numbers. */
const steps: Readonly<Record<DType, number>> = {
  f32: 2 ** -23,
  f64: 2 ** -52,
  bf16: 2 ** -7,
  f16: 2 ** -10,
  i32: 0,
  i64: 0,
  u8: 0,
  u32: 0,
}

/**
 * What differs by more than `tolerance` times the larger of the number and `scale` of the array (rounding of the result's
 * own type comes on top), in words; undefined where nothing does. NaN equals NaN.
 */
export function difference(
  dtype: DType,
  got: readonly number[],
  expected: readonly number[],
  tolerance: number,
): string | undefined {
  if (got.length !== expected.length) return `${got.length} elements instead of ${expected.length}`
  const finite = expected.filter(Number.isFinite).map(Math.abs)
  const scale = Math.min(
    1,
    finite.reduce((a, b) => Math.max(a, b), 0),
  )
  for (const [i, value] of expected.entries()) {
    const found = got[i]!
    if (Object.is(found, value) || found === value) continue
    const allowed = (tolerance + (tolerance === 0 ? 0 : steps[dtype])) * Math.max(Math.abs(value), scale)
    if (!(Math.abs(found - value) <= allowed)) return `element ${i} is ${found} instead of ${value}`
  }
  return undefined
}
