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

interface EmulatedAddon {
  inject(kind: string, after: number): void
  objects(): number
  allocatedBytes(): number
}

const addonOf = () => createRequire(import.meta.url)(process.env.HEDDLE_CUDA_ADDON!) as EmulatedAddon

type Failure = 'memory' | 'pool' | 'launch' | 'fault' | 'capture' | 'convergence' | 'gone' | 'nothing'

/** Makes the next call of a kind fail, of memory and launches the one after so many; only the emulation can. */
export function inject(kind: Failure, after = 0): void {
  addonOf().inject(kind, after)
}

/** How many blocks of memory, events and graphs the emulated device has. */
export const objects = (): number => addonOf().objects()

/** Bytes of all blocks of memory of the emulated device. */
export const allocatedBytes = (): number => addonOf().allocatedBytes()
