/** Writes instruction lists byte by byte, valid ones and others: the graph's own encoder could only write valid ones. */
import { type DType, dtypes } from '../../lib/tensor/dtype.js'

const kinds = ['temp', 'input', 'output', 'bound', 'alias'] as const

export interface Buffer {
  readonly kind: (typeof kinds)[number]
  readonly dtype?: DType
  readonly shape: readonly number[]
  readonly index?: number
}

export type Attribute = string | number | readonly number[] | readonly string[]

export interface Instruction {
  readonly op: string
  /** Buffer ids; null: left out. */
  readonly inputs: readonly (number | null)[]
  readonly outputs: readonly (number | null)[]
  readonly attributes?: readonly (readonly [string, Attribute])[]
}

export interface Program {
  readonly buffers: readonly Buffer[]
  readonly instructions: readonly Instruction[]
}

/** One micro-operation of the `elementwise` kernel. */
export const pointwise = (op: string, inputs: readonly number[], output: number): Instruction => ({
  op: 'elementwise',
  inputs,
  outputs: [output],
  attributes: [
    ['ops', [op]],
    ['operands', inputs.map((_, i) => i)],
    ['constants', []],
    ['results', [inputs.length]],
  ],
})

export function encode(program: Program): Uint8Array<ArrayBuffer> {
  const bytes: number[] = []
  const u8 = (value: number) => bytes.push(value & 255)
  const u16 = (value: number) => bytes.push(value & 255, (value >> 8) & 255)
  const u32 = (value: number) => bytes.push(...new Uint8Array(Uint32Array.of(value).buffer))
  const i64 = (value: number) => bytes.push(...new Uint8Array(BigInt64Array.of(BigInt(value)).buffer))
  const f64 = (value: number) => bytes.push(...new Uint8Array(Float64Array.of(value).buffer))
  const text = (value: string, length: (n: number) => void) => {
    const encoded = new TextEncoder().encode(value)
    length(encoded.length)
    bytes.push(...encoded)
  }
  const ids = (values: readonly (number | null)[]) => {
    u16(values.length)
    for (const id of values) u32(id ?? 0xffffffff)
  }
  const list = <T>(type: number, values: readonly T[], write: (value: T) => void) => {
    u8(type)
    u32(values.length)
    values.forEach(write)
  }
  const attribute = (value: Attribute) => {
    if (typeof value === 'string') {
      u8(2)
      text(value, u32)
    } else if (typeof value === 'number') {
      u8(Number.isInteger(value) ? 0 : 1)
      if (Number.isInteger(value)) i64(value)
      else f64(value)
    } else if (value.every((each) => typeof each === 'string')) {
      list(5, value, (each) => text(each, u32))
    } else {
      const numbers = value as readonly number[]
      if (numbers.every(Number.isInteger)) list(3, numbers, i64)
      else list(4, numbers, f64)
    }
  }

  u32(0x504c4448)
  u32(1)
  u32(program.buffers.length)
  for (const { kind, dtype = 'f32', shape, index = 0 } of program.buffers) {
    u8(kinds.indexOf(kind))
    u8(dtypes.indexOf(dtype))
    u8(shape.length)
    u8(0)
    u32(index)
    shape.forEach(i64)
  }
  u32(program.instructions.length)
  for (const { op, inputs, outputs, attributes = [] } of program.instructions) {
    text(op, u16)
    ids(inputs)
    ids(outputs)
    u16(attributes.length)
    for (const [name, value] of attributes) {
      text(name, u16)
      attribute(value)
    }
  }
  return Uint8Array.from(bytes)
}
