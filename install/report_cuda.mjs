// `npm run report:cuda`, after a build of the CUDA addon: writes docs/cuda-kernels.md from what the assembler has said and
// from the shapes of launches, which the emulation writes down.
import { join } from 'node:path'
import { exitOnFailure, prepare, root, runNode } from './build.mjs'

await exitOnFailure(async () => {
  await prepare({ emulation: true })
  await runNode([join(root, 'dist', 'bench', 'cuda', 'report.js'), ...process.argv.slice(2)])
})
