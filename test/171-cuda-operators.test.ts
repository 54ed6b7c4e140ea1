// Which operators run on CUDA devices. A new operator gets a CUDA kernel, or a line here that says why it has none.
import './support/cuda_host.js'
import test from 'ava'
import { addon } from '../lib/native.js'
import { difference, numbersOf, prepare, randomOf, results } from './support/both_devices.js'
import { kernels } from './support/kernel_calls.js'

/** To be written (issue 8); compiling a program with one of them for `cuda` is refused. */
const missing: readonly string[] = []

test('every operator has a CUDA kernel, or is known to have none', (t) => {
  const without = addon.cpuInfo().operators.filter((op) => !addon.cudaInfo().operators.includes(op))
  t.deepEqual(without, [...missing].sort())
})

test('every operator has calls to compare its kernels by', (t) => {
  t.deepEqual(
    addon.cpuInfo().operators.filter((op) => kernels[op] === undefined),
    [],
  )
})

const [unwritten] = missing

if (unwritten !== undefined)
  test('an operator without a CUDA kernel is refused by name', async (t) => {
    const random = randomOf('refused')
    const prepared = prepare(unwritten, kernels[unwritten]!(random), random)
    await t.throwsAsync(results(prepared, 'cuda'), {
      code: 'ERR_HEDDLE_DEVICE',
      message: new RegExp(`^${unwritten}: expected an operator that CUDA devices have a kernel for`),
    })
  })

test('the comparison notices a wrong element, a wrong sign of zero excepted', async (t) => {
  const sums = {
    op: 'reduce_sum',
    call: {
      inputs: [{ dtype: 'f32', shape: [3, 4] }],
      outputs: [{ dtype: 'f32', shape: [3] }],
      attributes: [['axes', [1]]],
    },
  } as const
  const call = { inputs: [...sums.call.inputs], outputs: [...sums.call.outputs], attributes: [...sums.call.attributes] }
  const [sum] = await results(prepare(sums.op, call, randomOf('sum')), 'cuda')
  const [largest] = await results(prepare('reduce_max', call, randomOf('sum')), 'cuda')
  const [a, b] = [await numbersOf(sum!), await numbersOf(largest!)]
  t.is(difference('f32', a, [...a], 0), undefined)
  t.regex(difference('f32', a, b, 1e-5)!, /^element 0 is/)
  t.is(difference('f32', [0], [-0], 0), undefined)
})
