/** Heddle's side of `structured`: one run of a case per line `step <name>` on standard input. */
import { createInterface } from 'node:readline'
import { copy } from '../../lib/graph/ops/index.js'
import { matmul } from '../../lib/graph/ops/matmul.js'
import { program } from '../../lib/graph/program.js'
import { zeros } from '../../lib/tensor/tensor.js'
import { loadCases } from '../structured/cases.js'

const cases = new Map((await loadCases()).map((each) => [each.name, each]))
let prepared: { readonly name: string; readonly run: () => Promise<void> } | undefined

async function seconds(name: string): Promise<number> {
  if (prepared?.name !== name) prepared = { name, run: await cases.get(name)!.prepare() }
  return timed(prepared.run)
}

async function timed(run: () => Promise<unknown>): Promise<number> {
  const start = performance.now()
  await run()
  return (performance.now() - start) / 1000
}

/** The best of a few dense products and copies. */
async function limits(): Promise<Record<string, number>> {
  const size = 2048
  const a = zeros([size, size])
  const large = zeros([1 << 26])
  const [multiply, move] = [program((x) => matmul(x!, x!)), program((x) => copy(x!))]
  const times = { product: Number.POSITIVE_INFINITY, copy: Number.POSITIVE_INFINITY }
  for (let i = 0; i < 5; i += 1) {
    times.product = Math.min(times.product, await timed(async () => (await multiply(a)).dispose()))
    times.copy = Math.min(times.copy, await timed(async () => (await move(large)).dispose()))
  }
  for (const used of [a, large, multiply, move]) used.dispose()
  return { flopsPerSecond: (2 * size ** 3) / times.product, bytesPerSecond: (2 * 4 * 2 ** 26) / times.copy }
}

console.log(JSON.stringify({ ready: true }))
for await (const line of createInterface({ input: process.stdin })) {
  const [word, name] = line.split(' ')
  console.log(JSON.stringify(word === 'limits' ? await limits() : { seconds: await seconds(name!) }))
}
