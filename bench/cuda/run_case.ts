/** Runs one case on the CUDA device, so many times in a row that the time of a single instruction shows. */
import { addon, type NativeProgram, type NativeTensor } from '../../lib/native.js'
import { type Buffer, encode } from '../../test/support/instruction_list.js'
import type { CudaCase } from './cases.js'
import { type CaseOperand, contents } from './operands.js'

/** A case's instruction `copies` times in one program, with tensors for all that it reads. */
export interface PreparedCase {
  readonly program: NativeProgram
  readonly inputs: readonly NativeTensor[]
  dispose(): void
}

/** `filled: false` leaves zeros in all operands: for looking at launches, not for running. */
export async function prepareCase(
  { op, inputs, outputs, updates, attributes = [] }: CudaCase,
  { copies = 1, filled = true }: { readonly copies?: number; readonly filled?: boolean } = {},
): Promise<PreparedCase> {
  const tensorOf = (operand: CaseOperand): NativeTensor =>
    filled
      ? addon.tensorFromData(operand.dtype, operand.shape, contents(operand))
      : addon.tensorZeros(operand.dtype, operand.shape)
  const buffers: Buffer[] = []
  const declare = (operand: CaseOperand, kind: Buffer['kind'], index: number): number =>
    buffers.push({ dtype: operand.dtype, shape: operand.shape, kind, index }) - 1
  const [given, bound]: [NativeTensor[], NativeTensor[]] = [[], []]
  const read = inputs.map((operand, i) => {
    if (operand === null) return null
    const held = updates && i === 0
    return declare(operand, held ? 'bound' : 'input', (held ? bound : given).push(tensorOf(operand)) - 1)
  })
  // All copies but the last write what nobody reads.
  const written = (kind: 'temp' | 'output'): (number | null)[] => {
    let count = 0
    return outputs.map((operand) => (operand === null ? null : declare(operand, kind, count++)))
  }
  const instructions = Array.from({ length: copies }, (_, i) => {
    const own = updates ? [read[0]!] : written(i === copies - 1 ? 'output' : 'temp')
    return { op, inputs: read, outputs: own, attributes }
  })
  const program = await addon.compile(encode({ buffers, instructions }), bound, 'cuda')
  const dispose = (): void => {
    program.dispose()
    for (const tensor of [...given, ...bound]) tensor.dispose()
  }
  return { program, inputs: given, dispose }
}

/** Seconds of one run, results thrown away. */
async function seconds({ program, inputs }: PreparedCase): Promise<number> {
  const start = performance.now()
  const results = await program.run(inputs)
  const end = performance.now()
  for (const result of results) result.dispose()
  return (end - start) / 1000
}

/** Median seconds of `runs` runs, after one that does not count: operands are copied to the device in it. */
async function medianSeconds(prepared: PreparedCase, runs: number): Promise<number> {
  const all: number[] = []
  for (let i = 0; i <= runs; i += 1) {
    const found = await seconds(prepared)
    if (i > 0) all.push(found)
  }
  return all.toSorted((a, b) => a - b)[Math.floor(runs / 2)]!
}

/**
 * Seconds of one instruction of a case: what a program with `copies` more of it takes longer, divided by them. So neither
 * the start of a run nor its end is in it.
 */
export async function instructionSeconds(
  each: CudaCase,
  { copies, runs }: { readonly copies: number; readonly runs: number },
): Promise<number> {
  const times: number[] = []
  for (const count of [1, 1 + copies]) {
    const prepared = await prepareCase(each, { copies: count })
    times.push(await medianSeconds(prepared, runs))
    prepared.dispose()
  }
  return (times[1]! - times[0]!) / copies
}
