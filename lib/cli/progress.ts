/** Progress of long work: a bar on a terminal, a line now and then where the output is a file or a CI log. */
import type { Writable } from 'node:stream'
import { Presets, SingleBar } from 'cli-progress'

export interface ProgressOptions {
  readonly label: string
  /** Steps or bytes in the whole work; 0 where it is not known yet. */
  readonly total: number
  /** How counts are shown; bytes as MiB. Default `count`. */
  readonly unit?: 'count' | 'bytes'
  /** Default `process.stderr`, so that results on stdout stay clean. */
  readonly stream?: Writable & { readonly isTTY?: boolean }
}

export interface Progress extends Disposable {
  /** `done` so far, of `total` where it has become known; `note` is a short text beside it, such as the loss. */
  update(done: number, change?: { readonly total?: number; readonly note?: string }): void
  /** Leaves the last state on the screen. Calling it twice does no harm. */
  stop(): void
}

/** On a terminal a live bar, elsewhere a line every ten per cent and at least every ten seconds. */
export function progress(options: ProgressOptions): Progress {
  const stream = options.stream ?? process.stderr
  return stream.isTTY === true ? barProgress(options, stream) : lineProgress(options, stream)
}

function barProgress({ label, total, unit }: ProgressOptions, stream: Writable): Progress {
  const bar = new SingleBar(
    {
      stream: stream as NodeJS.WriteStream,
      barsize: 24,
      hideCursor: true,
      clearOnComplete: false,
      linewrap: false,
      etaBuffer: 50,
      gracefulExit: false,
      formatValue: (value, _, type) =>
        type === 'total' || type === 'value'
          ? amount(value, unit)
          : String(value).padStart(type === 'percentage' ? 3 : 0),
      format: `${label} {bar} {percentage}% · {value}/{total} · {eta_formatted} left{note}`,
    },
    Presets.shades_classic,
  )
  const start = (known: number) => {
    // Without a total the bar would stand at 100 % from the first moment.
    if (known > 0 && !bar.isActive) bar.start(known, 0, { note: '' })
  }
  start(total)
  const stop = () => bar.stop()
  return {
    update(done, change = {}) {
      if (change.total !== undefined) {
        start(change.total)
        bar.setTotal(change.total)
      }
      if (bar.isActive) bar.update(done, { note: change.note ? ` · ${change.note}` : '' })
    },
    stop,
    [Symbol.dispose]: stop,
  }
}

const everyMilliseconds = 10_000

function lineProgress({ label, total, unit }: ProgressOptions, stream: Writable): Progress {
  let known = total
  let printedAt = Date.now()
  let printedTenths = 0
  let pending: string | undefined

  const print = (line: string) => {
    stream.write(`${line}\n`)
    printedAt = Date.now()
    pending = undefined
  }
  const stop = () => {
    if (pending !== undefined) print(pending)
  }
  return {
    update(done, { total: newTotal = known, note } = {}) {
      known = newTotal
      const share = known > 0 ? done / known : 0
      const text =
        known > 0 ? `${amount(done, unit)}/${amount(known, unit)} (${Math.floor(100 * share)}%)` : amount(done, unit)
      pending = `${label} ${text}${note ? ` · ${note}` : ''}`
      const tenths = Math.floor(10 * share)
      if (tenths <= printedTenths && Date.now() - printedAt < everyMilliseconds) return
      printedTenths = tenths
      print(pending)
    },
    stop,
    [Symbol.dispose]: stop,
  }
}

function amount(value: number, unit: ProgressOptions['unit'] = 'count'): string {
  return unit === 'bytes' ? `${(value / 2 ** 20).toFixed(1)} MiB` : value.toLocaleString('en-US')
}
