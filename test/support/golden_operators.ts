/** Tests every case of a family in test/golden/operators-<family>.*: values and gradients against torch's. */
import test from 'ava'
import { gradients } from '../../lib/graph/grad.js'
import { mul } from '../../lib/graph/ops/elementwise.js'
import { sum } from '../../lib/graph/ops/reduce.js'
import { program } from '../../lib/graph/program.js'
import { read, type Sym } from '../../lib/graph/sym.js'
import { elementCount, sameShape } from '../../lib/tensor/dtype.js'
import { type Tensor, tensor } from '../../lib/tensor/tensor.js'
import { goldenJson, goldenTensors } from '../golden.js'
import { randomNumbers } from '../random_numbers.js'

interface Case {
  readonly op: string
  readonly shapes: readonly (readonly number[])[]
  readonly options: Readonly<Record<string, unknown>>
  readonly seed: number
  /** Inputs are drawn from [-scale, scale). */
  readonly scale?: number
  /** Integer inputs, nested lists; they come after the others. */
  readonly ints?: readonly Nested[]
}

type Nested = number | readonly Nested[]

/** An operator as a case calls it. */
// biome-ignore lint/suspicious/noExplicitAny: each operator has options of its own, which the golden file holds
export type Apply = (inputs: readonly Sym[], options: any) => Sym

/** Declares one test per case; every entry of the table must have a case. */
export function testAgainstTorch(family: string, table: Readonly<Record<string, Apply>>): void {
  const cases = goldenJson<readonly Case[]>(`operators-${family}.json`)
  const golden = goldenTensors(`operators-${family}.safetensors`)
  for (const [index, spec] of cases.entries()) {
    const { op, shapes, options } = spec
    const title = `${op} ${shapes.map((shape) => `[${shape}]`).join(' ')} ${JSON.stringify(options)}`
    test(`${index}: ${title}: values and gradients are torch's`, async (t) => {
      const results = await run(spec, table[op]!)
      for (const [name, result] of Object.entries(results)) {
        const expected = (await golden).get(`${index}/${name}`)!
        t.true(sameShape(result.shape, expected.shape), `${name}: ${result.shape} instead of ${expected.shape}`)
        const error = await worstError(result, expected)
        t.true(error < 1e-5, `${name} is off by ${error}`)
      }
    })
  }
  test(`${family}: every operator has a golden case`, (t) => {
    t.deepEqual(new Set(cases.map(({ op }) => op)), new Set(Object.keys(table)))
  })
}

async function run(spec: Case, apply: Apply): Promise<Readonly<Record<string, Tensor>>> {
  const { shapes, options, seed, scale = 1, ints = [] } = spec
  const inputs = shapes.map((shape, i) =>
    tensor(
      randomNumbers(elementCount(shape), seed + i).map((value) => value * scale),
      shape,
    ),
  )
  const step = program(async (...values) => {
    const y = apply([...values, ...ints.map((each) => read(intTensor(each)))], options)
    const cotangent = read(tensor(randomNumbers(elementCount(y.shape), 7), y.shape))
    const found = await gradients(sum(mul(y, cotangent)), values)
    return { y, ...Object.fromEntries(found.map((gradient, i) => [`d${i}`, gradient])) }
  })
  return (await step(...inputs)) as Readonly<Record<string, Tensor>>
}

function intTensor(nested: Nested): Tensor {
  const shape: number[] = []
  for (let level = nested; typeof level !== 'number'; level = level[0]!) shape.push(level.length)
  return tensor(Int32Array.from([nested].flat(9) as number[]), shape)
}

/** Largest |a − b| / (|b| + the largest |b| or 1e-3): relative for single elements, and to the whole near zero. */
async function worstError(a: Tensor, b: Tensor): Promise<number> {
  const [found, expected] = [await a.data(), await b.data()] as [Float32Array, Float32Array]
  const size = expected.reduce((most, value) => Math.max(most, Math.abs(value)), 1e-3)
  return found.reduce((worst, value, i) => {
    const error = Math.abs(value - expected[i]!) / (Math.abs(expected[i]!) + size)
    return Number.isNaN(error) ? Number.POSITIVE_INFINITY : Math.max(worst, error)
  }, 0)
}
