// Weights that stay on the device in the blocks of their file, or are rounded to bf16 once: what is computed from them is
// what the CPU computes from the decoded numbers.

import { writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import test from 'ava'
import { gradients } from '../lib/graph/grad.js'
import { add, mul } from '../lib/graph/ops/elementwise.js'
import { gatherRows } from '../lib/graph/ops/index.js'
import { linearCrossEntropy } from '../lib/graph/ops/loss.js'
import { type MatmulOptions, matmul } from '../lib/graph/ops/matmul.js'
import { reshape, sum } from '../lib/graph/ops/reduce.js'
import { program } from '../lib/graph/program.js'
import { assign, read, type Sym } from '../lib/graph/sym.js'
import { exportGguf, loadModel } from '../lib/index.js'
import { addon, type BlockEncoding, type Device } from '../lib/native.js'
import { Tensor, tensor } from '../lib/tensor/tensor.js'
import { goldenTensors } from './golden.js'
import { randomNumbers, randomTensor } from './random_numbers.js'
import { allocatedBytes, emulated } from './support/cuda_host.js'
import { temporaryFolder } from './support/temporary_folder.js'
import { tinyModel } from './tiny_model.js'

type Encoding = BlockEncoding | 'bf16' | 'f16'

interface Layout {
  readonly elements: number
  readonly bytes: number
  /** Where 16-bit floating-point numbers lie. */
  readonly halves: readonly number[]
}

const layouts: Readonly<Record<Encoding, Layout>> = {
  q4_0: { elements: 32, bytes: 18, halves: [0] },
  q4_1: { elements: 32, bytes: 20, halves: [0, 2] },
  q5_0: { elements: 32, bytes: 22, halves: [0] },
  q5_1: { elements: 32, bytes: 24, halves: [0, 2] },
  q8_0: { elements: 32, bytes: 34, halves: [0] },
  q2_k: { elements: 256, bytes: 84, halves: [80, 82] },
  q3_k: { elements: 256, bytes: 110, halves: [108] },
  q4_k: { elements: 256, bytes: 144, halves: [0, 2] },
  q5_k: { elements: 256, bytes: 176, halves: [0, 2] },
  q6_k: { elements: 256, bytes: 210, halves: [208] },
  iq4_nl: { elements: 32, bytes: 18, halves: [0] },
  iq4_xs: { elements: 256, bytes: 136, halves: [0] },
  bf16: { elements: 1, bytes: 2, halves: [0] },
  f16: { elements: 1, bytes: 2, halves: [0] },
}
const encodings = Object.keys(layouts) as Encoding[]

const folder = temporaryFolder()

async function fileOf(name: string, bytes: Uint8Array) {
  const path = join(folder, name)
  await writeFile(path, bytes)
  return addon.openFile(path)
}

let files = 0

/** Traces a change of state, without results. */
const update = (change: () => void): [] => {
  change()
  return []
}

/** Random codes with scales of about 2^-6, as a matrix [n, k]. */
async function blockMatrix(encoding: Encoding, n: number, k: number, interleavedHeads?: number): Promise<Tensor> {
  const { elements, bytes: size, halves } = layouts[encoding]
  const numbers = randomNumbers((n * k * size) / elements, n * 1000 + k)
  const bytes = Uint8Array.from(numbers, (value) => (value + 1) * 128)
  const exponent = encoding === 'bf16' ? 0x3c : 0x24
  for (let block = 0; block < bytes.length; block += size)
    for (const at of halves) bytes[block + at + 1] = exponent + (bytes[block + at + 1]! & 0x83)
  const file = await fileOf(`${files++}`, bytes)
  const heads = interleavedHeads === undefined ? {} : { interleavedHeads }
  return new Tensor(file.tensor({ encoding, dtype: 'f32', shape: [n, k], offset: 0, ...heads }))
}

async function run(device: Device, trace: (...inputs: Sym[]) => Sym | Promise<Sym>, ...inputs: Tensor[]) {
  const step = program(async (...given) => trace(...(given as Sym[])), { device })
  try {
    return (await (await step(...inputs)).data()) as Float32Array
  } finally {
    step.dispose()
  }
}

/** The same, with blocks, and threads between barriers, from the last to the first. */
async function backwards(trace: (...inputs: Sym[]) => Sym | Promise<Sym>, ...inputs: Tensor[]) {
  process.env.HEDDLE_CUDA_HOST_ORDER = 'reverse'
  try {
    return await run('cuda', trace, ...inputs)
  } finally {
    delete process.env.HEDDLE_CUDA_HOST_ORDER
  }
}

/** Largest difference, relative to the largest number. */
function error(actual: Float32Array, expected: Float32Array): number {
  const largest = expected.reduce((top, value) => Math.max(top, Math.abs(value)), 0)
  return actual.reduce((top, value, i) => Math.max(top, Math.abs(value - expected[i]!)), 0) / largest
}

for (const encoding of encodings.filter((each): each is BlockEncoding => layouts[each].elements > 1))
  test.serial(`${encoding}: rows are gathered bit for bit as the gguf package decodes them`, async (t) => {
    const goldens = await goldenTensors('gguf_blocks.safetensors')
    const values = goldens.get(`${encoding}.values`)!
    const file = await fileOf(encoding, (await goldens.get(`${encoding}.blocks`)!.data()) as Uint8Array)
    const columns = values.shape.at(-1)!
    const rows = values.size / columns
    const table = new Tensor(file.tensor({ encoding, dtype: 'f32', shape: [rows, columns], offset: 0 }))
    const order = Int32Array.from({ length: rows }, (_, i) => rows - 1 - i)
    const found = await run('cuda', (index) => gatherRows(read(table), index!), tensor(order))
    const expected = (await values.data()) as Float32Array
    const wanted = [...order].flatMap((row) => [...expected.subarray(row * columns, (row + 1) * columns)])
    t.true(found.every((value, i) => Object.is(value, wanted[i])))
  })

for (const encoding of encodings)
  test.serial(`${encoding}: products with few and with many rows, and their gradient, in f32`, async (t) => {
    const [n, k] = [13, layouts[encoding].elements === 256 ? 512 : 160]
    const w = await blockMatrix(encoding, n, k)
    const bias = randomTensor([n], 3)
    for (const rows of [1, 9, 33]) {
      const forward = (x: Sym) => matmul(x, read(w), { transposeB: true, alpha: 0.5, addend: read(bias) })
      const backward = (dy: Sym) => matmul(dy, read(w))
      for (const [trace, inner] of [
        [forward, k],
        [backward, n],
      ] as const) {
        const x = randomTensor([rows, inner], rows)
        const actual = await run('cuda', trace, x)
        t.true(error(actual, await run('cpu', trace, x)) < 2e-6)
        if (rows !== 33) t.deepEqual(await backwards(trace, x), actual)
      }
    }
  })

test.serial("precision 'bf16' rounds weights and activations, 'stored' neither with few rows", async (t) => {
  for (const encoding of ['q4_1', 'q6_k', 'bf16', 'f16'] as const) {
    const w = await blockMatrix(encoding, 12, 256)
    const product = (options: MatmulOptions) => (x: Sym) => matmul(x, read(w), { transposeB: true, ...options })
    for (const rows of [3, 40]) {
      const x = randomTensor([rows, 256], rows)
      const bf16 = await run('cuda', product({ precision: 'bf16' }), x)
      t.true(error(bf16, await run('cpu', product({ precision: 'bf16' }), x)) < 2e-6)
      const exact = rows === 3 && layouts[encoding].elements > 1
      const stored = await run('cuda', product({ precision: 'stored' }), x)
      t.deepEqual(stored, exact ? await run('cuda', product({ precision: 'f32' }), x) : bf16)
    }
  }
})

test.serial('rows that the file holds in another order, an addend of the full shape', async (t) => {
  const w = await blockMatrix('q8_0', 16, 64, 2)
  const trace = (x: Sym, c: Sym) => matmul(x, read(w), { transposeB: true, addend: c })
  const inputs = [randomTensor([2, 64], 1), randomTensor([2, 16], 2)]
  t.true(error(await run('cuda', trace, ...inputs), await run('cpu', trace, ...inputs)) < 2e-6)
})

test.serial('a matrix that is read in another shape, in which rows are whole blocks or are not', async (t) => {
  const w = await blockMatrix('q4_k', 4, 512)
  for (const [n, k] of [
    [8, 256],
    [16, 128],
  ] as const) {
    const trace = (x: Sym, index: Sym) => {
      const shaped = reshape(read(w), [n, k])
      return add(matmul(x, shaped, { transposeB: true }), sum(gatherRows(shaped, index)))
    }
    const inputs = [randomTensor([3, k], 1), tensor(Int32Array.of(n - 1, 0))]
    t.true(error(await run('cuda', trace, ...inputs), await run('cpu', trace, ...inputs)) < 2e-6)
  }
})

test.serial('a matrix of several tiles', async (t) => {
  // Of 2²³ elements each.
  const [n, k] = [136, 65536]
  const w = await blockMatrix('q4_0', n, k)
  for (const [trace, shape] of [
    [(x: Sym) => matmul(x, read(w)), [1, n]],
    [(x: Sym) => matmul(x, read(w), { transposeB: true }), [33, k]],
  ] as const) {
    const x = randomTensor(shape, 5)
    t.true(error(await run('cuda', trace, x), await run('cpu', trace, x)) < 1e-5)
  }
})

test.serial('a loss over the blocks of its head, and its gradient', async (t) => {
  const w = await blockMatrix('q6_k', 24, 256)
  const targets = tensor(Int32Array.of(3, -100, 23, 0, 7))
  for (const precision of ['f32', 'bf16'] as const) {
    const trace = async (x: Sym, target: Sym) => {
      const loss = sum(linearCrossEntropy(x, read(w), target, { precision }))
      return add(loss, (await gradients(loss, [x]))[0]!)
    }
    const x = randomTensor([5, 256], 8)
    // With bf16 terms of the softmax are rounded relative to another maximum (test 170).
    const allowed = precision === 'f32' ? 1e-5 : 1e-3
    t.true(error(await run('cuda', trace, x, targets), await run('cpu', trace, x, targets)) < allowed)
  }
})

test.serial('a low-rank update of a matrix in blocks', async (t) => {
  const w = await blockMatrix('q5_0', 20, 64)
  const [u, v] = [randomTensor([3, 64], 1), randomTensor([20, 3], 2)]
  for (const precision of ['f32', 'bf16'] as const)
    for (const rows of [4, 36]) {
      const trace = (x: Sym) => {
        const low = matmul(x, read(u), { transposeB: true, precision })
        const base = matmul(x, read(w), { transposeB: true, precision })
        return matmul(low, read(v), { transposeB: true, alpha: 2, addend: base, precision })
      }
      const x = randomTensor([rows, 64], rows)
      t.true(error(await run('cuda', trace, x), await run('cpu', trace, x)) < (precision === 'f32' ? 2e-6 : 2e-3))
    }
})

test.serial(
  'a weight that is rounded to bf16 once is rounded anew when a device or the host has changed it',
  async (t) => {
    const w = randomTensor([8, 16], 1)
    const product = program((x) => matmul(x!, read(w), { transposeB: true, precision: 'bf16' }), { device: 'cuda' })
    const x = randomTensor([2, 16], 2)
    const first = (await (await product(x)).data()) as Float32Array
    for (const device of ['cuda', 'cpu'] as const) {
      const double = program(() => update(() => assign(w, mul(read(w), 2))), { device })
      await double()
      double.dispose()
    }
    t.deepEqual(
      (await (await product(x)).data()) as Float32Array,
      first.map((value) => 4 * value),
    )
    product.dispose()
  },
)

if (emulated)
  test.serial('what lies on the device are the blocks, once for all programs; or two bytes a weight', async (t) => {
    const [n, k] = [64, 512]
    const taken = async (w: Tensor, precision: 'f32' | 'bf16'): Promise<number> => {
      const before = allocatedBytes()
      const steps = [1, 2].map(() =>
        program((x) => matmul(x!, read(w), { transposeB: true, precision }), { device: 'cuda' }),
      )
      for (const [i, step] of steps.entries()) await step(randomTensor([i + 1, k], i))
      const after = allocatedBytes()
      for (const step of steps) step.dispose()
      return after - before
    }
    // Inputs, results, arenas at rest.
    const beside = 16384
    for (const [encoding, bytes] of [
      ['q4_0', 18],
      ['q8_0', 34],
    ] as const) {
      const used = await taken(await blockMatrix(encoding, n, k), 'f32')
      t.true(used - (n * k * bytes) / 32 < beside, `${encoding}: ${used} bytes`)
    }
    t.true((await taken(randomTensor([n, k], 9), 'bf16')) < 2 * n * k + beside)
  })

test.serial('a quantised model says the same on the device as on the CPU', async (t) => {
  const path = join(folder, 'tiny.gguf')
  const tiny = await tinyModel()
  await exportGguf(tiny, path, { type: 'q8_0' })
  await tiny.dispose()
  for (const precision of ['f32', 'stored'] as const) {
    const texts: string[] = []
    for (const device of ['cpu', 'cuda'] as const) {
      const model = await loadModel(path, { device, precision })
      let text = ''
      for await (const piece of model.generate('Still waters', { maxTokens: 12, temperature: 0 })) text += piece
      texts.push(text)
      await model.dispose()
    }
    t.is(texts[1], texts[0])
    t.true(texts[0]!.length > 0)
  }
})
