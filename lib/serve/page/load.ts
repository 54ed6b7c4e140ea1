/** The last minutes of a server in numbers, so that a page that is opened has curves at once. */
import type { Engine } from '../../engine/engine.js'
import type { LoadLimits, LoadSample } from './messages.js'

/** Seconds from one sample to the next. */
export const loadInterval = 1
/** Samples that are kept. */
export const loadSamples = 300

/** Watches an engine and takes a sample in every interval. */
export class LoadRecorder {
  readonly #engine: Engine
  readonly #samples: LoadSample[] = []
  readonly #stop: () => void
  #tokens = { new: 0, prompt: 0 }
  #last = performance.now()

  constructor(engine: Engine) {
    this.#engine = engine
    const unwatch = engine.watch({
      onStep: ({ newTokens, promptTokens }) => {
        this.#tokens.new += newTokens
        this.#tokens.prompt += promptTokens
      },
    })
    const timer = setInterval(() => this.take(performance.now()), 1000 * loadInterval).unref()
    this.#stop = () => {
      clearInterval(timer)
      unwatch()
    }
  }

  get limits(): LoadLimits {
    const { maxBatch, cache, adapters } = this.#engine.state()
    return { texts: maxBatch, cacheBytes: cache.bytes, adapterBytes: adapters.bytes }
  }

  /** The samples that are newer than `at`, oldest first. */
  since(at: number): readonly LoadSample[] {
    return this.#samples.filter((sample) => sample.at > at)
  }

  /** @param now in milliseconds; what happened since the last call is spread over the time since then */
  take(now: number): void {
    const seconds = Math.max(1e-3, (now - this.#last) / 1000)
    const { running, waiting, cache, adapters } = this.#engine.state()
    this.#samples.push({
      at: (performance.timeOrigin + now) / 1000,
      newTokens: this.#tokens.new / seconds,
      promptTokens: this.#tokens.prompt / seconds,
      running,
      waiting,
      cacheBytes: cache.usedBytes,
      adapterBytes: adapters.usedBytes,
      residentBytes: process.memoryUsage.rss(),
    })
    if (this.#samples.length > loadSamples) this.#samples.shift()
    this.#tokens = { new: 0, prompt: 0 }
    this.#last = now
  }

  close(): void {
    this.#stop()
  }
}
