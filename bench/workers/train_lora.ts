/** Heddle's side of `train-lora` and `randlora`: one step at the SmolLM2-135M shape per line `step` on standard input. */

import { createInterface } from 'node:readline'
import { lora } from '../../lib/adapters/methods/lora.js'
import { randlora } from '../../lib/adapters/methods/randlora.js'
import type { Precision } from '../../lib/graph/ops/matmul.js'
import { smollm2Config, syntheticStep } from './lora_step.js'

const [precision = 'f32', layers = '30', methodName = 'lora', profile] = process.argv.slice(2)
const { step, batch, timed } = await syntheticStep({
  folder: 'smollm2-shape',
  config: smollm2Config,
  layers: Number(layers),
  method:
    methodName === 'randlora'
      ? randlora({ r: 32, randlora_alpha: 32, target_modules: 'all-linear' })
      : lora({ r: 16, lora_alpha: 32, target_modules: 'all-linear' }),
  precision: precision as Precision,
  rows: 4,
  length: 256,
})

const first = await timed()
await timed()
console.log(JSON.stringify({ ready: true, first: first.seconds, ...(await step.plan(batch)) }))
for await (const line of createInterface({ input: process.stdin })) {
  if (line === 'report') console.log(JSON.stringify({ peak_bytes: process.resourceUsage().maxRSS * 1024 }))
  else console.log(JSON.stringify(await timed()))
}
if (profile)
  for (const entry of step.profile()) console.error(`${entry.op}\t${entry.calls}\t${entry.seconds.toFixed(3)}`)
