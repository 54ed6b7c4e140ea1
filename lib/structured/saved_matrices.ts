/**
 * Structured matrices in safetensors files. The parameters of the matrix `name` lie under `name.parameter`; what rebuilds
 * it is JSON in the file's metadata, under `heddle.structured`: `{ name: { kind, shape, transposed, config } }`.
 */
import { z } from 'zod'
import { HeddleError } from '../errors.js'
import { openSafetensors } from '../formats/safetensors.js'
import type { StoredTensor } from '../formats/tensor_archive.js'
import { copied } from '../graph/computed.js'
import { addon, type NativeTensor } from '../native.js'
import type { DType } from '../tensor/dtype.js'
import { Tensor } from '../tensor/tensor.js'
import { structures } from './registry.js'
import { type SavedStructure, type StructuredMatrix, savedStructure } from './structured_matrix.js'

const metadataKey = 'heddle.structured'

/** Writes matrices into a file, whole or not at all. @throws ERR_HEDDLE_IO */
export async function saveStructured(
  path: string,
  matrices: Readonly<Record<string, StructuredMatrix>>,
): Promise<void> {
  const entries = Object.entries(matrices).flatMap(([name, matrix]) =>
    [...matrix.parameters(), ...matrix.buffers()].map(([parameter, tensor]) => ({
      name: `${name}.${parameter}`,
      tensor: tensor.native,
    })),
  )
  const saved = Object.fromEntries(Object.entries(matrices).map(([name, each]) => [name, savedStructure(each)]))
  await addon.writeSafetensors(path, entries, { [metadataKey]: JSON.stringify(saved) })
}

/**
 * The matrices of a file that {@link saveStructured} wrote, in tensors of their own.
 * @throws ERR_HEDDLE_IO; ERR_HEDDLE_FORMAT when the file's parts do not fit together
 */
export async function loadStructured(path: string): Promise<Record<string, StructuredMatrix>> {
  const archive = await openSafetensors(path)
  try {
    const text = archive.metadata.get(metadataKey)
    if (text === undefined)
      throw new HeddleError('ERR_HEDDLE_FORMAT', { place: path, expected: `metadata "${metadataKey}"`, got: 'none' })
    const saved = parseStructures(JSON.parse(text), path)
    const matrices: Record<string, StructuredMatrix> = {}
    for (const [name, each] of Object.entries(saved))
      matrices[name] = await restoreStructured(each, await parametersOf(archive.tensors, name))
    return matrices
  } finally {
    archive.close()
  }
}

/** The matrix over these parameters. @throws ERR_HEDDLE_FORMAT */
export const restoreStructured = async (
  saved: SavedStructure,
  parameters: ReadonlyMap<string, Tensor>,
): Promise<StructuredMatrix> => structures.get(saved.kind)!.restore(saved, parameters)

/** Copies of the tensors `name.parameter` without a further dot, by parameter: those of a file cannot be trained. */
async function parametersOf(tensors: ReadonlyMap<string, StoredTensor>, name: string): Promise<Map<string, Tensor>> {
  const prefix = `${name}.`
  const found = new Map<string, Tensor>()
  for (const stored of tensors.values()) {
    const parameter = stored.name.slice(prefix.length)
    if (!stored.name.startsWith(prefix) || parameter.includes('.')) continue
    using view = new Tensor(loadParameter(stored))
    found.set(parameter, await copied(view))
  }
  return found
}

/** A parameter from a file: indices stay what they are, half floats are widened. */
export const loadParameter = (stored: StoredTensor): NativeTensor => stored.load(readAs[stored.encoding] ?? 'f32')

const readAs: Readonly<Record<string, DType>> = { f64: 'f64', i32: 'i32', i64: 'i64', u8: 'u8', u32: 'u32' }

const size = z.int().min(1)
const schema = z.record(
  z.string(),
  z.strictObject({
    kind: z.string().refine((kind) => structures.has(kind)),
    shape: z.tuple([size, size]),
    transposed: z.boolean(),
    config: z.record(z.string(), z.union([z.number(), z.string(), z.boolean(), z.array(z.number())])),
  }),
)

/** Checks what a file says about its matrices. @throws ERR_HEDDLE_FORMAT */
export function parseStructures(value: unknown, place: string): Record<string, SavedStructure> {
  const parsed = schema.safeParse(value)
  if (parsed.success) return parsed.data as Record<string, SavedStructure>
  const { path, message } = parsed.error.issues[0]!
  throw new HeddleError('ERR_HEDDLE_FORMAT', {
    place: `${place}: ${path.join('.')}`,
    expected: `matrices of kinds ${[...structures.keys()].join(', ')}`,
    got: message,
  })
}
