/** Runs one program: in a worker, the one that it is given; as a process, one to finish or one to leave in the middle. */
import { parentPort, workerData } from 'node:worker_threads'
import { addon } from '../../lib/native.js'
import { encode, pointwise } from './instruction_list.js'

const length = 1 << 18

const endless = () =>
  encode({
    buffers: [
      { kind: 'input', index: 0, shape: [length] },
      { kind: 'temp', shape: [length] },
      { kind: 'output', index: 0, shape: [length] },
    ],
    instructions: [
      pointwise('neg', [0], 1),
      ...Array.from({ length: 5000 }, () => pointwise('exp', [1], 1)),
      pointwise('neg', [1], 2),
    ],
  })

const small = encode({
  buffers: [
    { kind: 'input', index: 0, shape: [length] },
    { kind: 'output', index: 0, shape: [length] },
  ],
  instructions: [pointwise('neg', [0], 1)],
})

if (parentPort) {
  const port = parentPort
  const program = await addon.compile(workerData as Uint8Array, [])
  // The short program takes [2, 3], the long one [2^18].
  const short = program.arenaBytes < 1024
  const input = addon.tensorZeros('f32', short ? [2, 3] : [length])
  const run = program.run([input])
  if (!short) setTimeout(() => port.postMessage('running'), 5)
  await run
  if (short) port.postMessage('done')
} else {
  const leave = process.argv[2] === 'exit'
  const program = await addon.compile(leave ? endless() : small, [])
  const run = program.run([addon.tensorZeros('f32', [length])])
  if (leave) {
    setTimeout(() => {
      console.log('running')
      process.exit(0)
    }, 5)
  }
  await run
  console.log('done')
}
