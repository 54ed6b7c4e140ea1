// What training keeps in memory: activations as bf16 where asked, frozen weights compact where they are bf16 numbers.
import test from 'ava'
import {
  add,
  gradients,
  matmul,
  mul,
  program,
  read,
  type Sym,
  silu,
  sum,
  type Tensor,
  tensor,
  zeros,
} from '../lib/index.js'
import { randomNumbers } from './random_numbers.js'

const [rows, width, depth] = [512, 256, 12]

const draw = (shape: readonly number[], seed: number, scale = 1): Tensor =>
  tensor(
    randomNumbers(
      shape.reduce((product, size) => product * size, 1),
      seed,
    ).map((value) => value * scale),
    shape,
  )

const weights = Array.from({ length: depth }, (_, i) => draw([width, width], i + 1, 2 / Math.sqrt(width)))
const scales = Array.from({ length: depth }, () => draw([width], 50))

/** A stack of frozen products with a trained scale for each; gives the loss and the scales' gradients. */
const stack = (activations: 'f32' | 'bf16') =>
  program(
    async (x) => {
      let value: Sym = x!
      for (const [i, weight] of weights.entries())
        value = add(value, silu(mul(matmul(value, read(weight)), read(scales[i]!))))
      const loss = sum(mul(value, value))
      return { loss, gradients: await gradients(loss, scales.map(read)) }
    },
    { activations },
  )

test('activations kept as bf16 leave the forward pass as it is, bit for bit', async (t) => {
  const x = draw([rows, width], 99)
  t.is((await stack('bf16')(x)).loss.item(), (await stack('f32')(x)).loss.item())
})

test('activations kept as bf16 change gradients by their rounding only', async (t) => {
  const x = draw([rows, width], 99)
  const [exact, rounded] = [(await stack('f32')(x)).gradients, (await stack('bf16')(x)).gradients]
  for (const [i, gradient] of exact.entries()) {
    const [a, b] = [await gradient.data(), await rounded[i]!.data()]
    const norm = Math.hypot(...(a as Float32Array))
    const difference = Math.hypot(...(a as Float32Array).map((value, j) => value - (b as Float32Array)[j]!))
    t.true(difference / norm < 4e-3, `scale ${i}: ${difference / norm}`)
  }
})

test('activations kept as bf16 lower the planned peak', async (t) => {
  const x = zeros([rows, width])
  const [whole, halved] = [await stack('f32').plan([x]), await stack('bf16').plan([x])]
  t.true(halved.peakBytes < 0.75 * whole.peakBytes, `${halved.peakBytes} of ${whole.peakBytes}`)
})

/** The nearest numbers that bf16 has, or those with one bit more. */
const withBits = (values: Float32Array, dropped: number): Float32Array => {
  const bits = new Uint32Array(values.buffer.slice(0))
  for (const [i, word] of bits.entries()) bits[i] = (word >>> dropped) << dropped
  return new Float32Array(bits.buffer)
}

for (const [name, dropped] of [
  ['that are bf16 numbers', 16],
  ['that need one bit more', 15],
] as const)
  test(`many rows times frozen weights ${name} are the sums of their products`, async (t) => {
    const [m, k, n] = [512, 96, 80]
    const left = randomNumbers(m * k, 1)
    const right = withBits(Float32Array.from(randomNumbers(k * n, 2)), dropped)
    const multiply = program((a) => matmul(a!, read(frozen)))
    const frozen = tensor(right, [k, n])
    const y = (await (await multiply(tensor(left, [m, k]))).data()) as Float32Array
    for (const [row, col] of [
      [0, 0],
      [511, 79],
      [300, 41],
    ] as const) {
      let exact = 0
      for (let i = 0; i < k; i += 1) exact += left[row * k + i]! * right[i * n + col]!
      t.true(Math.abs(y[row * n + col]! - exact) < 1e-4, `${row}, ${col}`)
    }
  })
