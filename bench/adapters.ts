/** Every adapter method at its own settings on one real task, next to full fine-tuning and LoRA. */
import { execFile } from 'node:child_process'
import { cpus } from 'node:os'
import { fileURLToPath } from 'node:url'
import { promisify } from 'node:util'
import { mean, runExperiment } from './adapters/experiment.js'
import { type Files, mailFiles, textFiles } from './adapters/files.js'
import { type Setting, settings } from './adapters/settings.js'
import { machineText } from './train-lora.js'
import type { AdapterResult, AdapterRun } from './workers/adapter.js'

/** One line for `npm run bench -- --list`. */
export const purpose =
  'every adapter method on spam/ham with MiniLM (or `text`: SmolLM2 on held-out text): quality, step time, memory; or `experiment <method>`'

type Task = AdapterRun['task']

/** A row of the table. */
interface Row {
  readonly label: string
  readonly method: string
  readonly parameters: number
  readonly learningRate: number
  /** Accuracy (mails) or loss (text) on held-out examples, by seed. */
  readonly metric: readonly number[]
  readonly stepSeconds: number
  readonly peakBytes: number
}

/**
 * `npm run bench -- adapters [mails|text] [seeds] [only these labels or methods, separated by commas]`. With 0 seeds it
 * takes a quick look: one seed and the highest of the rates. A run takes a quarter to half a minute on two quiet cores, so
 * that `adapters text 1` is done in about 25 minutes. `adapters experiment [method]`: one of
 * bench/adapters/experiments.
 */
export async function run([task = 'mails', ...rest]: readonly string[]): Promise<void> {
  if (task === 'experiment') return runExperiment(rest)
  const [seeds = '3', only] = rest
  const chosen = only?.split(',')
  const rows: Row[] = []
  const files = task === 'mails' ? await mailFiles() : await textFiles()
  const given = { ...files, task: task as Task }
  if (task === 'text') {
    const untrained = await oneRun({ ...given, steps: 0, setting: settings[0]!, learningRate: 0, seed: 0 })
    console.log(`untrained: loss ${untrained.test.toFixed(4)}`)
  }
  for (const setting of settings) {
    if (chosen && !chosen.includes(setting.label) && !chosen.includes(setting.method ?? 'full')) continue
    const row = await rowOf(setting, { ...given, seeds: Number(seeds) })
    rows.push(row)
    console.log(line(row, task as Task))
  }
  console.log(
    JSON.stringify({ bench: 'adapters', task, ratios: ratiosOf(rows), rows, machine: machineText(cpus().length) }),
  )
}

async function rowOf(
  { learningRates, ...setting }: Setting,
  { seeds, ...task }: Files & { readonly task: Task; readonly seeds: number },
): Promise<Row> {
  const sign = task.task === 'mails' ? 1 : -1
  let best: { readonly learningRate: number; readonly result: AdapterResult } | undefined
  for (const learningRate of seeds === 0 ? learningRates.slice(-1) : learningRates) {
    const result = await oneRun({ ...task, setting, learningRate, seed: 0 })
    if (!best || sign * result.validation > sign * best.result.validation) best = { learningRate, result }
  }
  const { learningRate, result } = best!
  const results = [result]
  for (let seed = 1; seed < seeds; seed += 1) results.push(await oneRun({ ...task, setting, learningRate, seed }))
  return {
    label: setting.label,
    method: setting.method ?? 'full',
    parameters: result.parameters,
    learningRate,
    metric: results.map(({ test }) => test),
    stepSeconds: Math.min(...results.map(({ stepSeconds }) => stepSeconds)),
    peakBytes: Math.max(...results.map(({ peakBytes }) => peakBytes)),
  }
}

const execute = promisify(execFile)

async function oneRun(request: AdapterRun): Promise<AdapterResult> {
  const worker = fileURLToPath(new URL('./workers/adapter.js', import.meta.url))
  const { stdout } = await execute(process.execPath, [worker, JSON.stringify(request)])
  return JSON.parse(stdout.trim().split('\n').at(-1)!) as AdapterResult
}

function line({ label, parameters, learningRate, metric, stepSeconds, peakBytes }: Row, task: Task): string {
  const spread = Math.max(...metric) - Math.min(...metric)
  const [value, range] =
    task === 'mails'
      ? [`${(100 * mean(metric)).toFixed(2)} %`, `± ${((100 * spread) / 2).toFixed(2)}`]
      : [mean(metric).toFixed(4), `± ${(spread / 2).toFixed(4)}`]
  return [
    label.padEnd(18),
    parameters.toLocaleString('en-US').padStart(11),
    `lr ${learningRate}`.padEnd(10),
    value.padStart(8),
    range.padEnd(9),
    `${(1000 * stepSeconds).toFixed(0)} ms a step`.padStart(14),
    `${(peakBytes / 2 ** 20).toFixed(0)} MiB`.padStart(9),
  ].join('  ')
}

/** Step time of each method over LoRA's. */
function ratiosOf(rows: readonly Row[]): Record<string, number> {
  const base = rows.find(({ label }) => label === 'LoRA')?.stepSeconds
  return base === undefined ? {} : Object.fromEntries(rows.map(({ label, stepSeconds }) => [label, stepSeconds / base]))
}
