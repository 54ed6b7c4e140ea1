// `npm run test:cuda`: the tests of the CUDA backend on the GPU of this machine, instead of in the emulation. Among them the
// tests of operators, linear algebra, structured matrices, models and adapters, with every program on the device
// (test/175-cuda-operator-tests.test.ts has the list).
//
//   --emulation   all of them in the emulation, of which `npm test` runs a few: needs no GPU and no CUDA, and takes a while
//   name…         only tests of this backend whose file has one of the names
import { readdirSync } from 'node:fs'
import { join } from 'node:path'
import { exitOnFailure, prepare, root, runNode } from './build.mjs'

const args = process.argv.slice(2)
const emulation = args.includes('--emulation')
const names = args.filter((arg) => !arg.startsWith('--'))

await exitOnFailure(async () => {
  await prepare({ emulation })
  if (!emulation) {
    await runNode([join(root, 'install', 'cuda.mjs')])
    if (process.exitCode) return
    process.env.HEDDLE_CUDA_ADDON = join(root, 'build', 'Release', 'heddle_cuda.node')
  }
  process.chdir(root)
  process.env.HEDDLE_CUDA_TESTS = 'all'
  const tests = readdirSync(join('dist', 'test'))
    .filter((name) => /^17\d-cuda-.*\.test\.js$/.test(name))
    .filter((name) => names.length === 0 || names.some((each) => name.includes(each)))
  await runNode([
    join(root, 'node_modules/ava/entrypoints/cli.mjs'),
    '--timeout=30m',
    ...tests.map((name) => join('dist', 'test', name)),
  ])
})
