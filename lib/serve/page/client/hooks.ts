/** Hooks that several parts of the page use. */
import { useCallback, useEffect, useRef, useState } from 'preact/hooks'
import { json, messageOf, Refused } from './api.js'

/** A function that shows the component again with the browser's next picture, however often it is called until then. */
export function useRedraw(): () => void {
  const [, set] = useState(0)
  const frame = useRef(0)
  useEffect(() => () => cancelAnimationFrame(frame.current), [])
  return useCallback(() => {
    cancelAnimationFrame(frame.current)
    frame.current = requestAnimationFrame(() => set((count) => count + 1))
  }, [])
}

/** What is asked for again and again. */
export interface Polled {
  /** Why the last answer is missing. */
  readonly problem: string | undefined
  /** Asks at once. */
  readonly refresh: () => void
}

/**
 * Asks for JSON every few seconds while the page is in sight.
 * @param path its address each time
 * @param take gets every answer
 */
export function usePolled<T>(path: () => string, seconds: number, take: (value: T) => void): Polled {
  const [problem, setProblem] = useState<string | undefined>(undefined)
  const wanted = useRef(false)
  const wake = useRef(() => {
    wanted.current = true
  })
  const latest = useRef({ path, take })
  latest.current = { path, take }
  useEffect(() => {
    const stop = new AbortController()
    const visible = (): void => {
      if (!document.hidden) wake.current()
    }
    const rest = (pause: number): Promise<void> =>
      new Promise((resolve) => {
        const timer = setTimeout(resolve, 1000 * pause)
        wake.current = () => {
          wanted.current = true
          clearTimeout(timer)
          resolve()
        }
      })
    document.addEventListener('visibilitychange', visible)
    const ask = async (): Promise<number> => {
      if (document.hidden) return seconds
      try {
        latest.current.take(await json<T>(latest.current.path(), { signal: stop.signal }))
        setProblem(undefined)
        return seconds
      } catch (error) {
        if (!stop.signal.aborted) setProblem(messageOf(error))
        // One that is gone is looked for more often: it costs nobody anything.
        return error instanceof Refused ? Math.max(seconds, error.retryAfter) : Math.min(seconds, 1)
      }
    }
    const run = async (): Promise<void> => {
      while (!stop.signal.aborted) {
        wanted.current = false
        const pause = await ask()
        // Someone may have wanted it anew while the answer was under way.
        if (!wanted.current) await rest(pause)
      }
    }
    void run()
    return () => {
      document.removeEventListener('visibilitychange', visible)
      stop.abort()
      wake.current()
    }
  }, [seconds])
  return { problem, refresh: useCallback(() => wake.current(), []) }
}
