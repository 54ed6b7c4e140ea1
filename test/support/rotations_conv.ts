/** The adapters of test/golden/make_rotations_conv.py, and the network that they belong to. */
import { boft } from '../../lib/adapters/methods/boft.js'
import { oft } from '../../lib/adapters/methods/oft.js'
import type { Parametrization } from '../../lib/adapters/parametrization.js'
import type { Network } from '../../lib/nn/network.js'
import { goldenTensors } from '../golden.js'
import { convNetwork } from './conv_network.js'

export const rotationGoldens = await goldenTensors('rotations-conv.golden.safetensors')

export const rotationNetwork = (): Network => convNetwork(rotationGoldens, { conv1: { stride: 2, padding: 1 } })

/** By variant. */
export const rotationMethods: Readonly<Record<string, Parametrization>> = {
  oft: oft({ oft_block_size: 4, target_modules: ['conv2', 'fc'] }),
  'oft-exact': oft({ oft_block_size: 0, r: 3, use_cayley_neumann: false, target_modules: ['conv1'] }),
  'oft-shared': oft({ oft_block_size: 9, block_share: true, target_modules: ['conv1'] }),
  'oft-pointwise': oft({ oft_block_size: 8, target_modules: ['conv3'], bias: 'oft_only' }),
  boft: boft({ boft_block_size: 3, target_modules: ['conv1'] }),
  'boft-butterfly': boft({ boft_block_size: 2, boft_n_butterfly_factor: 3, target_modules: ['conv2'] }),
}
