/**
 * What the process of a server takes, by the names that prom-client gives it. Its own collectors cannot be stopped: their
 * observers would outlive the server.
 */
import { readdir } from 'node:fs/promises'
import { constants, monitorEventLoopDelay, type PerformanceEntry, PerformanceObserver } from 'node:perf_hooks'
import { Gauge, Histogram, type Registry } from 'prom-client'

/** Milliseconds between two looks at the event loop. */
const resolution = 2

const collections: Readonly<Record<number, string>> = {
  [constants.NODE_PERFORMANCE_GC_MAJOR]: 'major',
  [constants.NODE_PERFORMANCE_GC_MINOR]: 'minor',
  [constants.NODE_PERFORMANCE_GC_INCREMENTAL]: 'incremental',
  [constants.NODE_PERFORMANCE_GC_WEAKCB]: 'weakcb',
}

/** Name, help and what it is at the time of a scrape. */
type Reading = readonly [name: string, help: string, value: () => number | Promise<number>]

const cpu = (part: 'user' | 'system') => () => process.cpuUsage()[part] / 1e6
const memory = (part: keyof NodeJS.MemoryUsage) => () => process.memoryUsage()[part]

const readings: readonly Reading[] = [
  ['process_cpu_user_seconds_total', 'Time of the CPU in the process', cpu('user')],
  ['process_cpu_system_seconds_total', 'Time of the CPU in the system for the process', cpu('system')],
  ['process_start_time_seconds', 'When the process began', () => performance.timeOrigin / 1000],
  ['process_resident_memory_bytes', 'Memory of the process', memory('rss')],
  ['nodejs_heap_size_total_bytes', 'Heap of JavaScript', memory('heapTotal')],
  ['nodejs_heap_size_used_bytes', 'Heap of JavaScript in use', memory('heapUsed')],
  ['nodejs_external_memory_bytes', 'Memory that objects of JavaScript hold outside of the heap', memory('external')],
  ['nodejs_active_resources_total', 'What keeps the event loop alive', () => process.getActiveResourcesInfo().length],
]

/** Of the process, where the system tells. */
const openFiles: Reading = [
  'process_open_fds',
  'Open files, sockets among them',
  async () => (await readdir('/proc/self/fd')).length,
]

/** Adds the metrics. @returns stops what watches */
export function watchProcess(registry: Registry): () => void {
  show(registry, process.platform === 'linux' ? [...readings, openFiles] : readings)
  const stops = [watchEventLoop(registry), watchCollections(registry)]
  return () => {
    for (const stop of stops) stop()
  }
}

function show(registry: Registry, shown: readonly Reading[]): void {
  for (const [name, help, value] of shown)
    new Gauge({
      name,
      help,
      registers: [registry],
      async collect() {
        this.set(await value())
      },
    })
}

/** How long the event loop was held since the last scrape; the worst is what the others end with. */
function watchEventLoop(registry: Registry): () => void {
  const histogram = monitorEventLoopDelay({ resolution })
  histogram.enable()
  const seconds = (nanoseconds: number): number => Math.max(0, nanoseconds / 1e9 - resolution / 1000)
  const percentiles = [50, 90, 99] as const
  show(registry, [
    ['nodejs_eventloop_lag_mean_seconds', 'Mean hold of the event loop', () => seconds(histogram.mean || 0)],
    ...percentiles.map(
      (share): Reading => [
        `nodejs_eventloop_lag_p${share}_seconds`,
        `Hold of the event loop that ${share} of 100 stay within`,
        () => seconds(histogram.percentile(share)),
      ],
    ),
    [
      'heddle_event_loop_worst_block_seconds',
      'Longest time that the event loop was held since the last scrape',
      () => {
        const worst = seconds(histogram.max)
        histogram.reset()
        return worst
      },
    ],
  ])
  return () => histogram.disable()
}

function watchCollections(registry: Registry): () => void {
  const durations = new Histogram({
    name: 'nodejs_gc_duration_seconds',
    help: 'Time of a garbage collection, by kind',
    labelNames: ['kind'],
    buckets: [0.001, 0.01, 0.1, 1, 2, 5],
    registers: [registry],
  })
  const observer = new PerformanceObserver((list) => {
    for (const entry of list.getEntries()) {
      const { duration, detail } = entry as PerformanceEntry & { readonly detail: { readonly kind: number } }
      const kind = collections[detail.kind] ?? 'other'
      durations.observe({ kind }, duration / 1000)
    }
  })
  observer.observe({ entryTypes: ['gc'] })
  return () => observer.disconnect()
}
