// Memory of results rests for the next result of its size: that must not show in any number, has a bound, and ends with
// the last program.
import test from 'ava'
import { broadcastTo } from '../lib/graph/ops/elementwise.js'
import { placeInZeros } from '../lib/graph/ops/index.js'
import { type Program, program } from '../lib/graph/program.js'
import type { Sym } from '../lib/graph/sym.js'
import { type Tensor, tensor } from '../lib/tensor/tensor.js'

const mebi = 1 << 20
/** Repeats a number `size` times. */
const repeated = (size: number) => program((x) => broadcastTo(x!, [size]))

test.serial('a result in the memory of another one is as in fresh memory', async (t) => {
  const size = 3 * mebi
  const spoil = repeated(size)
  const corner = program((x) => placeInZeros(x!, [size - 1], [size]))
  for (let round = 0; round < 3; round += 1) {
    ;(await spoil(tensor([Number.NaN]))).dispose()
    using result = await corner(tensor([7]))
    const values = await result.data()
    t.is(values.at(-1), 7)
    t.is(
      values.findIndex((value) => value !== 0),
      size - 1,
    )
  }
  for (const each of [spoil, corner]) each.dispose()
})

test.serial('no more than 64 MiB rest, and nothing when the last program is gone', async (t) => {
  const programs: Program<Sym>[] = []
  const results: Tensor[] = []
  for (let i = 0; i < 10; i += 1) {
    const fill = repeated(10 * mebi + i * 1024)
    programs.push(fill)
    results.push(await fill(tensor([1])))
  }
  const resident = (): number => process.memoryUsage.rss() / mebi
  // The thread of a run lets go of its results at some time after it has handed them over.
  const fallsBy = async (least: number, from: number): Promise<boolean> => {
    for (let turn = 0; turn < 10_000 && from - resident() < least; turn += 1) await new Promise(setImmediate)
    return from - resident() >= least
  }
  const all = resident()
  for (const result of results) result.dispose()
  t.true(await fallsBy(300, all), `${all} to ${resident()} MiB`)
  const resting = resident()
  for (const each of programs) each.dispose()
  t.true(await fallsBy(30, resting), `${resting} to ${resident()} MiB`)
})
