/**
 * How long the event loop of this process is held: by `monitorEventLoopDelay`, and, on Linux, without the time in which the
 * machine gave the processor to others.
 */
import { readFileSync } from 'node:fs'
import { monitorEventLoopDelay } from 'node:perf_hooks'

const resolution = 2

/** Milliseconds so far that the main thread was ready to run and others ran, and that the hypervisor took; on Linux. */
function lost(): { readonly waited: number; readonly stolen: number } | undefined {
  try {
    const waited = Number(readFileSync(`/proc/self/task/${process.pid}/schedstat`, 'latin1').split(' ')[1]) / 1e6
    const stolen = Number(/^cpu +(?:\d+ ){7}(\d+)/.exec(readFileSync('/proc/stat', 'latin1'))?.[1] ?? 0)
    return { waited, stolen }
  } catch {
    return undefined
  }
}

/** Longest holds in milliseconds since the watch was last asked. */
export interface Held {
  readonly held: number
  /** Without the time that the thread was ready to run and others ran; undefined where no one counts that. */
  readonly own: number | undefined
}

/** Watches from now on. @returns tells what was seen, and forgets it */
export function watchEventLoop(): () => Held {
  let own = 0
  const histogram = monitorEventLoopDelay({ resolution })
  histogram.enable()
  const watch = (time: number, before: ReturnType<typeof lost>): void => {
    if (before === undefined) return
    setTimeout(() => {
      const [now, after] = [performance.now(), lost()]
      if (after?.stolen === before.stolen) own = Math.max(own, now - time - resolution - (after.waited - before.waited))
      watch(now, after)
    }, resolution).unref()
  }
  watch(performance.now(), lost())
  return () => {
    const seen = { held: Math.max(0, histogram.max / 1e6 - resolution), own: lost() && own }
    histogram.reset()
    own = 0
    return seen
  }
}
