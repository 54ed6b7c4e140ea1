/** Adapters at sites whose weight is in a structure: methods that want the weight's numbers are refused at attach. */
import { HeddleError } from '../errors.js'
import { Trace } from '../graph/sym.js'
import { linear, linearShape, type Site, type SiteHook, weightName } from '../nn/site.js'

/** Batches of few and of many rows: methods may compute them in two ways. */
const rowCounts = [1, 2 ** 20]

/**
 * Traces, without running it, what the adapter computes at a structured site, so that what it reads is read once before
 * it is in use.
 * @throws ERR_HEDDLE_ARGUMENT where that is the weight
 */
export function traceStructured(site: Site, hook: SiteHook): void {
  for (const rows of rowCounts)
    for (const training of [false, true]) {
      const trace = new Trace()
      trace.run(() => {
        const x = trace.input({ shape: [rows, linearShape(site)[1]], dtype: 'f32' })
        const seed = trace.input({ shape: [2], dtype: 'u32' })
        linear(site, x, { precision: 'f32', training, seed, hook })
      })
    }
}

/** Runs `attach`; where that fails for want of a structured site's weight, the error says which method wanted it. */
export async function namingMethod<T>(method: string, sites: readonly Site[], attach: () => Promise<T>): Promise<T> {
  try {
    return await attach()
  } catch (error) {
    throw refusal(method, sites, error) ?? error
  }
}

/** The error about a structured site's weight, with the method; undefined for other errors. */
function refusal(method: string, sites: readonly Site[], error: unknown): HeddleError | undefined {
  const paths = new Map(sites.flatMap((site) => (site.structure ? [[weightName(site), site.path] as const] : [])))
  for (let cause = error; cause instanceof HeddleError; cause = cause.cause) {
    const path = paths.get(cause.place)
    if (path === undefined) continue
    const { code, expected, got, hint = '' } = cause
    return new HeddleError(code, { place: `${method}: ${path}`, expected, got, hint, cause: error })
  }
  return undefined
}
