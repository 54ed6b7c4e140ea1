/**
 * The random numbers of PyTorch's CPU generator, bit for bit: PEFT does not store what it can draw again from a key, so
 * reading its folders takes the same draws. Everything else here is drawn by `randomUniform` and `randomNormal`.
 */
import { pause } from '../graph/pause.js'
import { elementCount } from '../tensor/dtype.js'

/** MT19937 (Matsumoto & Nishimura 1998) as `torch.Generator(device="cpu").manual_seed(seed)` is. */
export class TorchGenerator {
  readonly #state = new Uint32Array(size)
  #next = size

  /** @param seed from 0; its lower 32 bits count, as in PyTorch */
  constructor(seed: number) {
    this.#state[0] = Number(BigInt.asUintN(32, BigInt(seed)))
    for (let j = 1; j < size; j += 1) {
      const before = this.#state[j - 1]!
      this.#state[j] = Math.imul(1812433253, before ^ (before >>> 30)) + j
    }
  }

  /** 32 random bits. */
  bits(): number {
    if (this.#next === size) this.#refill()
    let y = this.#state[this.#next]!
    this.#next += 1
    y ^= y >>> 11
    y ^= (y << 7) & 0x9d2c5680
    y ^= (y << 15) & 0xefc60000
    return (y ^ (y >>> 18)) >>> 0
  }

  #refill(): void {
    const state = this.#state
    for (let j = 0; j < size; j += 1) {
      const y = (state[j]! & 0x80000000) | (state[(j + 1) % size]! & 0x7fffffff)
      state[j] = state[(j + middle) % size]! ^ (y >>> 1) ^ (y & 1 ? 0x9908b0df : 0)
    }
    this.#next = 0
  }
}

const [size, middle] = [624, 397]

/** Where numbers are drawn from, and how they are rounded: as a tensor of this dtype draws them in place. */
export interface Range {
  readonly from: number
  readonly to: number
  readonly dtype: 'f32' | 'bf16'
}

/** `torch.empty(count, dtype).uniform_(from, to, generator)`, bf16 widened to f32. */
export async function uniform(generator: TorchGenerator, count: number, range: Range): Promise<Float32Array> {
  const round = range.dtype === 'bf16' ? roundToBf16 : Math.fround
  const [from, to] = [Math.fround(range.from), Math.fround(range.to)]
  const width = Math.fround(to - from)
  const drawn = new Float32Array(count)
  for (let i = 0; i < count; i += 1) {
    if (i % 4096 === 0) await pause()
    // PyTorch's compiled kernel rounds once (a fused multiply-add); in f64 this sum is exact.
    const value = round(Math.fround(((generator.bits() & 0xffffff) / 2 ** 24) * width + from))
    // The range is half-open, also after rounding.
    drawn[i] = value === round(to) ? round(from) : value
  }
  return drawn
}

/**
 * `torch.nn.init.kaiming_uniform_` on a tensor of this shape.
 * @param slope `a`, the slope of the leaky ReLU that the gain is for
 */
export function kaimingUniform(
  generator: TorchGenerator,
  shape: readonly number[],
  { slope, dtype }: { readonly slope: number } & Pick<Range, 'dtype'>,
): Promise<Float32Array> {
  const fanIn = elementCount(shape.slice(1))
  const gain = Math.sqrt(2 / (1 + slope ** 2))
  const bound = Math.sqrt(3) * (gain / Math.sqrt(fanIn))
  const count = fanIn * shape[0]!
  return uniform(generator, count, { from: -bound, to: bound, dtype })
}

/** To the nearest bf16, ties to even. */
export function roundToBf16(value: number): number {
  single[0] = value
  const bits = word[0]!
  word[0] = (bits + 0x7fff + ((bits >>> 16) & 1)) & 0xffff0000
  return single[0]!
}

const single = new Float32Array(1)
const word = new Uint32Array(single.buffer)

/** `values / values.std()`, each rounded as a tensor of this dtype does it. */
export async function standardised(values: Float32Array, dtype: Range['dtype']): Promise<Float32Array> {
  const round = dtype === 'bf16' ? roundToBf16 : Math.fround
  let [total, squares] = [0, 0]
  for (const [i, value] of values.entries()) {
    if (i % 4096 === 0) await pause()
    total += value
    squares += value * value
  }
  const deviation = round(Math.sqrt((squares - total ** 2 / values.length) / (values.length - 1)))
  for (const [i, value] of values.entries()) {
    if (i % 4096 === 0) await pause()
    values[i] = round(Math.fround(value / deviation))
  }
  return values
}
