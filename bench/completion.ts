/** Matrix completion over three sizes: seconds per entry and rank. `npm run bench -- completion`. */
import { completeMatrix, disposeSupport, randomSupport } from '../lib/index.js'

/** One line for `npm run bench -- --list`. */
export const purpose = 'matrix completion: a round costs what entries · rank does, over three sizes'

/** Two rounds of each solver on n × n matrices with 32 entries per row. */
export async function run([rankText = '8']: readonly string[]): Promise<void> {
  const rank = Number(rankText)
  const nanoseconds: Record<string, number> = {}
  for (const solver of ['exact', 'sketch-pcg', 'cg'] as const)
    for (const n of [5_000, 20_000, 80_000]) {
      const support = await randomSupport([n, n], { density: 32 / n, seed: 1 })
      const pointers = await support.rowPointers.data()
      const columns = (await support.columnIndices.data()) as Int32Array
      const rows = new Int32Array(support.count)
      for (let row = 0; row < n; row += 1) rows.fill(row, Number(pointers[row]), Number(pointers[row + 1]))
      const values = Float64Array.from(rows, (row, t) => Math.sin(row) * Math.cos(columns[t]!))
      const time = async (maxIterations: number): Promise<number> => {
        const started = performance.now()
        const options = {
          rank,
          solver,
          maxIterations,
          tolerance: 0,
          minChange: 0,
          undetermined: 'minimum-norm',
        } as const
        const { u, v } = await completeMatrix({ rows, columns }, values, [n, n], options)
        u.dispose()
        v.dispose()
        return performance.now() - started
      }
      const milliseconds = (await time(3)) - (await time(1))
      nanoseconds[`${solver}-${n}`] = (milliseconds * 1e6) / 2 / (support.count * rank)
      console.log(
        `${solver.padEnd(10)} ${n} × ${n}, ${support.count} entries: ${(milliseconds / 2).toFixed(0)} ms a round, ` +
          `${nanoseconds[`${solver}-${n}`]!.toFixed(2)} ns per entry and rank`,
      )
      disposeSupport(support)
    }
  console.log(JSON.stringify({ bench: 'completion', ratios: {}, limitShare: {}, nanoseconds }))
}
