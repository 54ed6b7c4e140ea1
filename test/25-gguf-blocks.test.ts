// GGUF's block formats against the `gguf` package (test/golden/make_gguf_blocks.py).
import { writeFileSync } from 'node:fs'
import { join } from 'node:path'
import test from 'ava'
import { addon, type BlockEncoding } from '../lib/native.js'
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
