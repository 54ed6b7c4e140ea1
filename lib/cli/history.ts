/** The course of a run as `metrics.jsonl` in its output folder, so that a resumed run reports on all of it. */
import { appendFile, mkdir, readFile } from 'node:fs/promises'
import { dirname, join } from 'node:path'
import { writeFileAtomic } from '../formats/atomic_file.js'
import type { Evaluation } from '../train/evaluate.js'
import type { TrainStep } from '../train/train.js'

/** A line of the file: what a step did, or a held-out evaluation after so many steps. */
type Line = { readonly step: TrainStep } | { readonly after: number; readonly evaluation: Evaluation }

export class History {
  readonly #path: string
  #lines: Line[]
  #isFresh: boolean

  private constructor(path: string, lines: Line[]) {
    this.#path = path
    this.#lines = lines
    this.#isFresh = true
  }

  /** With `resume`, goes on with what the folder has. */
  static async open(folder: string, { resume }: { readonly resume: boolean }): Promise<History> {
    const path = join(folder, 'metrics.jsonl')
    await mkdir(dirname(path), { recursive: true })
    return new History(path, resume ? await readLines(path) : [])
  }

  get steps(): readonly TrainStep[] {
    return this.#lines.flatMap((line) => ('step' in line ? [line.step] : []))
  }

  /** In order; the first is the one before training. */
  get evaluations(): readonly { readonly step: number; readonly loss: number; readonly perplexity: number }[] {
    return this.#lines.flatMap((line) => {
      if ('after' in line) return [{ step: line.after, ...line.evaluation }]
      const { evaluation, index } = line.step
      return evaluation ? [{ step: index, ...evaluation }] : []
    })
  }

  addEvaluation(after: number, evaluation: Evaluation): Promise<void> {
    return this.#add({ after, evaluation })
  }

  addStep(step: TrainStep): Promise<void> {
    return this.#add({ step })
  }

  async #add(line: Line): Promise<void> {
    // Steps that ran after the checkpoint which a run was resumed from are run again.
    if (this.#isFresh && 'step' in line)
      this.#lines = this.#lines.filter((earlier) => positionOf(earlier) < line.step.index)
    this.#lines.push(line)
    if (this.#isFresh) await writeFileAtomic(this.#path, this.#lines.map(textOf).join(''))
    else await appendFile(this.#path, textOf(line))
    this.#isFresh = false
  }
}

const positionOf = (line: Line): number => ('step' in line ? line.step.index : line.after)
const textOf = (line: Line): string => `${JSON.stringify(line)}\n`

/** The whole lines of the file; a process that was killed may have left half of one. */
async function readLines(path: string): Promise<Line[]> {
  const text = await readFile(path, 'utf8').catch(() => '')
  return text
    .split('\n')
    .slice(0, -1)
    .map((line) => JSON.parse(line) as Line)
}
