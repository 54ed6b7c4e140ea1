/** A process that does one training step per line `step` on its standard input and answers with a JSON line. */
import { type ChildProcess, spawn } from 'node:child_process'
import { createInterface } from 'node:readline'

export interface Stepper {
  /** Seconds that one step took, by the process's own clock. */
  step(): Promise<number>
  /** Everything that one step has measured. */
  measure(): Promise<Record<string, number>>
  /** The answer to a line that the process knows. */
  ask(line: string): Promise<Record<string, number>>
  /** Highest resident memory so far, in bytes. */
  peakBytes(): Promise<number>
  stop(): void
  /** Resolves when the process is gone. */
  readonly ended: Promise<void>
}

/** Starts the process and waits until it has warmed up. */
export async function startStepper(command: string, args: readonly string[], threads: number): Promise<Stepper> {
  const child: ChildProcess = spawn(command, args, {
    stdio: ['pipe', 'pipe', 'inherit'],
    env: { ...process.env, HEDDLE_NUM_THREADS: `${threads}` },
  })
  const lines = createInterface({ input: child.stdout! })[Symbol.asyncIterator]()
  const answer = async (): Promise<Record<string, number>> => {
    const { value, done } = await lines.next()
    if (done) throw new Error(`${command} ${args.join(' ')} ended early`)
    return JSON.parse(value) as Record<string, number>
  }
  await answer()
  const ask = (word: string) => {
    child.stdin!.write(`${word}\n`)
    return answer()
  }
  return {
    ask,
    measure: () => ask('step'),
    step: async () => (await ask('step')).seconds!,
    peakBytes: async () => (await ask('report')).peak_bytes!,
    stop: () => child.stdin!.end(),
    ended: new Promise((resolve) => child.once('exit', () => resolve())),
  }
}
