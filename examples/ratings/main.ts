/**
 * Completes a matrix of ratings: 600 people, 400 films, of which everybody rated some. Every person likes a mixture of
 * three tastes; ratings carry noise. What the ratings that were kept out say is compared with guessing each film's mean.
 *
 *   node dist/examples/ratings/main.js [--ci]
 */
import { completeMatrix } from '../../lib/index.js'

const isShort = process.argv.includes('--ci')
const [people, films, tastes] = isShort ? [150, 100, 3] : [600, 400, 3]
const [share, noise] = [isShort ? 0.4 : 0.2, 0.3]

/** Seeded numbers in [0, 1), the same at every run (mulberry32). */
let state = 7
function random(): number {
  state = (state + 0x6d2b79f5) | 0
  let word = Math.imul(state ^ (state >>> 15), state | 1)
  word ^= word + Math.imul(word ^ (word >>> 7), word | 61)
  return ((word ^ (word >>> 14)) >>> 0) / 2 ** 32
}
const mixtures = (count: number): number[][] =>
  Array.from({ length: count }, () => Array.from({ length: tastes }, () => 2 * random() - 1))

const [likes, offers] = [mixtures(people), mixtures(films)]
const trueRating = (person: number, film: number): number =>
  3 + likes[person]!.reduce((sum, like, k) => sum + 1.5 * like * offers[film]![k]!, 0)

const entries: { person: number; film: number; rating: number }[] = []
for (let person = 0; person < people; person += 1)
  for (let film = 0; film < films; film += 1)
    if (random() < share) {
      const rating = trueRating(person, film) + noise * (random() + random() + random() - 1.5) * 2
      entries.push({ person, film, rating })
    }

const started = performance.now()
const { u, v, report } = await completeMatrix(
  { rows: Int32Array.from(entries, ({ person }) => person), columns: Int32Array.from(entries, ({ film }) => film) },
  Float64Array.from(entries, ({ rating }) => rating),
  [people, films],
  // One more than the tastes, for what all ratings share; a little ridge for people with few ratings.
  { rank: tastes + 1, ridge: 1e-3, holdout: 0.1, tolerance: 1e-6, minChange: 1e-3, seed: 1 },
)
const seconds = (performance.now() - started) / 1000

const [left, right] = [await u.data(), await v.data()]
const rank = u.shape[1]!
const predicted = (person: number, film: number): number => {
  let sum = 0
  for (let k = 0; k < rank; k += 1) sum += Number(left[person * rank + k]) * Number(right[film * rank + k])
  return sum
}
let [squares, spread, cells] = [0, 0, 0]
for (let film = 0; film < films; film += 1) {
  const mean = likes.reduce((sum, _, person) => sum + trueRating(person, film), 0) / people
  for (let person = 0; person < people; person += 1) {
    squares += (predicted(person, film) - trueRating(person, film)) ** 2
    spread += (mean - trueRating(person, film)) ** 2
    cells += 1
  }
}
console.log(
  `${entries.length} ratings of ${people} × ${films}, ${seconds.toFixed(2)} s, ${report.rounds.length} rounds`,
)
console.log(
  `ended by ${report.reason}; error on held-out ratings ${report.holdoutError!.toFixed(3)} (their noise: about ${noise})`,
)
console.log(
  `error on all true ratings ${Math.sqrt(squares / cells).toFixed(3)}, of each film's mean ${Math.sqrt(spread / cells).toFixed(3)}`,
)
if (squares > spread / 4) throw new Error('completing the ratings was no better than half of guessing the mean')
u.dispose()
v.dispose()
