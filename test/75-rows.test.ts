import { writeFileSync } from 'node:fs'
import { mkdir } from 'node:fs/promises'
import { join } from 'node:path'
import { gzipSync } from 'node:zlib'
import test from 'ava'
import fc from 'fast-check'
import { parquetWriteBuffer } from 'hyparquet-writer'
import { fileBlocks } from '../lib/data/row_blocks.js'
import { openRows, type RowBlock, type RowOptions, type RowSource } from '../lib/data/rows.js'
import type { HeddleError } from '../lib/errors.js'
import { temporaryFolder } from './support/temporary_folder.js'

function file(name: string, content: string | Uint8Array): string {
  const path = join(temporaryFolder(), name)
  writeFileSync(path, content)
  return path
}

async function blocksOf(source: RowSource, options: RowOptions = {}): Promise<RowBlock[]> {
  const blocks: RowBlock[] = []
  for await (const block of openRows(source, options)) blocks.push(block)
  return blocks
}

/** Rows as [line, value] and what was skipped as [line, reason]. */
async function read(source: RowSource, options: RowOptions = {}) {
  const blocks = await blocksOf(source, options)
  return {
    rows: blocks.flatMap(({ rows }) => rows.map(({ line, value }) => [line, value] as const)),
    skipped: blocks.flatMap(({ skipped }) => skipped.map(({ line, reason }) => [line, reason] as const)),
  }
}

const values = async (source: RowSource, options: RowOptions = {}) =>
  (await read(source, options)).rows.map(([, value]) => value)

const failure = async (source: RowSource, options: RowOptions = {}): Promise<HeddleError> => {
  try {
    await blocksOf(source, options)
  } catch (error) {
    return error as HeddleError
  }
  throw new Error('nothing was thrown')
}

const table = [
  { text: 'warp', label: 'a' },
  { text: 'weft, "in" and\nout', label: 'b' },
  { text: 'é 🧵', label: 'c' },
]
const csv = 'text,label\nwarp,a\n"weft, ""in"" and\nout",b\né 🧵,c\n'
const parquet = (rowGroupSize = 2) =>
  new Uint8Array(
    parquetWriteBuffer({
      columnData: [
        { name: 'text', data: table.map(({ text }) => text), type: 'STRING' },
        { name: 'label', data: table.map(({ label }) => label), type: 'STRING' },
        { name: 'count', data: [1n, 2n, 3n], type: 'INT64' },
      ],
      rowGroupSize,
    }),
  )

test('every format gives the same rows', async (t) => {
  const lines = table.map((row) => JSON.stringify(row)).join('\n')
  t.deepEqual(await values(file('a.jsonl', lines)), table)
  t.deepEqual(await values(file('a.ndjson', `\ufeff${lines}\n`)), table)
  t.deepEqual(await values(file('a.json', JSON.stringify(table, null, 2))), table)
  t.deepEqual(await values(file('a.json', `\n\n\ufeff${lines}`.replace('\ufeff', ''))), table)
  t.deepEqual(await values(file('a.csv', csv)), table)
  t.deepEqual(
    await values(file('a.tsv', csv.replace('text,label', 'text\tlabel').replaceAll(/,([abc]\n)/g, '\t$1'))),
    table,
  )
  t.deepEqual(await values(file('a.parquet', parquet()), { columns: ['text', 'label'] }), table)
})

test('compressed files are unpacked while they are read', async (t) => {
  const lines = table.map((row) => JSON.stringify(row)).join('\n')
  t.deepEqual(await values(file('a.jsonl.gz', gzipSync(lines))), table)
  t.deepEqual(await values(file('a.csv.gz', gzipSync(csv))), table)
})

test('integers of Parquet come as numbers, and row groups follow one another', async (t) => {
  const { rows } = await read(file('a.parquet', parquet(1)), { columns: ['count'] })
  t.deepEqual(rows, [
    [1, { count: 1 }],
    [2, { count: 2 }],
    [3, { count: 3 }],
  ])
})

