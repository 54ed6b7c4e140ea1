/** Weights of which a mask leaves some numbers, the others being 0; a mask is kept in bits. */
import { HeddleError } from '../errors.js'
import { computed } from '../graph/computed.js'
import { cast, div, floor, mul, pow, select, sub } from '../graph/ops/elementwise.js'
import { arange, pad } from '../graph/ops/gather.js'
import { slice } from '../graph/ops/index.js'
import { reshape, sum } from '../graph/ops/reduce.js'
import { read, type Sym } from '../graph/sym.js'
import type { Site } from '../nn/site.js'
import { elementCount } from '../tensor/dtype.js'
import type { Tensor } from '../tensor/tensor.js'

/** Name of a module's mask in the adapter's file: u8 `[⌈size / 8⌉]`, bit k of byte i for number 8 i + k of the weight. */
export const maskName = 'weight_mask'

/** Bytes of the mask of a module's weight. */
export const maskBytes = ({ weight }: Pick<Site, 'weight'>): number => Math.ceil(weight.size / 8)

/** 1, 2, 4, …, 128 */
const powers = (): Sym => pow(2, arange(8, { dtype: 'f32' }))

/** A mask of zeros and ones, f32 in any shape, as bits. */
export function packed(mask: Sym): Sym {
  const flat = reshape(mask, [-1])
  const size = flat.shape[0]!
  const whole = size % 8 === 0 ? flat : pad(flat, [[0, 8 - (size % 8)]])
  return cast(sum(mul(reshape(whole, [-1, 8]), powers()), { axes: [1] }), 'u8')
}

/** The zeros and ones, f32, of bits. */
export function unpacked(bits: Sym, shape: readonly number[]): Sym {
  const shifted = floor(div(reshape(cast(bits, 'f32'), [-1, 1]), powers()))
  const all = reshape(sub(shifted, mul(2, floor(div(shifted, 2)))), [-1])
  return reshape(slice(all, [{ axis: 0, start: 0, end: elementCount(shape) }]), shape)
}

/** The numbers of a module's weight that the mask leaves. @throws ERR_HEDDLE_ARGUMENT for a structured weight */
export async function maskedWeight({ path, weight, structure }: Site, mask: Tensor): Promise<Tensor> {
  if (structure)
    throw new HeddleError('ERR_HEDDLE_ARGUMENT', { place: path, expected: 'a dense weight', got: structure.kind })
  return await computed(() => select(unpacked(read(mask), weight.shape), read(weight), 0))
}
