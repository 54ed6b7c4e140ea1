/**
 * `npm run bench -- <name> [arguments]` and `npm run bench -- --list`.
 *
 * A benchmark is one file here that exports `purpose` (one line: what it shows, against whom) and `run(args)`.
 */
import { readdir } from 'node:fs/promises'

interface Benchmark {
  readonly purpose: string
  run(args: readonly string[]): Promise<void>
}

const folder = new URL('.', import.meta.url)

async function main([name, ...args]: readonly string[]): Promise<number> {
  const names = await benchmarkNames()
  if (name === undefined || name === '--list' || name === '--help') {
    const width = Math.max(...names.map(({ length }) => length))
    for (const each of names) console.log(`${each.padEnd(width)}  ${(await load(each)).purpose}`)
    return 0
  }
  if (!names.includes(name)) {
    console.error(`There is no benchmark "${name}". There are: ${names.join(', ')}.`)
    return 1
  }
  await (await load(name)).run(args)
  return 0
}

async function benchmarkNames(): Promise<string[]> {
  const files = await readdir(folder)
  return files
    .filter((file) => file.endsWith('.js') && file !== 'run.js')
    .map((file) => file.slice(0, -'.js'.length))
    .sort()
}

async function load(name: string): Promise<Benchmark> {
  return (await import(new URL(`${name}.js`, folder).href)) as Benchmark
}

// A benchmark that judges itself may have set it already.
process.exitCode = (await main(process.argv.slice(2))) || process.exitCode