test('a Parquet file without a wanted column gives all of them, so that the user can see what there is', async (t) => {
  const [first] = await values(file('a.parquet', parquet()), { columns: ['prompt'] })
  t.deepEqual(Object.keys(first!), ['text', 'label', 'count'])
})

test('JSON lines that are no object are skipped by line', async (t) => {
  const { rows, skipped } = await read(file('a.jsonl', '{"a": 1}\n\noops\n[1]\n"x"\r\n{"a": 2}'))
  t.deepEqual(rows, [
    [1, { a: 1 }],
    [6, { a: 2 }],
  ])
  t.deepEqual(
    skipped.map(([line]) => line),
    [3, 4, 5],
  )
  t.regex(skipped[0]![1], /not JSON/)
  t.is(skipped[1]![1], 'expected an object, got an array')
})

test('elements of a JSON array are skipped by the line on which they start', async (t) => {
  const { rows, skipped } = await read(file('a.json', '[\n {"a": "],{"},\n {"a": nope},\n 7, {"a":\n [2]}\n]\n'))
  t.deepEqual(rows, [
    [2, { a: '],{' }],
    [4, { a: [2] }],
  ])
  t.deepEqual(
    skipped.map(([line]) => line),
    [3, 4],
  )
})

test('an array that breaks off or goes on after its end says so, after its good rows', async (t) => {
  const cut = await read(file('a.json', '[{"a": 1},\n{"a": '))
  t.deepEqual(cut, { rows: [[1, { a: 1 }]], skipped: [[2, 'the file ends inside the array']] })
  const more = await read(file('a.json', '[{"a": 1}]\n{"a": 2}'))
  t.deepEqual(more.rows, [[1, { a: 1 }]])
  t.regex(more.skipped[0]![1], /has ended before/)
})

test('table rows with too few or too many columns are skipped by line; stray quotes stand for themselves', async (t) => {
  const { rows, skipped } = await read(file('a.csv', 'a,b\n1,2\n3\n\n4,5,6\n7,"8"9\n10,"1\n1"\n12,13\n'))
  t.deepEqual(rows, [
    [2, { a: '1', b: '2' }],
    [6, { a: '7', b: '"8"9' }],
    [7, { a: '10', b: '1\n1' }],
    [9, { a: '12', b: '13' }],
  ])
  t.deepEqual(
    skipped.map(([line]) => line),
    [3, 5],
  )
  t.is(skipped[0]![1], 'expected 2 columns as in the header, got 1')
})

test('a quote that is never closed is reported where it can be noticed', async (t) => {
  const { rows, skipped } = await read(file('a.csv', 'a,b\n1,2\n3,"4\n5,6\n'))
  t.deepEqual(rows, [[2, { a: '1', b: '2' }]])
  t.is(skipped.length, 1)
  t.regex(skipped[0]![1], /never closed/)
})

test('a header that names a column twice is refused', async (t) => {
  const error = await failure(file('a.csv', 'a,a\n1,2\n'))
  t.is(error.code, 'ERR_HEDDLE_FORMAT')
  t.regex(error.message, /a\.csv:1: .*"a" twice/)
})

