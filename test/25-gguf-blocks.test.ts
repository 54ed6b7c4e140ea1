// GGUF's block formats against the `gguf` package (test/golden/make_gguf_blocks.py).
import { existsSync, readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import test from 'ava'
import { addon, type BlockEncoding, type NativeTensor } from '../lib/native.js'
import type { Tensor } from '../lib/tensor/tensor.js'
import { goldenTensors } from './golden.js'
import { temporaryFolder } from './support/temporary_folder.js'

const folder = temporaryFolder()
let goldens: ReadonlyMap<string, Tensor>
test.before('read the golden file', async () => {
  goldens = await goldenTensors('gguf_blocks.safetensors')
})

const bytesOf = async (name: string): Promise<Uint8Array> => (await goldens.get(name)!.data()) as Uint8Array
const floatsOf = async (name: string): Promise<Float32Array> => (await goldens.get(name)!.data()) as Float32Array

/** The same bits, or a NaN in both. */
const sameBits = (a: Float32Array, b: Float32Array): boolean =>
  a.length === b.length && a.every((value, i) => Object.is(value, b[i]))

const encodings: readonly BlockEncoding[] = [
  'q4_0',
  'q4_1',
  'q5_0',
  'q5_1',
  'q8_0',
  'q2_k',
  'q3_k',
  'q4_k',
  'q5_k',
  'q6_k',
  'iq4_nl',
  'iq4_xs',
]

for (const encoding of encodings)
  test(`${encoding} decodes bit for bit as in the gguf package, extreme scales included`, async (t) => {
    const path = join(folder, `${encoding}.bin`)
    writeFileSync(path, await bytesOf(`${encoding}.blocks`))
    const { shape } = goldens.get(`${encoding}.values`)!
    const file = await addon.openFile(path)
    const found = file.tensor({ encoding, dtype: 'f32', shape: [...shape], offset: 0 })
    file.close()
    t.true(sameBits(new Float32Array(await addon.tensorData(found)), await floatsOf(`${encoding}.values`)))
  })

for (const encoding of ['q8_0', 'f16', 'bf16'] as const)
  test(`floats become ${encoding} bit for bit as gguf.quantize makes them`, async (t) => {
    const path = join(folder, `floats.${encoding}`)
    const entry = { name: 'floats', tensor: goldens.get('floats')!.native, encoding }
    await addon.writeTensorFile(path, new Uint8Array(), 1, [entry])
    t.deepEqual(new Uint8Array(readFileSync(path)), await bytesOf(`floats.${encoding}`))
  })

test('numbers that are not finite are not quantised', async (t) => {
  const tensor = addon.tensorFromData('f32', [32], new Float32Array(32).fill(Number.NaN))
  const path = join(folder, 'nan')
  const write = addon.writeTensorFile(path, new Uint8Array(), 1, [{ name: 'w', tensor, encoding: 'q8_0' }])
  await t.throwsAsync(write, { code: 'ERR_HEDDLE_ARGUMENT', message: /^w: expected finite/ })
  t.false(existsSync(path))
})

test('rows in rope order come back as they were, matrices and vectors, from memory and from a file', async (t) => {
  const [heads, rows, columns] = [2, 12, 32]
  const values = Float32Array.from({ length: rows * columns }, (_, i) => i)
  const first = join(folder, 'rows.1')
  const second = join(folder, 'rows.2')
  const shapes = [[rows, columns], [rows]] as const
  const open = async (path: string) => {
    const file = await addon.openFile(path)
    const offsets = [32, 32 + 4 * values.length]
    return shapes.map((shape, i) =>
      file.tensor({ encoding: 'f32', dtype: 'f32', shape: [...shape], offset: offsets[i]!, interleavedHeads: heads }),
    )
  }
  const write = (path: string, tensors: readonly NativeTensor[]) => {
    const entries = tensors.map((tensor) => ({ name: 'w', tensor, encoding: 'f32' as const, interleavedHeads: heads }))
    return addon.writeTensorFile(path, Uint8Array.of(7), 32, entries)
  }
  await write(
    first,
    shapes.map((shape) => addon.tensorFromData('f32', [...shape], values.subarray(0, shape[0] * (shape[1] ?? 1)))),
  )
  await write(second, await open(first))
  t.deepEqual(readFileSync(second), readFileSync(first))
  const [matrix, vector] = await Promise.all((await open(second)).map((tensor) => addon.tensorData(tensor)))
  t.deepEqual(new Float32Array(matrix!), values)
  t.deepEqual(new Float32Array(vector!), values.subarray(0, rows))
})
