// What fails on a device becomes a HeddleError, and the process and other programs live on.

import { execFile } from 'node:child_process'
import { promisify } from 'node:util'
import test from 'ava'
import { mul } from '../lib/graph/ops/elementwise.js'
import { gatherRows } from '../lib/graph/ops/index.js'
import { sum } from '../lib/graph/ops/reduce.js'
import { program } from '../lib/graph/program.js'
import { addon } from '../lib/native.js'
import { tensor } from '../lib/tensor/tensor.js'
import { emulated, inject } from './support/cuda_host.js'
import { encode } from './support/instruction_list.js'

const run = promisify(execFile)

const doubled = (device: 'cpu' | 'cuda') => program((x) => mul(x!, 2), { device })

/** Serial: the failures are injected into the whole process. */
const emulatedOnly = emulated ? test.serial : test.serial.skip

test.serial('an index out of range ends the run, as on the CPU', async (t) => {
  const pick = program((x, i) => gatherRows(x!, i!), { device: 'cuda' })
  const x = tensor([1, 2, 3], [3, 1])
  await t.throwsAsync(pick(x, tensor(Int32Array.of(0, 3, 1))), {
    code: 'ERR_HEDDLE_ARGUMENT',
    message: 'gather_rows: expected an index in [0, 3), got 3',
  })
  t.deepEqual([...(await (await pick(x, tensor(Int32Array.of(2, 0, 1)))).data())], [3, 1, 2])
})

test.serial('segments of rows without columns are checked, as on the CPU', async (t) => {
  const list = encode({
    buffers: [
      { kind: 'input', index: 0, dtype: 'i32', shape: [2] },
      { kind: 'input', index: 1, shape: [2, 0] },
      { kind: 'output', index: 0, shape: [3, 0] },
    ],
    instructions: [{ op: 'segment_max', inputs: [0, 1], outputs: [2], attributes: [['segments', 3]] }],
  })
  const segments = (...values: readonly number[]) => addon.tensorFromData('i32', [2], Int32Array.from(values))
  for (const device of ['cpu', 'cuda'] as const) {
    const largest = await addon.compile(list, [], device)
    await t.notThrowsAsync(largest.run([segments(0, 2), addon.tensorZeros('f32', [2, 0])]))
    await t.throwsAsync(largest.run([segments(0, 3), addon.tensorZeros('f32', [2, 0])]), {
      code: 'ERR_HEDDLE_ARGUMENT',
      message: 'segment_max: expected segments below 3, got 3',
    })
  }
})

emulatedOnly('memory that runs out is an ERR_HEDDLE_OOM, and the next run has it again', async (t) => {
  const step = doubled('cuda')
  t.deepEqual([...(await (await step(tensor([1, 2]))).data())], [2, 4])
  inject('memory')
  await t.throwsAsync(step(tensor([1, 2])), { code: 'ERR_HEDDLE_OOM', message: /free bytes of its memory/ })
  t.deepEqual([...(await (await step(tensor([3, 4]))).data())], [6, 8])
})

emulatedOnly('memory that the pool holds back is asked for a second time', async (t) => {
  const step = doubled('cuda')
  inject('pool')
  t.deepEqual([...(await (await step(tensor([1, 2]))).data())], [2, 4])
})

emulatedOnly('a launch that fails is an ERR_HEDDLE_DEVICE, and the next run works', async (t) => {
  const step = doubled('cuda')
  inject('launch')
  await t.throwsAsync(step(tensor([1, 2])), {
    code: 'ERR_HEDDLE_DEVICE',
    message: /^elementwise: .*cudaErrorLaunchOutOfResources/,
  })
  t.deepEqual([...(await (await step(tensor([3, 4]))).data())], [6, 8])
})

test.serial('a device that there is none of is refused by name', (t) => {
  t.throws(() => program(() => sum(tensor([1]) as never), { device: 'gpu' as 'cuda' }), {
    code: 'ERR_HEDDLE_ARGUMENT',
    message: 'program.device: expected "cpu" or "cuda", got "gpu"',
  })
})

test.serial('without the CUDA addon, the error says how to build it; the CPU does not need it', async (t) => {
  const script = `
    import { program } from '${new URL('../lib/graph/program.js', import.meta.url).href}'
    import { mul } from '${new URL('../lib/graph/ops/elementwise.js', import.meta.url).href}'
    import { tensor } from '${new URL('../lib/tensor/tensor.js', import.meta.url).href}'
    const x = tensor([1, 2])
    console.log((await (await program((x) => mul(x, 2), { device: 'cpu' })(x)).data()).join())
    await program((x) => mul(x, 2), { device: 'cuda' })(x).catch((error) => console.log(error.code, error.message))
  `
  const { stdout } = await run(process.execPath, ['--input-type=module', '-e', script], {
    env: { ...process.env, HEDDLE_CUDA_ADDON: '/nowhere/heddle_cuda.node' },
  })
  t.regex(
    stdout,
    /^2,4\nERR_HEDDLE_DEVICE device cuda: expected the CUDA addon at \/nowhere\/heddle_cuda.node, got none. Build it with `npm run build:cuda`/,
  )
})

// The last one: nothing works on the device afterwards.
emulatedOnly('a kernel that breaks the device: what runs there fails from then on, and the CPU works on', async (t) => {
  const kept = await doubled('cuda')(tensor([1, 2]))
  const step = doubled('cuda')
  await step(tensor([5, 6]))
  inject('fault')
  const lost = {
    code: 'ERR_HEDDLE_DEVICE',
    message: /a device that works \(restart the process.*cudaErrorIllegalAddress/,
  }
  await t.throwsAsync(step(tensor([1, 2])), lost)
  await t.throwsAsync(step(tensor([1, 2])), lost)
  await t.throwsAsync(kept.data(), lost)
  t.deepEqual([...(await (await doubled('cpu')(tensor([1, 2]))).data())], [2, 4])
  step.dispose()
})