test('a row above the limit is skipped by name, whatever the format', async (t) => {
  const long = 'x'.repeat(300_000)
  const rows = [{ text: 'a' }, { text: long }, { text: 'b' }]
  const lines = rows.map((row) => JSON.stringify(row)).join('\n')
  const column = { name: 'text', data: rows.map(({ text }) => text), type: 'STRING' } as const
  const files = [
    file('a.jsonl', lines),
    file('a.json', `[${lines.replaceAll('\n', ',\n')}]`),
    file('a.parquet', new Uint8Array(parquetWriteBuffer({ columnData: [column] }))),
  ]
  for (const path of files) {
    const { rows: good, skipped } = await read(path, { maxRowBytes: 1000 })
    t.deepEqual(
      good.map(([, value]) => value),
      [{ text: 'a' }, { text: 'b' }],
    )
    t.deepEqual(skipped, [[2, 'a row of more than 1000 bytes']])
  }
  const { rows: good, skipped } = await read(file('a.csv', `text\na\n${long}\nb\n`), { maxRowBytes: 1000 })
  t.deepEqual(good, [
    [2, { text: 'a' }],
    [4, { text: 'b' }],
  ])
  t.deepEqual(skipped, [[3, 'a row of more than 1000 bytes']])
})

test('rows may be longer than the pieces that a file is read in', async (t) => {
  const rows = [{ text: 'é'.repeat(200_000) }, { text: 'b' }]
  t.deepEqual(await values(file('a.jsonl', rows.map((row) => JSON.stringify(row)).join('\n'))), rows)
  t.deepEqual(await values(file('a.json', JSON.stringify(rows))), rows)
})

test('a long text comes in pieces that end between words and join to the whole', async (t) => {
  const text = 'It was the best of times,\n it was the worst of times. 🧵 '.repeat(10_000)
  const blocks = await blocksOf(file('a.txt', text))
  const rows = blocks.flatMap(({ rows }) => rows)
  t.true(rows.length > 2)
  t.is(rows.map(({ value }) => value.text).join(''), text)
  t.true(rows.slice(0, -1).every(({ goesOn, value }) => goesOn && /\p{L}$/u.test(String(value.text))))
  t.falsy(rows.at(-1)!.goesOn)
  t.is(rows[1]!.line, String(rows[0]!.value.text).split('\n').length)
})

test('a file that was cut short in compression gives what it has and says so', async (t) => {
  const lines = Array.from({ length: 50_000 }, (_, i) => JSON.stringify({ i, noise: (i * 7919) % 1013 })).join('\n')
  const packed = gzipSync(lines)
  const { rows, skipped } = await read(file('a.jsonl.gz', packed.subarray(0, packed.length / 2)))
  t.true(rows.length > 1000 && rows.length < 50_000)
  t.is(skipped.length, 1)
  t.regex(skipped[0]![1], /compressed file is damaged/)
})

test('a damaged Parquet file is ERR_HEDDLE_FORMAT, wherever it is damaged', async (t) => {
  const whole = parquet()
  const damages = [
    whole.subarray(0, 40),
    whole.subarray(20),
    whole.with(30, 0xff).fill(0xff, 8, 60),
    new Uint8Array(64),
  ]
  for (const bytes of damages) t.is((await failure(file('a.parquet', bytes))).code, 'ERR_HEDDLE_FORMAT')
})

test('a folder gives its data files by name, a glob those that match, a list those in it', async (t) => {
  const folder = temporaryFolder()
  await mkdir(join(folder, 'more'))
  for (const [name, text] of Object.entries({ 'b.jsonl': '{"b":1}', 'a.csv': 'a\n1', 'more/c.json': '[{"c":1}]' }))
    writeFileSync(join(folder, name), text)
  for (const name of ['README.md', 'notes.pdf', '.hidden.jsonl']) writeFileSync(join(folder, name), 'no data')
  t.deepEqual(await values(folder), [{ a: '1' }, { b: 1 }, { c: 1 }])
  t.deepEqual(await values(join(folder, '**/*.json*')), [{ b: 1 }, { c: 1 }])
  t.deepEqual(await values([join(folder, 'more/c.json'), join(folder, 'a.csv')]), [{ c: 1 }, { a: '1' }])
})

test('rows can be given in code, and are numbered', async (t) => {
  async function* generate() {
    for (const i of [1, 2]) yield { i }
  }
  t.deepEqual((await read(generate())).rows, [
    [1, { i: 1 }],
    [2, { i: 2 }],
  ])
  const mixed = [{ i: 1 }, 'no row'] as unknown as Record<string, unknown>[]
  t.deepEqual((await read(mixed)).skipped, [[2, 'expected an object, got "no row"']])
})

