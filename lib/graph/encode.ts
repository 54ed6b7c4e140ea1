/** The byte form of an instruction list: little-endian, read and checked by cpp/program/instruction_list.cpp. */
import { type DType, dtypes } from '../tensor/dtype.js'
import { fusedInstructions } from './fused.js'
import { type AttributeType, operatorOf } from './operator.js'
import { pause } from './pause.js'
import type { Attributes, AttributeValue } from './sym.js'

const bufferKinds = ['temp', 'input', 'output', 'bound', 'alias'] as const
export type BufferKind = (typeof bufferKinds)[number]

export interface BufferDeclaration {
  readonly kind: BufferKind
  /** Index among the inputs, outputs or bound tensors; for an alias the buffer it is a view of; 0 for a temporary. */
  readonly index: number
  readonly dtype: DType
  readonly shape: readonly number[]
}

export interface Instruction {
  readonly op: string
  /** Buffer ids; -1 where an optional operand is left out. */
  readonly inputs: readonly number[]
  readonly outputs: readonly number[]
  readonly attributes: Attributes
}

export interface InstructionList {
  readonly buffers: readonly BufferDeclaration[]
  readonly instructions: readonly Instruction[]
}

const magic = 0x504c4448
const version = 1
const attributeCodes: readonly AttributeType[] = ['i64', 'f64', 'string', 'i64[]', 'f64[]', 'string[]']

export async function encode({ buffers, instructions }: InstructionList): Promise<Uint8Array> {
  const out = new ByteWriter()
  out.u32(magic)
  out.u32(version)
  out.u32(buffers.length)
  for (const [id, { kind, index, dtype, shape }] of buffers.entries()) {
    if (id % 64 === 0) await pause()
    out.u8(bufferKinds.indexOf(kind))
    out.u8(dtypes.indexOf(dtype))
    out.u8(shape.length)
    out.u8(0)
    out.u32(index)
    for (const size of shape) out.i64(size)
  }
  out.u32(instructions.length)
  for (const [id, instruction] of instructions.entries()) {
    if (id % 64 === 0) await pause()
    encodeInstruction(out, instruction)
  }
  return out.finish()
}

function encodeInstruction(out: ByteWriter, { op, inputs, outputs, attributes }: Instruction): void {
  const types = fusedInstructions.get(op)?.attributes ?? operatorOf(op).attributes ?? {}
  out.shortText(op)
  for (const ids of [inputs, outputs]) {
    out.u16(ids.length)
    for (const id of ids) out.u32(id < 0 ? 0xffffffff : id)
  }
  const entries = Object.entries(attributes)
  out.u16(entries.length)
  for (const [name, value] of entries) {
    const type = types[name]
    if (!type) throw new Error(`operator ${op} does not declare attribute ${name}`)
    out.shortText(name)
    out.u8(attributeCodes.indexOf(type))
    encodeValue(out, type, value)
  }
}

function encodeValue(out: ByteWriter, type: AttributeType, value: AttributeValue): void {
  if (type.endsWith('[]')) {
    const list = value as readonly (number | string)[]
    out.u32(list.length)
    for (const element of list) encodeValue(out, type.slice(0, -2) as AttributeType, element)
  } else if (type === 'i64') out.i64(value as number)
  else if (type === 'f64') out.f64(value as number)
  else out.longText(value as string)
}

class ByteWriter {
  #view = new DataView(new ArrayBuffer(1 << 16))
  #length = 0
  readonly #utf8 = new TextEncoder()
  readonly #texts = new Map<string, Uint8Array>()

  u8(value: number): void {
    const at = this.#advance(1)
    this.#view.setUint8(at, value)
  }
  u16(value: number): void {
    const at = this.#advance(2)
    this.#view.setUint16(at, value, true)
  }
  u32(value: number): void {
    const at = this.#advance(4)
    this.#view.setUint32(at, value, true)
  }
  i64(value: number): void {
    const at = this.#advance(8)
    this.#view.setBigInt64(at, BigInt(value), true)
  }
  f64(value: number): void {
    const at = this.#advance(8)
    this.#view.setFloat64(at, value, true)
  }
  shortText(text: string): void {
    const bytes = this.#encoded(text)
    this.u16(bytes.length)
    this.#bytes(bytes)
  }
  longText(text: string): void {
    const bytes = this.#encoded(text)
    this.u32(bytes.length)
    this.#bytes(bytes)
  }
  finish(): Uint8Array {
    return new Uint8Array(this.#view.buffer.slice(0, this.#length))
  }

  /** The same few names and micro-operations come again and again, and the encoder takes its time for each. */
  #encoded(text: string): Uint8Array {
    const bytes = this.#texts.get(text) ?? this.#utf8.encode(text)
    this.#texts.set(text, bytes)
    return bytes
  }

  #bytes(bytes: Uint8Array): void {
    const at = this.#advance(bytes.length)
    new Uint8Array(this.#view.buffer).set(bytes, at)
  }

  /** Makes room and gives the position to write at; the view may be another one afterwards. */
  #advance(size: number): number {
    const at = this.#length
    this.#length += size
    if (this.#length > this.#view.byteLength) {
      const larger = new Uint8Array(Math.max(this.#length, this.#view.byteLength * 2))
      larger.set(new Uint8Array(this.#view.buffer))
      this.#view = new DataView(larger.buffer)
    }
    return at
  }
}
