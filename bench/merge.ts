/** Merging a LoRA (r 16, all linears) into SmolLM2-135M, seconds and peak memory, against PEFT's merge_and_unload. */
import { access } from 'node:fs/promises'
import { arch, cpus, homedir, platform } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { loadModel, lora } from '../lib/index.js'
import { fetchModel } from '../test/models/fetch.js'
import { peerPython } from './peers/python.js'
import { startStepper } from './peers/stepper.js'

/** One line for `npm run bench -- --list`. */
export const purpose = 'merging a LoRA into a model, seconds and peak memory, against merge_and_unload'

/** Alternates merges of both libraries, each of a freshly loaded model, and prints the ratios of the medians. */
export async function run(args: readonly string[]): Promise<void> {
  const threads = Number(args[0] ?? 2)
  const rounds = Number(args[1] ?? 5)
  const root = fileURLToPath(new URL('../../', import.meta.url))
  const files = await modelFiles()
  const sides = {
    heddle: await startStepper(
      process.execPath,
      [fileURLToPath(new URL('./workers/merge.js', import.meta.url)), ...files],
      threads,
    ),
    peft: await startStepper(
      await peerPython(root),
      [`${root}bench/peers/peft_merge.py`, ...files, `${threads}`],
      threads,
    ),
  }
  const seconds: Record<string, number[]> = { heddle: [], peft: [] }
  for (let round = 0; round < rounds; round += 1)
    for (const [name, side] of Object.entries(sides)) seconds[name]!.push(await side.step())
  const medianOf = (name: string): number => seconds[name]!.toSorted((a, b) => a - b)[Math.floor(rounds / 2)]!
  const peaks = { heddle: await sides.heddle.peakBytes(), peft: await sides.peft.peakBytes() }
  for (const [name, side] of Object.entries(sides)) {
    console.log(
      `${name.padEnd(7)} ${medianOf(name).toFixed(3)} s   peak ${(peaks[name as 'peft'] / 1e9).toFixed(2)} GB`,
    )
    side.stop()
  }
  const ratios = { seconds: medianOf('peft') / medianOf('heddle'), memory: peaks.heddle / peaks.peft }
  const machine = `${cpus()[0]?.model.trim()}, ${threads} threads, ${platform()} ${arch()}`
  console.log(JSON.stringify({ bench: 'merge', ratios, machine }))
}

/** SmolLM2 as a folder of safetensors and an adapter for it, made once. */
async function modelFiles(): Promise<[string, string]> {
  const folder = join(homedir(), '.cache', 'heddle-bench', 'smollm2-lora')
  const [base, adapterFolder] = [join(folder, 'base'), join(folder, 'adapter')]
  const complete = await access(join(adapterFolder, 'adapter_config.json')).then(
    () => true,
    () => false,
  )
  if (complete) return [base, adapterFolder]
  const model = await loadModel(await fetchModel('smollm2'))
  await model.save(base)
  const adapter = await model.attach(lora({ r: 16, target_modules: 'all-linear' }))
  await adapter.save(adapterFolder)
  await model.dispose()
  return [base, adapterFolder]
}