test('a file of which no row can be used is an error that names the first problems', async (t) => {
  const error = await failure(file('bad.jsonl', 'a\nb\nc\nd\n'))
  t.is(error.code, 'ERR_HEDDLE_FORMAT')
  t.regex(error.message, /bad\.jsonl:1: .*4 unusable ones \(line 1: not JSON.*line 2: .*line 3: .*…\)/)
})

test('what cannot be read is an error with the place', async (t) => {
  t.is((await failure('/nowhere/a.jsonl')).code, 'ERR_HEDDLE_IO')
  t.is((await failure(temporaryFolder())).code, 'ERR_HEDDLE_IO')
  t.is((await failure(file('a.jsonl', ''))).code, 'ERR_HEDDLE_FORMAT')
  const error = await failure(file('a.xlsx', 'x'))
  t.is(error.code, 'ERR_HEDDLE_ARGUMENT')
  t.regex(error.message, /\.jsonl.*\.parquet.*got \.xlsx/)
  t.regex((await failure(file('b.jsonl', '{}'), { maxRow: 1 } as RowOptions)).message, /Did you mean "maxRow/)
})

test('maxRows ends the reading', async (t) => {
  const path = file('a.jsonl', Array.from({ length: 5000 }, (_, i) => `{"i":${i}}`).join('\n'))
  t.is((await values(path, { maxRows: 1500 })).length, 1500)
  t.is((await values([path, path], { maxRows: 6000 })).length, 6000)
})

test('blocks are bounded and progress runs from 0 to 1', async (t) => {
  const path = file('a.jsonl', Array.from({ length: 5000 }, (_, i) => `{"i":${i},"t":"${'x'.repeat(100)}"}`).join('\n'))
  const blocks = await blocksOf(path)
  t.true(blocks.every(({ rows }) => rows.length <= 1024))
  const progress = blocks.map((block) => block.progress)
  t.deepEqual(progress, progress.toSorted())
  t.is(progress.at(-1), 1)
})

test('a signal stops the reading with ERR_HEDDLE_ABORTED', async (t) => {
  const controller = new AbortController()
  const path = file('a.jsonl', Array.from({ length: 5000 }, (_, i) => `{"i":${i}}`).join('\n'))
  const reading = (async () => {
    for await (const _ of openRows(path, { signal: controller.signal })) controller.abort()
  })()
  const error = await t.throwsAsync(reading)
  t.is((error as HeddleError).code, 'ERR_HEDDLE_ABORTED')
})

test('no file, however damaged, does worse than a HeddleError', async (t) => {
  const endings = ['.jsonl', '.json', '.csv', '.tsv', '.txt', '.parquet', '.jsonl.gz']
  const whole = [JSON.stringify(table), csv, table.map((row) => JSON.stringify(row)).join('\n')]
  const content = fc.oneof(
    fc.uint8Array({ maxLength: 200 }),
    fc.constantFrom(...whole.map((text) => new TextEncoder().encode(text)), parquet(), gzipSync(whole[2]!)),
  )
  const property = fc.asyncProperty(
    fc.constantFrom(...endings),
    content,
    fc.nat(),
    fc.nat(255),
    async (ending, given, at, byte) => {
      const bytes = Uint8Array.from(given)
      if (bytes.length > 0) bytes[at % bytes.length] = byte
      try {
        for await (const _ of fileBlocks([file(`a${ending}`, bytes)], { maxRowBytes: 1000 }));
      } catch (error) {
        return (error as HeddleError).code === 'ERR_HEDDLE_FORMAT'
      }
      return true
    },
  )
  await t.notThrowsAsync(fc.assert(property, { seed: 1, numRuns: 60 }))
})
