/** What a test file runs on whose programs go where `HEDDLE_DEVICE` says, as test/175-cuda-operator-tests.test.ts runs it. */

/** True where programs run on a GPU, or on the emulation of one. */
export const onGpu = process.env.HEDDLE_DEVICE === 'cuda'

/** True where the processor emulates the GPU, hundreds of times slower than it computes. */
export const onEmulatedGpu = onGpu && (process.env.HEDDLE_CUDA_ADDON ?? '').endsWith('heddle_cuda_host.node')
