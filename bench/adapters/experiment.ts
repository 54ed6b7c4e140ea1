/** The small experiments of bench/adapters/experiments: what a method's paper leads to expect, and what comes out here. */
import { readdir } from 'node:fs/promises'
import { cpus } from 'node:os'
import { machineText } from '../train-lora.js'

/** Something that should come out of an experiment, and what did. */
export interface Finding {
  readonly statement: string
  readonly measured: string
  readonly held: boolean
}

/** One file of bench/adapters/experiments, named as the method is in the registry. */
export interface Experiment {
  /** What is done, in a line or two. */
  readonly setting: string
  run(): AsyncGenerator<Finding>
}

export const mean = (values: readonly number[]): number =>
  values.reduce((total, each) => total + each, 0) / values.length

const folder = new URL('./experiments/', import.meta.url)

/** `npm run bench -- adapters experiment [method]`; without a method it says which there are. */
export async function runExperiment([method]: readonly string[]): Promise<void> {
  const names = (await readdir(folder)).filter((file) => file.endsWith('.js')).map((file) => file.slice(0, -3))
  if (method === undefined || !names.includes(method)) {
    console.log(`Experiments: ${names.sort().join(', ')}.`)
    return
  }
  const { setting, run } = (await import(new URL(`${method}.js`, folder).href)) as Experiment
  console.log(setting)
  const start = performance.now()
  const findings: Finding[] = []
  for await (const finding of run()) {
    findings.push(finding)
    console.log(`${finding.held ? 'held    ' : 'not held'}  ${finding.statement}\n          ${finding.measured}`)
  }
  const seconds = Math.round((performance.now() - start) / 1000)
  console.log(
    JSON.stringify({ bench: 'adapters experiment', method, findings, seconds, machine: machineText(cpus().length) }),
  )
}
