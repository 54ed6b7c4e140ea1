/** What both sides of `serve` do alike. */

const promptTokens = 32

/** A prompt of stream number `index`; no two begin alike. */
export const promptOf = (index: number): Int32Array =>
  Int32Array.from({ length: promptTokens }, (_, i) => 100 + ((i * 37 + index * 101) % 5000))

/** New tokens per second of so many streams at once, and the median of the seconds to a stream's first one. */
export async function throughput(
  streams: number,
  tokens: number,
  streamOf: (index: number, tokens: number) => AsyncIterable<unknown>,
): Promise<{ readonly speed: number; readonly first: number }> {
  const start = performance.now()
  const firsts = await Promise.all(
    Array.from({ length: streams }, async (_, index) => {
      let first = 0
      for await (const _ of streamOf(index, tokens)) first ||= performance.now() - start
      return first / 1000
    }),
  )
  const speed = (1000 * streams * tokens) / (performance.now() - start)
  return { speed, first: firsts.toSorted((a, b) => a - b)[Math.floor(streams / 2)]! }
}
