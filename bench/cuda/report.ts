/**
 * `npm run report:cuda`: what can be said about the CUDA kernels without a GPU, as docs/cuda-kernels.md. Registers, shared
 * memory and spills are the assembler's; grids are written down by the emulation; occupancy and times are computed.
 * With `--check` it only compares the registers and spills in the document with those of the last build.
 */
import '../../test/support/cuda_host.js'
import { readFile, writeFile } from 'node:fs/promises'
import { basename, join } from 'node:path'
import { addon } from '../../lib/native.js'
import { prepare, randomOf, results } from '../../test/support/both_devices.js'
import { kernels as smallCalls } from '../../test/support/kernel_calls.js'
import { bytesOf, type CudaCase, casesAt } from './cases.js'
import { cards, multiprocessors, occupancy, roofline } from './chips.js'
import { type Launch, launchesOf } from './launches.js'
import { type KernelResources, kernelResources, root } from './resources.js'
import { prepareCase } from './run_case.js'

const document = join(root, 'docs', 'cuda-kernels.md')

/** Small calls of each operator that are looked at for kernels that no case starts. */
const smallCallsEach = 40

const reported = cards.filter(({ name }) => name === 'A100 SXM 80 GB' || name === 'H100 SXM')

interface Started {
  readonly each: CudaCase
  readonly launches: readonly Launch[]
}

async function startedByCases(): Promise<Started[]> {
  const all: Started[] = []
  for (const each of casesAt('full')) {
    const launches = await launchesOf(async () => {
      const prepared = await prepareCase(each, { filled: false })
      for (const result of await prepared.program.run(prepared.inputs)) result.dispose()
      prepared.dispose()
    })
    all.push({ each, launches })
  }
  return all
}

function startedBySmallCalls(): Promise<Launch[]> {
  return launchesOf(async () => {
    for (const op of addon.cudaInfo().operators) {
      const random = randomOf(op)
      for (let i = 0; i < smallCallsEach; i += 1)
        for (const result of await results(prepare(op, smallCalls[op]!(random), random), 'cuda')) result.dispose()
    }
  })
}

const keyOf = (name: string, file?: string): string => (file === undefined ? name : `${file} ${name}`)

const shapeOf = ({ name, file }: KernelResources, shapes: ReadonlyMap<string, Launch>): Launch | undefined =>
  shapes.get(keyOf(name, basename(file))) ?? shapes.get(keyOf(name))

/** The launch of each kernel that takes most of a multiprocessor; those of cases first. */
function shapesOf(lists: readonly (readonly Launch[])[]): Map<string, Launch> {
  const shapes = new Map<string, Launch>()
  for (const launches of lists) {
    const largest = new Map<string, Launch>()
    for (const launch of launches) {
      const key = keyOf(launch.name, launch.file)
      const { threads = 0, dynamicBytes = 0 } = largest.get(key) ?? {}
      if (launch.threads > threads || (launch.threads === threads && launch.dynamicBytes > dynamicBytes))
        largest.set(key, launch)
    }
    for (const [name, launch] of largest) if (!shapes.has(name)) shapes.set(name, launch)
  }
  return shapes
}

/** One number where all architectures agree, else all of them. */
const column = (values: readonly (number | string)[]): string =>
  [...new Set(values)].length === 1 ? `${values[0]}` : values.join('/')

const cells = (values: readonly (number | string)[]): string => `| ${values.join(' | ')} |`

/** Name, registers, shared memory and spills: what `--check` compares. */
function fixedCells({ name, usage }: KernelResources): readonly string[] {
  const all = multiprocessors.map(({ architecture }) => usage.get(architecture)!)
  return [
    `\`${name}\``,
    column(all.map(({ registers }) => registers)),
    column(all.map(({ sharedBytes }) => sharedBytes)),
    column(
      all.map(({ stackBytes, spilledBytes }) =>
        spilledBytes === 0 ? stackBytes : `${stackBytes}, spills ${spilledBytes}`,
      ),
    ),
  ]
}

function kernelRow(kernel: KernelResources, shape: Launch | undefined): string {
  if (!shape) return cells([...fixedCells(kernel), '–', '–', '–'])
  const percents = multiprocessors.map((chip) => {
    const { registers, sharedBytes } = kernel.usage.get(chip.architecture)!
    const needs = {
      threads: shape.threads,
      registersPerThread: registers,
      sharedBytes: sharedBytes + shape.dynamicBytes,
    }
    return Math.round(100 * occupancy(chip, needs))
  })
  return cells([...fixedCells(kernel), shape.threads, shape.dynamicBytes, column(percents)])
}

