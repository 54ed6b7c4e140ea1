/** The course of a run as `metrics.jsonl` in its output folder, so that a resumed run reports on all of it. */
import { appendFile, mkdir, readFile } from 'node:fs/promises'
import { dirname, join } from 'node:path'
import { HeddleError } from '../errors.js'
import { writeFileAtomic } from '../formats/atomic_file.js'
import type { EvaluationResult } from '../objectives/objective.js'
import type { Sample } from './options.js'
import type { TrainStep } from './train.js'

/** A held-out evaluation after so many steps. */
interface EvaluationLine {
  readonly after: number
  readonly evaluation: EvaluationResult
  readonly samples?: readonly Sample[] | undefined
}

/** A line of the file: what a step did, or an evaluation that belongs to no step of this process. */
type Line = { readonly step: TrainStep<EvaluationResult> } | EvaluationLine

/** The steps and evaluations of a run, in memory and on disk. */
export class History {
  readonly #path: string
  #lines: Line[]
  #isFresh: boolean

  private constructor(path: string, lines: Line[]) {
    this.#path = path
    this.#lines = lines
    this.#isFresh = true
  }

  /** With `resume`, goes on with what the folder has. @throws ERR_HEDDLE_IO, ERR_HEDDLE_FORMAT */
  static async open(folder: string, { resume }: { readonly resume: boolean }): Promise<History> {
    const path = join(folder, 'metrics.jsonl')
    await mkdir(dirname(path), { recursive: true }).catch((cause: unknown) => {
      throw unwritable(folder, cause)
    })
    return new History(path, resume ? await readLines(path) : [])
  }

  get steps(): readonly TrainStep<EvaluationResult>[] {
    return this.#lines.flatMap((line) => ('step' in line ? [line.step] : []))
  }

  /** In order; with `evalOnStart` the first is the one before training. */
  get evaluations(): readonly { readonly step: number; readonly evaluation: EvaluationResult }[] {
    return this.#lines.flatMap((line) => {
      if ('after' in line) return [{ step: line.after, evaluation: line.evaluation }]
      const { evaluation, index } = line.step
      return evaluation ? [{ step: index, evaluation }] : []
    })
  }

  /** What the model wrote after evaluations, in order. */
  get samples(): readonly { readonly step: number; readonly samples: readonly Sample[] }[] {
    return this.#lines.flatMap((line) => {
      const [step, samples] = 'after' in line ? [line.after, line.samples] : [line.step.index, line.step.samples]
      return samples ? [{ step, samples }] : []
    })
  }

  /** Appends an evaluation that belongs to no step of this process. @throws ERR_HEDDLE_IO */
  addEvaluation(after: number, evaluation: EvaluationResult, samples?: readonly Sample[]): Promise<void> {
    return this.#add({ after, evaluation, ...(samples ? { samples } : {}) })
  }

  /** Appends a step, its evaluation included. @throws ERR_HEDDLE_IO */
  addStep(step: TrainStep<EvaluationResult>): Promise<void> {
    return this.#add({ step })
  }

  async #add(line: Line): Promise<void> {
    // Steps that ran after the checkpoint which a run was resumed from are run again.
    if (this.#isFresh && 'step' in line)
      this.#lines = this.#lines.filter((earlier) => positionOf(earlier) < line.step.index)
    this.#lines.push(line)
    if (this.#isFresh) await writeFileAtomic(this.#path, this.#lines.map(textOf).join(''))
    else
      await appendFile(this.#path, textOf(line)).catch((cause: unknown) => {
        throw unwritable(this.#path, cause)
      })
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
    .map((line, index) => {
      try {
        return JSON.parse(line) as Line
      } catch (cause) {
        const got = (cause as Error).message
        throw new HeddleError('ERR_HEDDLE_FORMAT', { place: `${path}:${index + 1}`, expected: 'JSON', got, cause })
      }
    })
}

function unwritable(place: string, cause: unknown): HeddleError {
  const got = cause instanceof Error ? cause.message : String(cause)
  return new HeddleError('ERR_HEDDLE_IO', { place, expected: 'a folder that can be written', got, cause })
}
