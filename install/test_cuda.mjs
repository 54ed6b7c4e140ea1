// `npm run test:cuda`: the tests of the CUDA backend on the GPU of this machine, instead of in the emulation. Among them the
// operators' own tests, with every program on the device (test/175-cuda-operator-tests.test.ts).
import { readdirSync } from 'node:fs'
import { join } from 'node:path'
import { exitOnFailure, prepare, root, runNode } from './build.mjs'

await exitOnFailure(async () => {
  await prepare()
  process.chdir(root)
  process.env.HEDDLE_CUDA_ADDON = join(root, 'build', 'Release', 'heddle_cuda.node')
  const tests = readdirSync(join('dist', 'test')).filter((name) => /^17\d-cuda-.*\.test\.js$/.test(name))
  await runNode([
    join(root, 'node_modules/ava/entrypoints/cli.mjs'),
    ...tests.map((name) => join('dist', 'test', name)),
  ])
})
