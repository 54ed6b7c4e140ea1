// Every CUDA kernel against the CPU's of the same name, over the calls that tests of hostile instructions start from. Where
// there is no GPU the kernels run in the emulation, which also fails on races, on barriers that not all threads meet, and
// on shared memory that nobody has written.
import './support/cuda_host.js'
import test from 'ava'
import { addon } from '../lib/native.js'
import { difference, numbersOf, prepare, randomOf, results } from './support/both_devices.js'
import { kernels } from './support/kernel_calls.js'

const rounds = 24

/**
 * Largest difference from the CPU, relative to the larger of the number and 1, or the largest number if that is smaller.
 * Zero: the same bits, for what only moves numbers.
 */
const tolerances: Readonly<Record<string, number>> = {}

for (const op of addon.cudaInfo().operators)
  test(`${op}: the CUDA kernel agrees with the CPU's, and with itself when blocks and threads run backwards`, async (t) => {
    const random = randomOf(op)
    for (let round = 0; round < rounds; ++round) {
      const call = kernels[op]!(random)
      const prepared = prepare(op, call, random)
      const cuda = await results(prepared, 'cuda')
      process.env.HEDDLE_CUDA_HOST_ORDER = 'reverse'
      const backwards = await results(prepared, 'cuda')
      delete process.env.HEDDLE_CUDA_HOST_ORDER
      for (const [i, expected] of (await results(prepared, 'cpu')).entries()) {
        const got = await numbersOf(cuda[i]!)
        const wrong = difference(expected.dtype, got, await numbersOf(expected), tolerances[op] ?? 1e-5)
        if (wrong) return t.fail(`output ${i} of ${JSON.stringify(call)}: ${wrong}`)
        const again = difference(expected.dtype, await numbersOf(backwards[i]!), got, 0)
        if (again) return t.fail(`backwards, output ${i} of ${JSON.stringify(call)}: ${again}`)
      }
    }
    t.pass()
  })
