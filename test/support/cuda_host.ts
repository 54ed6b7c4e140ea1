/**
 * Import it before anything that loads Heddle: without a GPU the device `cuda` is then the emulation, which runs the same
 * kernels on the processor (cuda/host). `HEDDLE_CUDA_ADDON` set from outside, as `npm run test:cuda` does, wins.
 */
import { createRequire } from 'node:module'
import { dirname, join } from 'node:path'
import { addonPath } from '../../lib/native.js'

process.env.HEDDLE_CUDA_ADDON ??= join(dirname(addonPath()), 'heddle_cuda_host.node')

/** True where kernels run on the processor. */
export const emulated = process.env.HEDDLE_CUDA_ADDON.endsWith('heddle_cuda_host.node')

/** Makes the next call of a kind fail; only the emulation can. */
export function inject(kind: 'memory' | 'pool' | 'launch' | 'fault'): void {
  const addon = createRequire(import.meta.url)(process.env.HEDDLE_CUDA_ADDON!) as { inject(kind: string): void }
  addon.inject(kind)
}
