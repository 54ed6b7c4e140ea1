// The compiled forms that a program keeps: one per input type, the least recently used dropped, never under a call.
import test from 'ava'
import { HeddleError, mul, program, zeros } from '../lib/index.js'

test('more input types at the same time than are kept all get their result', async (t) => {
  const double = program((x) => mul(x!, 2), { cacheSize: 2 })
  const results = await Promise.all(Array.from({ length: 9 }, (_, i) => double(zeros([i + 1]))))
  t.deepEqual(
    results.map(({ shape }) => shape),
    Array.from({ length: 9 }, (_, i) => [i + 1]),
  )
  double.dispose()
})

test('an input type is traced again only after it was dropped', async (t) => {
  let traces = 0
  const double = program(
    (x) => {
      traces += 1
      return mul(x!, 2)
    },
    { cacheSize: 2 },
  )
  for (const [size, expected] of [
    [1, 1],
    [2, 2],
    [1, 2],
    [3, 3],
    [1, 3],
    [2, 4],
  ] as const) {
    await double(zeros([size]))
    t.is(traces, expected, `after ${size}`)
  }
  double.dispose()
})

test('dispose() lets calls that are under way finish', async (t) => {
  const double = program((x) => mul(x!, 2))
  const running = double(zeros([4]))
  double.dispose()
  t.deepEqual((await running).shape, [4])
})

test('a function that failed to trace is traced again', async (t) => {
  let failing = true
  const double = program((x) => {
    if (failing) throw new HeddleError('ERR_HEDDLE_ARGUMENT', { place: 'test', expected: 'luck', got: 'none' })
    return mul(x!, 2)
  })
  await t.throwsAsync(double(zeros([1])), { code: 'ERR_HEDDLE_ARGUMENT' })
  failing = false
  await t.notThrowsAsync(double(zeros([1])))
  double.dispose()
})
