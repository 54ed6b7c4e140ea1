/** What Prometheus reads at `/metrics`. Labels are few: no key, adapter or path of a request's own becomes one. */
import type { FastifyInstance, FastifyRequest } from 'fastify'
import { Counter, Gauge, Histogram, Registry } from 'prom-client'
import type { Engine } from '../engine/engine.js'
import type { EngineListener, EngineState } from '../engine/events.js'
import { onClosed } from './closed.js'
import { watchProcess } from './process_metrics.js'

const shortTimes = [0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10]
const longTimes = [...shortTimes, 30, 60, 120, 300]
const batchSizes = [1, 2, 4, 8, 16, 32, 64, 128]

/** Counts what an app and its engine do, and answers at `/metrics`. */
export function measure(app: FastifyInstance, engine: Engine): void {
  const registry = new Registry()
  const stops = [watchEngine(registry, engine), watchProcess(registry)]
  showState(registry, engine)
  watchRequests(app, registry)
  app.get('/metrics', { config: { scope: 'metrics' } }, async (_, reply) => {
    reply.type(registry.contentType)
    return registry.metrics()
  })
  app.addHook('onClose', async () => {
    for (const stop of stops) stop()
    registry.clear()
  })
}

/** A request's route as it was declared, which is one of few, unlike its path. */
export const routeOf = ({ routeOptions: { url } }: FastifyRequest): string => url ?? 'unknown'

function watchRequests(app: FastifyInstance, registry: Registry): void {
  const registers = [registry]
  const requests = new Counter({
    name: 'heddle_http_requests_total',
    help: 'Requests that were answered, or whose client went away (status 499)',
    labelNames: ['route', 'method', 'status'],
    registers,
  })
  const seconds = new Histogram({
    name: 'heddle_http_request_duration_seconds',
    help: 'Time from the head of a request to the end of its answer',
    labelNames: ['route'],
    buckets: longTimes,
    registers,
  })
  const running = new Gauge({
    name: 'heddle_http_requests_running',
    help: 'Requests without a complete answer',
    registers,
  })
  app.addHook('onRequest', async (request, reply) => {
    running.inc()
    const started = performance.now()
    onClosed(reply, () => {
      running.dec()
      const status = reply.raw.writableEnded ? reply.statusCode : 499
      const route = routeOf(request)
      requests.inc({ route, method: request.method, status })
      seconds.observe({ route }, (performance.now() - started) / 1000)
    })
  })
}

function watchEngine(registry: Registry, engine: Engine): () => void {
  const registers = [registry]
  const counter = (name: string, help: string) => new Counter({ name, help, registers })
  const promptTokens = counter('heddle_prompt_tokens_total', 'Tokens of prompts that the network has seen')
  const cachedTokens = counter('heddle_cached_prompt_tokens_total', 'Tokens of prompts that were in the cache already')
  const newTokens = counter('heddle_new_tokens_total', 'Tokens that were drawn')
  const evictions = counter('heddle_adapter_evictions_total', 'Adapters that made room for another')
  const ends = new Counter({
    name: 'heddle_texts_total',
    help: 'Texts that have ended, by reason',
    labelNames: ['reason'],
    registers,
  })
  const adapters = new Counter({
    name: 'heddle_adapter_requests_total',
    help: 'Adapters that were wanted: hit when in memory, miss when not',
    labelNames: ['result'],
    registers,
  })
  const batch = new Histogram({
    name: 'heddle_batch_texts',
    help: 'Texts in a step of the network',
    buckets: batchSizes,
    registers,
  })
  const step = new Histogram({
    name: 'heddle_step_seconds',
    help: 'Time of a step of the network',
    buckets: shortTimes,
    registers,
  })
  const first = new Histogram({
    name: 'heddle_time_to_first_token_seconds',
    help: 'Time from a request to its first token',
    buckets: longTimes,
    registers,
  })
  const listener: EngineListener = {
    onStep: (taken) => {
      batch.observe(taken.texts)
      step.observe(taken.seconds)
      promptTokens.inc(taken.promptTokens)
      newTokens.inc(taken.newTokens)
    },
    onFirstToken: ({ seconds }) => first.observe(seconds),
    onEnd: (end) => {
      ends.inc({ reason: end.reason })
      cachedTokens.inc(end.cachedTokens)
    },
    onAdapter: ({ isLoaded }) => adapters.inc({ result: isLoaded ? 'hit' : 'miss' }),
    onEvict: () => evictions.inc(),
  }
  return engine.watch(listener)
}

function showState(registry: Registry, engine: Engine): void {
  const gauges: readonly (readonly [name: string, help: string, value: (state: EngineState) => number])[] = [
    ['heddle_texts_running', 'Texts being made', ({ running }) => running],
    ['heddle_texts_waiting', 'Requests without a place (the queue)', ({ waiting }) => waiting],
    ['heddle_batch_limit', 'Most texts that are made at a time', ({ maxBatch }) => maxBatch],
    ['heddle_cache_used_bytes', 'Keys and values in use', ({ cache }) => cache.usedBytes],
    ['heddle_cache_bytes', 'Memory for keys and values', ({ cache }) => cache.bytes],
    ['heddle_adapter_used_bytes', 'Adapters in memory', ({ adapters }) => adapters.usedBytes],
    ['heddle_adapter_bytes', 'Memory for adapters', ({ adapters }) => adapters.bytes],
    ['heddle_adapters_loaded', 'Adapters in memory', ({ adapters }) => adapters.loaded.length],
  ]
  for (const [name, help, value] of gauges)
    new Gauge({
      name,
      help,
      registers: [registry],
      collect() {
        this.set(value(engine.state()))
      },
    })
}
