/** A RandLoRA training step (r 32, all seven linears, SmolLM2-135M shape, 4×256 tokens) against PEFT + torch. */
import { fileURLToPath } from 'node:url'
import { peerPython } from './peers/python.js'
import { startStepper } from './peers/stepper.js'
import { compared, machineText } from './train-lora.js'

/** One line for `npm run bench -- --list`. */
export const purpose = 'RandLoRA training step, tokens/s and peak memory, against PEFT + torch, with LoRA beside it'

/** @param args threads, pairs of steps, precisions (`f32,bf16`), layers of 30 (fewer take less time) */
export async function run(args: readonly string[]): Promise<void> {
  const [threads, pairs, precisions] = [Number(args[0] ?? 2), Number(args[1] ?? 3), (args[2] ?? 'f32').split(',')]
  const layers = args[3] ?? '30'
  const root = fileURLToPath(new URL('../../', import.meta.url))
  const worker = fileURLToPath(new URL('./workers/train_lora.js', import.meta.url))
  const python = await peerPython(root)
  const ratios: Record<string, number> = {}
  for (const precision of precisions) {
    const peer = [
      `${root}bench/peers/peft_lora.py`,
      '--dtype',
      precision,
      '--threads',
      `${threads}`,
      '--layers',
      layers,
    ]
    const heddle = await startStepper(process.execPath, [worker, precision, layers, 'randlora'], threads)
    const peft = await startStepper(python, [...peer, '--method', 'randlora', '--warmup', '1', '--serve'], threads)
    Object.assign(ratios, await compared(precision, [heddle, peft], pairs))
  }
  console.log(JSON.stringify({ bench: 'randlora', ratios, machine: machineText(threads) }))
}
