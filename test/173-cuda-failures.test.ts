// What fails on a device becomes a HeddleError, and the process and other programs live on.

import { execFile } from 'node:child_process'
import { promisify } from 'node:util'
import test from 'ava'
import { add, mul } from '../lib/graph/ops/elementwise.js'
import { gatherRows } from '../lib/graph/ops/index.js'
import { matmul } from '../lib/graph/ops/matmul.js'
import { sum } from '../lib/graph/ops/reduce.js'
import { sort } from '../lib/graph/ops/sort.js'
import { program } from '../lib/graph/program.js'
import { addon } from '../lib/native.js'
import { tensor } from '../lib/tensor/tensor.js'
import { emulated, inject, objects } from './support/cuda_host.js'
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

/** Several instructions, of which sorting and the product have scratch memory. */
const longer = (device: 'cpu' | 'cuda') =>
  program((x) => sum(matmul(sort(add(x!, 1)).values, mul(x!, 2), { transposeB: true })), { device })

for (const kind of ['memory', 'launch'] as const)
  emulatedOnly(
    `whichever ${kind} fails, in whichever run: an error, nothing leaks, and the next run works`,
    async (t) => {
      const x = tensor([3, 2, 1, 4, 5, 6, 9, 8, 7, 10, 12, 11], [3, 4])
      const expected = (await longer('cpu')(x)).item()
      const code = { memory: 'ERR_HEDDLE_OOM', launch: 'ERR_HEDDLE_DEVICE' }[kind]
      const rounds: number[] = []
      let failures = 0
      for (let failed = true; failed; ) {
        const step = longer('cuda')
        const outcome = async () => {
          const total = await step(x)
          const value = total.item()
          total.dispose()
          return value
        }
        inject(kind, failures)
        // The second run is recorded as a graph, the third one runs the graph.
        const found = await Promise.allSettled([outcome(), outcome(), outcome()])
        inject('nothing')
        for (const each of found)
          if (each.status === 'fulfilled') t.is(each.value, expected)
          else t.is(each.reason.code, code)
        t.is(await outcome(), expected)
        step.dispose()
        failed = found.some(({ status }) => status === 'rejected')
        if (failed) failures += 1
        rounds.push(objects())
      }
      t.true(failures >= 3, `only ${failures} calls could fail`)
      t.true(rounds.at(-1)! <= rounds[0]!, `${rounds.join(', ')} objects after each round`)
    },
  )

emulatedOnly('one program runs out of memory while others run: they end as if nothing had happened', async (t) => {
  const steps = Array.from({ length: 4 }, () => doubled('cuda'))
  inject('memory', 3)
  const found = await Promise.allSettled(steps.map((step, i) => step(tensor([i]))))
  inject('nothing')
  const failed = found.filter(({ status }) => status === 'rejected')
  t.is(failed.length, 1)
  t.is((failed[0] as PromiseRejectedResult).reason.code, 'ERR_HEDDLE_OOM')
  for (const [i, each] of found.entries())
    if (each.status === 'fulfilled') t.deepEqual([...(await each.value.data())], [2 * i])
})

emulatedOnly('a device that vanishes: what runs or lies there fails, and nothing else', async (t) => {
  const lib = (path: string) => new URL(`../lib/${path}.js`, import.meta.url).href
  const script = `
    import { createRequire } from 'node:module'
    import { program } from '${lib('graph/program')}'
    import { add, mul } from '${lib('graph/ops/elementwise')}'
    import { assign, read } from '${lib('graph/sym')}'
    import { tensor } from '${lib('tensor/tensor')}'
    const say = (name, promise) => promise.then((x) => console.log(name, x), (error) => console.log(name, error.code))
    const twice = (device) => program((x) => mul(x, 2), { device })
    const [state, untouched] = [tensor([1]), tensor([7])]
    const count = program(() => { assign(state, add(read(state), read(untouched))); return read(state) }, { device: 'cuda' })
    const kept = await count()
    createRequire('/')(process.env.HEDDLE_CUDA_ADDON).inject('gone', 0)
    const values = async (promise) => [...(await (await promise).data())].join()
    await say('the program', count())
    await say('a new one', twice('cuda')(tensor([1])))
    await say('its result', kept.data())
    await say('its state', state.data())
    await say('its state on the CPU', values(program(() => mul(read(state), 2), { device: 'cpu' })()))
    await say('what it has read', values(untouched.data().then(() => untouched)))
    await say('the CPU', values(twice('cpu')(tensor([4]))))
    count.dispose()
    kept.dispose()
    state.dispose()
    console.log('lives')
  `
  const { stdout } = await run(process.execPath, ['--input-type=module', '-e', script])
  t.deepEqual(stdout.trimEnd().split('\n'), [
    'the program ERR_HEDDLE_DEVICE',
    'a new one ERR_HEDDLE_DEVICE',
    'its result ERR_HEDDLE_DEVICE',
    'its state ERR_HEDDLE_DEVICE',
    'its state on the CPU ERR_HEDDLE_DEVICE',
    'what it has read 7',
    'the CPU 8',
    'lives',
  ])
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
