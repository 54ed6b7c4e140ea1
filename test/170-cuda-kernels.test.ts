// Every CUDA kernel against the CPU's of the same name, over the calls that tests of hostile instructions start from. Where
// there is no GPU the kernels run in the emulation, which also fails on races, on barriers that not all threads meet, and
// on shared memory that nobody has written.
import './support/cuda_host.js'
import test from 'ava'
import { HeddleError } from '../lib/errors.js'
import { addon, type Device, type NativeTensor } from '../lib/native.js'
import { difference, numbersOf, type Prepared, prepare, randomOf, results } from './support/both_devices.js'
import { canonical } from './support/canonical.js'
import { kernels } from './support/kernel_calls.js'

/** Calls that must run; others, whose contents both devices refuse, come on top. */
const wantedCalls = 20

/**
 * Largest difference from the CPU, relative to the larger of the number and 1, or the largest number if that is smaller;
 * 0 for what only moves numbers: the same bits. Default 1e-5.
 */
const tolerances: Readonly<Record<string, number>> = {
  arange: 0,
  broadcast_to: 0,
  cache_update: 0,
  concat: 0,
  copy: 0,
  flip: 0,
  gather: 0,
  gather_last: 0,
  gather_rows: 0,
  // With precision bf16 what is rounded is relative to another maximum: that of the row, not of the part so far.
  linear_cross_entropy: 1e-3,
  // The lse of these calls is not that of their logits: terms of e^10, rounded to bf16 one way or the other, cancel.
  linear_cross_entropy_vjp: 2e-2,
  paged_cache_update: 0,
  scatter_last: 0,
  slice: 0,
  slice_vjp: 0,
  transpose: 0,
}

/** Blocks, and threads between barriers, from the last to the first: serial tests, for the whole process hears it. */
async function backwards(prepared: Prepared): Promise<NativeTensor[]> {
  process.env.HEDDLE_CUDA_HOST_ORDER = 'reverse'
  try {
    return await results(prepared, 'cuda')
  } finally {
    delete process.env.HEDDLE_CUDA_HOST_ORDER
  }
}

/** The results, or what the contents were refused with. */
async function outcome(prepared: Prepared, device: Device): Promise<NativeTensor[] | string> {
  try {
    return await results(prepared, device)
  } catch (error) {
    if (error instanceof HeddleError && error.code === 'ERR_HEDDLE_ARGUMENT') return `${error.place}: ${error.expected}`
    throw error
  }
}

for (const op of addon.cudaInfo().operators)
  test.serial(`${op}: CUDA agrees with the CPU, and with itself when blocks and threads run backwards`, async (t) => {
    const random = randomOf(op)
    let ran = 0
    for (let round = 0; round < 20 * wantedCalls && ran < wantedCalls; ++round) {
      const call = kernels[op]!(random)
      const prepared = prepare(op, call, random)
      const [onCpu, onCuda] = [await outcome(prepared, 'cpu'), await outcome(prepared, 'cuda')]
      if (typeof onCpu === 'string' || typeof onCuda === 'string') {
        t.is(onCuda, onCpu)
        continue
      }
      ran += 1
      const again = await backwards(prepared)
      const [expected, got] = [await Promise.all(onCpu.map(numbersOf)), await Promise.all(onCuda.map(numbersOf))]
      const wanted = canonical(op, call, expected)
      for (const [i, found] of canonical(op, call, got).entries()) {
        // Of factorisations, errors are relative to the largest number.
        const unique = wanted === expected
        const scale = unique ? 1 : Math.max(1e-30, ...wanted[i]!.map(Math.abs))
        const relative = (numbers: readonly number[]) => (unique ? numbers : numbers.map((value) => value / scale))
        const dtype = unique ? onCpu[i]!.dtype : 'f32'
        const wrong = difference(dtype, relative(found), relative(wanted[i]!), tolerances[op] ?? 1e-5)
        if (wrong) return t.fail(`output ${i} of ${JSON.stringify(call)}: ${wrong}`)
      }
      for (const [i, tensor] of again.entries()) {
        const changed = difference(tensor.dtype, await numbersOf(tensor), got[i]!, 0)
        if (changed) return t.fail(`backwards, output ${i} of ${JSON.stringify(call)}: ${changed}`)
      }
    }
    t.is(ran, wantedCalls)
  })
