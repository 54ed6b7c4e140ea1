/** What LQ-LoRA keeps of a weight: A, B, and Q in bits. */
import { HeddleError } from '../../errors.js'
import { computed } from '../../graph/computed.js'
import { cast, div, sqrt, square, sub } from '../../graph/ops/elementwise.js'
import { copy, transpose } from '../../graph/ops/index.js'
import { matmul } from '../../graph/ops/matmul.js'
import { sum } from '../../graph/ops/reduce.js'
import { read } from '../../graph/sym.js'
import { oriented, type Site } from '../../nn/site.js'
import { blockCounts, dequantised, type NormalFloatConfig } from '../../quant/normal_float.js'
import type { Tensor } from '../../tensor/tensor.js'
import { bitPlanes, ofBitPlanes } from '../bit_planes.js'
import { asMatrix, type MatrixShape, matrixShape, ofSite } from '../low_rank_change.js'
import type { Values } from '../owned_values.js'
import type { BufferDeclaration } from '../parametrization.js'
import { configOf, type LqLoraConfig } from './lq_lora_config.js'
import { type Decomposition, decompose } from './lq_lora_decomposition.js'

/** PEFT's for A and B; codes and scales in bits, scales of scales, and their offset. */
export const names = {
  a: 'lora_A.weight',
  b: 'lora_B.weight',
  codes: 'qweight',
  scales: 'qscales',
  superScales: 'scale1',
  offset: 'offset',
} as const

const dtypes = { bf16: 'bf16', fp16: 'f16', fp32: 'f32' } as const

/** How a module's weight is quantised. */
export function quantisationAt({ path }: Site, config: LqLoraConfig): NormalFloatConfig {
  const own = config.configurations?.[path]
  return own ? configOf(own) : config
}

/** The tensors of Q. */
export function packedBuffers(
  { out, inner }: MatrixShape,
  quantisation: NormalFloatConfig,
): Readonly<Record<string, BufferDeclaration>> {
  const { num_bits, num_bits_0, num_bits_1, block_size_0, block_size_1 } = quantisation
  const { supers } = blockCounts(out * inner, quantisation)
  const blocks = supers * block_size_1
  return {
    [names.codes]: { shape: [num_bits, Math.ceil((blocks * block_size_0) / 8)], dtype: 'u8' },
    [names.scales]: { shape: [num_bits_0, Math.ceil(blocks / 8)], dtype: 'u8' },
    [names.superScales]: { shape: [supers], dtype: dtypes[num_bits_1] },
    [names.offset]: { shape: [1] },
  }
}

/** What {@link packedWeight} found; the caller owns the tensors. */
export interface Packed {
  /** A, B, and Q in bits. */
  readonly values: Values
  /** Q in numbers, as the site's weight is stored. */
  readonly weight: Tensor
}

/**
 * A, B and Q of a site's weight.
 * @param fisher `[out, in]`: weighs the errors
 * @throws ERR_HEDDLE_ARGUMENT when an element is not finite
 */
export async function packedWeight(site: Site, weight: Tensor, config: LqLoraConfig, fisher?: Tensor): Promise<Packed> {
  const quantisation = quantisationAt(site, config)
  const { parts } = await decomposedWeight(site, weight, config, { quantisation, fisher })
  const root = Math.sqrt(config.lora_alpha / config.num_ranks)
  const { num_bits, num_bits_0, num_bits_1 } = quantisation
  try {
    return await computed(() => ({
      values: {
        [names.a]: div(read(parts.l2), root),
        [names.b]: div(read(parts.l1), root),
        [names.codes]: bitPlanes(read(parts.codes), num_bits),
        [names.scales]: bitPlanes(read(parts.scales), num_bits_0),
        [names.superScales]: cast(read(parts.superScales), dtypes[num_bits_1]),
        [names.offset]: copy(read(parts.offset)),
      },
      weight: copy(oriented(site, read(parts.q))),
    }))
  } finally {
    for (const used of Object.values(parts)) used.dispose()
  }
}

/** The site's weight taken apart; the caller owns what is found. @throws as {@link packedWeight} */
export function decomposedWeight(
  site: Site,
  weight: Tensor,
  config: LqLoraConfig,
  { quantisation, fisher }: { readonly quantisation: NormalFloatConfig; readonly fisher: Tensor | undefined },
): Promise<Decomposition> {
  return ofSite(site, async () => {
    using matrix = await computed(() => copy(asMatrix(read(weight), matrixShape('lq_lora', site))))
    const oversampling = config.randomized ? config.num_oversampling : undefined
    const { num_ranks: rank, num_iterations: iterations } = config
    const found = await decompose(matrix, { rank, config: quantisation, iterations, oversampling, fisher })
    if (Number.isFinite(found.error)) return found
    for (const unused of Object.values(found.parts)) unused.dispose()
    throw new HeddleError('ERR_HEDDLE_ARGUMENT', {
      place: 'lq_lora',
      expected: 'finite numbers',
      got: `an error of ${found.error}`,
    })
  })
}

/** Q in numbers, as the site's weight is stored. */
export const restoredWeight = (values: Values, shape: MatrixShape, config: NormalFloatConfig): Promise<Tensor> =>
  computed(() => {
    const { out, inner, isTransposed } = shape
    const { supers } = blockCounts(out * inner, config)
    const { block_size_0, block_size_1, num_bits, num_bits_0 } = config
    const quantity = {
      codes: ofBitPlanes(read(values[names.codes]!), num_bits, [supers, block_size_1, block_size_0]),
      scales: ofBitPlanes(read(values[names.scales]!), num_bits_0, [supers, block_size_1]),
      superScales: cast(read(values[names.superScales]!), 'f32'),
      offset: read(values[names.offset]!),
    }
    const matrix = dequantised(quantity, config, [out, inner])
    return isTransposed ? transpose(matrix) : copy(matrix)
  })

/** ‖W − Q − s B A‖, by which a decomposition knows its weight. */
export async function missedBy(site: Site, weight: Tensor, config: LqLoraConfig, packed: Packed): Promise<number> {
  using missed = await computed(() => {
    const [a, b] = [read(packed.values[names.a]!), read(packed.values[names.b]!)]
    const rest = oriented(site, sub(cast(read(weight), 'f32'), read(packed.weight)))
    return sqrt(sum(square(sub(rest, matmul(b, a, { alpha: config.lora_alpha / config.num_ranks })))))
  })
  return missed.item()
}
