/** Training jobs: their state, their losses as they fall, and a way to end one. */
import { useEffect, useMemo, useRef, useState } from 'preact/hooks'
import { events, json, messageOf } from './api.js'
import { Chart, type Curve } from './chart.js'
import { clock, rate } from './format.js'
import { usePolled, useRedraw } from './hooks.js'
import { html } from './html.js'
import { NewJob } from './new_job.js'

const seconds = 2
/** Seconds until a stream that broke is asked for again. */
const retryAfter = 3
/** Milliseconds for the second press of a button that ends a job. */
const patience = 5000

/** As OpenAI's API tells it, as far as it is shown. */
interface Job {
  readonly id: string
  readonly status: 'queued' | 'running' | 'succeeded' | 'failed' | 'cancelled'
  readonly created_at: number
  readonly fine_tuned_model: string | null
  readonly user_provided_suffix: string | null
  readonly error: { readonly message?: string } | null
  readonly heddle: { readonly method: string }
}

interface Step {
  readonly step: number
  readonly total_steps: number
  readonly train_loss: number
  readonly valid_loss?: number
  readonly tokens_per_second: number
}

interface JobEvent {
  readonly type: 'message' | 'metrics'
  readonly data: Step | Record<string, never>
}

/**
 * @param base name of the model that is trained
 * @param onEnd an adapter may be there that was not
 */
export function Jobs({ base, onEnd }: { readonly base: string; readonly onEnd: () => void }) {
  const [jobs, setJobs] = useState<readonly Job[] | undefined>(undefined)
  const { problem, refresh } = usePolled<{ readonly data: readonly Job[] }>(
    () => 'v1/fine_tuning/jobs?limit=20',
    seconds,
    ({ data }) => setJobs(data),
  )
  const ended = (): void => {
    refresh()
    onEnd()
  }
  return html`<section class="panel jobs" aria-labelledby="jobs-title">
    <header><h2 id="jobs-title">Training</h2></header>
    ${jobs && html`<${NewJob} base=${base} onStart=${refresh} />`}
    ${problem !== undefined && html`<p class="problem" role="status">${problem}</p>`}
    ${jobs?.length === 0 && html`<p class="quiet">No jobs yet.</p>`}
    ${jobs?.map((job) => html`<${JobRow} key=${job.id} job=${job} onChange=${ended} />`)}
  </section>`
}

const isOver = ({ status }: Job): boolean => status !== 'queued' && status !== 'running'

function JobRow({ job, onChange }: { readonly job: Job; readonly onChange: () => void }) {
  const [isChosen, setChosen] = useState<boolean | undefined>(undefined)
  // Who watched it run sees how it ended.
  const hasRun = useRef(false)
  hasRun.current ||= job.status === 'running'
  const isShown = isChosen ?? hasRun.current
  const reveal = useRef<HTMLButtonElement>(null)
  const cancelled = (): void => {
    // The button that has the focus goes.
    reveal.current!.focus()
    onChange()
  }
  const name = job.user_provided_suffix ?? job.id.replace('ftjob-', '')
  return html`<article class="job" aria-label=${`Job ${name}`}>
    <div class="row">
      <button type="button" class="reveal" ref=${reveal} aria-expanded=${isShown} onClick=${() => setChosen(!isShown)}>${name}</button>
      <span class=${`badge ${job.status}`}>${job.status}</span>
      <span class="quiet">${job.heddle.method} · ${clock(job.created_at)}${job.fine_tuned_model === null ? '' : ` · ${job.fine_tuned_model}`}</span>
      ${!isOver(job) && html`<${CancelButton} id=${job.id} name=${name} onDone=${cancelled} />`}
    </div>
    ${job.error?.message !== undefined && html`<p class="problem">${job.error.message}</p>`}
    ${isShown && job.status !== 'queued' && html`<${Losses} job=${job} onEnd=${onChange} />`}
  </article>`
}