function kernelTables(kernels: readonly KernelResources[], shapes: ReadonlyMap<string, Launch>): string {
  const files = [...new Set(kernels.map(({ file }) => file))]
  const shown = new Set<string>()
  const sections = files.map((file) => {
    const rows = kernels
      .filter((each) => each.file === file)
      .sort((a, b) => (a.name < b.name ? -1 : 1))
      .map((kernel) => kernelRow(kernel, shapeOf(kernel, shapes)))
      .filter((row) => !shown.has(row))
    // A template of a header is in every file that uses it.
    for (const row of rows) shown.add(row)
    if (rows.length === 0) return ''
    return [
      `### ${file}`,
      '',
      '| kernel | registers | shared B | stack B | threads | dynamic shared B | occupancy % |',
      '|---|---|---|---|---|---|---|',
      ...rows,
      '',
    ].join('\n')
  })
  return sections.join('\n')
}

const microseconds = (seconds: number): number => Number((1e6 * seconds).toPrecision(3))

const quantity = (value: number, units: readonly (readonly [number, string])[]): string => {
  const [size, unit] = units.find(([each]) => value >= each) ?? units.at(-1)!
  return value === 0 ? '0' : `${Number((value / size).toPrecision(3))} ${unit}`
}

function caseRow({ each, launches }: Started): string {
  const work = { flops: each.flops, bytes: bytesOf(each), unit: each.unit ?? 'f32' }
  const names = [...new Set(launches.map(({ name }) => name.replace(/<.*/, '')))]
  const times = reported.map((card) => {
    const { seconds, bound } = roofline(card, work)
    return `${microseconds(seconds)} (${bound})`
  })
  return cells([
    each.op,
    each.name,
    quantity(work.flops, [
      [1e12, 'T'],
      [1e9, 'G'],
      [1e6, 'M'],
      [1, ''],
    ]),
    quantity(work.bytes, [
      [1e9, 'GB'],
      [1e6, 'MB'],
      [1e3, 'kB'],
      [1, 'B'],
    ]),
    ...times,
    launches.length === 0 ? 'a copy' : `${launches.length}: ${names.join(', ')}`,
  ])
}

function text(
  started: readonly Started[],
  kernels: readonly KernelResources[],
  shapes: ReadonlyMap<string, Launch>,
): string {
  const spilling = kernels.filter(({ usage }) => [...usage.values()].some(({ spilledBytes }) => spilledBytes > 0))
  return [
    '# The CUDA kernels on paper',
    '',
    '**Nothing on this page was measured on a GPU.** `npm run report:cuda` writes it: registers, shared memory, stack and spills',
    `are what nvcc's assembler says for ${multiprocessors.map(({ architecture }) => `sm_${architecture}`).join(', ')} (where these differ, in this order); threads and dynamic shared`,
    'memory are those with which the operators start the kernels at the shapes below (of kernels that these do not start: at the small',
    'shapes of the tests; – where neither does); occupancy is computed from them and the published limits of the multiprocessors',
    '(bench/cuda/chips.ts names the sources). Stack is local memory that is indexed at run time; spills are registers that did not',
    `suffice. Kernels: ${kernels.length}, of which ${spilling.length} spill.`,
    '',
    '## Operators: what they take at best',
    '',
    'Operations and bytes that the result needs at least, and the larger of their times at the published peaks of two cards: the roof',
    'that a measurement (`npm run bench -- cuda`) is to be compared with. No kernel has been shown to reach it, and what starting a',
    'kernel takes is not in it. The last column: how many kernels and calls of libraries a run starts, and which.',
    '',
    `| operator | shape | operations | bytes | ${reported.map(({ name }) => `${name} at least, µs`).join(' | ')} | starts |`,
    '|---|---|---|---|---|---|---|',
    ...started.map(caseRow),
    '',
    '## Kernels',
    '',
    kernelTables(kernels, shapes),
  ].join('\n')
}

/** All but NVIDIA's own. */
const ownKernels = async (): Promise<KernelResources[]> =>
  (await kernelResources()).filter(({ name }) => !name.startsWith('cub::'))

/** Writes the document. */
async function writeReport(): Promise<void> {
  const kernels = await ownKernels()
  const started = await startedByCases()
  const shapes = shapesOf([started.flatMap(({ launches }) => launches), await startedBySmallCalls()])
  await writeFile(document, text(started, kernels, shapes))
  console.log(`docs/cuda-kernels.md: ${kernels.length} kernels, ${started.length} shapes`)
}

/** Prints the kernels of which the document says something else than the last build, and fails where there are some. */
async function checkReport(): Promise<void> {
  const written = new Set((await readFile(document, 'utf8')).split('\n').map(fixedPart))
  const built = (await ownKernels()).map((kernel) => fixedPart(cells(fixedCells(kernel))))
  const wrong = built.filter((row) => !written.has(row))
  if (wrong.length === 0) return
  console.log(`docs/cuda-kernels.md is not that of these kernels (npm run report:cuda):\n${wrong.join('\n')}`)
  process.exitCode = 1
}

/** A row's first four cells. */
const fixedPart = (row: string): string => row.split(' | ').slice(0, 4).join(' | ').replace(/ \|$/, '')

await (process.argv.includes('--check') ? checkReport() : writeReport())
