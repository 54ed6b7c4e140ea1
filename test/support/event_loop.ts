/**
 * How long the event loop of this process is held: by `monitorEventLoopDelay`, and, on Linux, without the time in which the
 * machine gave the processor to others.
 */
import { openSync, readSync } from 'node:fs'
import { monitorEventLoopDelay } from 'node:perf_hooks'

const resolution = 2

/** What took the processor from the main thread so far. */
interface Lost {
  /** Milliseconds in which it was ready to run and others ran. */
  readonly waited: number
  /** Ticks that the hypervisor took. */
  readonly stolen: number
}

/**
 * Reads the beginning of a file of /proc as often as wanted. It stays open: where many processes run, opening one took up
 * to 40 ms.
 */
function opened(path: string): () => string {
  const [file, bytes] = [openSync(path, 'r'), Buffer.alloc(256)]
  return () => bytes.toString('latin1', 0, readSync(file, bytes, 0, bytes.length, 0))
}

/** Tells what was lost; undefined where the system is not Linux. */
function losses(): (() => Lost) | undefined {
  try {
    const [schedule, processors] = [opened(`/proc/self/task/${process.pid}/schedstat`), opened('/proc/stat')]
    return () => {
      const stolen = Number(/^cpu +(?:\d+ ){7}(\d+)/.exec(processors())?.[1] ?? 0)
      return { stolen, waited: Number(schedule().split(' ')[1]) / 1e6 }
    }
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
  const lost = losses()
  const histogram = monitorEventLoopDelay({ resolution })
  histogram.enable()
  const watch = (look: () => Lost, before: Lost): void => {
    // Behind the look, whose time is not the process's own.
    const time = performance.now()
    setTimeout(() => {
      const held = performance.now() - time - resolution
      const after = look()
      if (after.stolen === before.stolen) own = Math.max(own, held - (after.waited - before.waited))
      watch(look, after)
    }, resolution).unref()
  }
  if (lost) watch(lost, lost())
  return () => {
    const seen = { held: Math.max(0, histogram.max / 1e6 - resolution), own: lost && own }
    histogram.reset()
    own = 0
    return seen
  }
}