/** Nothing of a cancelled job is kept, so it has to be pressed twice. */
function CancelButton({
  id,
  name,
  onDone,
}: {
  readonly id: string
  readonly name: string
  readonly onDone: () => void
}) {
  const [isArmed, setArmed] = useState(false)
  const [problem, setProblem] = useState<string | undefined>(undefined)
  useEffect(() => {
    if (!isArmed) return undefined
    const timer = setTimeout(() => setArmed(false), patience)
    return () => clearTimeout(timer)
  }, [isArmed])
  const press = async (): Promise<void> => {
    setArmed(!isArmed)
    if (!isArmed) return
    try {
      await json(`v1/fine_tuning/jobs/${id}/cancel`, { method: 'POST' })
      onDone()
    } catch (error) {
      setProblem(messageOf(error))
    }
  }
  return html`<button type="button" class="small danger" aria-label=${`${isArmed ? 'Really cancel' : 'Cancel'} job ${name}`} onClick=${press}>
      ${isArmed ? 'Really cancel?' : 'Cancel'}
    </button>
    <span class="unseen" role="status">${isArmed ? 'Press again to cancel the job for good.' : ''}</span>
    ${problem !== undefined && html`<span class="problem" role="status">${problem}</span>`}`
}

function Losses({ job, onEnd }: { readonly job: Job; readonly onEnd: () => void }) {
  const { steps, isRead, problem } = useSteps(job, onEnd)
  const last = steps.at(-1)
  const x = useMemo(() => steps.map(({ step }) => step), [steps])
  const curves = useMemo(() => curvesOf(steps), [steps])
  if (problem !== undefined) return html`<p class="problem" role="status">${problem}</p>`
  if (last === undefined) return html`<p class="quiet">${isRead ? 'It made no step.' : 'No step yet…'}</p>`
  const words = `Step ${last.step} of ${last.total_steps}, training loss ${last.train_loss.toFixed(4)}`
  return html`<div class="losses">
    <p class="progress">
      <progress max=${last.total_steps} value=${last.step} aria-label="Steps"></progress>
      <span>${words} · ${rate(last.tokens_per_second)} tokens/s</span>
    </p>
    <${Chart} label=${`Loss by step. ${words}`} x=${x} curves=${curves} height=${200} hasAxes />
  </div>`
}

function curvesOf(steps: readonly Step[]): Curve[] {
  const format = (value: number): string => value.toFixed(4)
  const training: Curve = {
    label: 'Training loss',
    values: steps.map(({ train_loss }) => train_loss),
    colour: '--accent',
    format,
  }
  if (steps.every(({ valid_loss }) => valid_loss === undefined)) return [training]
  const values = steps.map(({ valid_loss }) => valid_loss ?? null)
  return [training, { label: 'Validation loss', values, colour: '--second', format }]
}

/** The steps of a job so far, and those to come as they are done. */
function useSteps(job: Job, onEnd: () => void) {
  const known = useRef(new Map<number, Step>())
  const [problem, setProblem] = useState<string | undefined>(undefined)
  const [isRead, setRead] = useState(false)
  const count = known.current.size
  const redraw = useRedraw()
  useEffect(() => {
    const stop = new AbortController()
    const read = async (): Promise<void> => {
      const path = `v1/fine_tuning/jobs/${job.id}/events?stream=true`
      for await (const { type, data } of events<JobEvent>(path, { signal: stop.signal })) {
        if (type !== 'metrics') continue
        known.current.set((data as Step).step, data as Step)
        redraw()
      }
    }
    const follow = async (): Promise<void> => {
      while (!stop.signal.aborted) {
        try {
          await read()
          setProblem(undefined)
          setRead(true)
          if (!isOver(job)) onEnd()
          return
        } catch (error) {
          if (stop.signal.aborted) return
          setProblem(messageOf(error))
          await new Promise((resolve) => setTimeout(resolve, 1000 * retryAfter))
        }
      }
    }
    void follow()
    return () => stop.abort()
  }, [job.id])
  return { steps: useMemo(() => [...known.current.values()], [count]), isRead, problem }
}
