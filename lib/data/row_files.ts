/** Which files a data source means, and who reads them. */
import { stat } from 'node:fs/promises'
import { basename, extname, join } from 'node:path'
import { glob, isDynamicPattern } from 'tinyglobby'
import { HeddleError } from '../errors.js'
import { readCsv, readTsv } from './readers/csv.js'
import { readJson } from './readers/json.js'
import { readParquet } from './readers/parquet.js'
import type { DataFile, Reader } from './readers/reader.js'
import { readText } from './readers/text.js'

const readers: ReadonlyMap<string, Reader> = new Map([
  ['.jsonl', readJson],
  ['.ndjson', readJson],
  ['.json', readJson],
  ['.csv', readCsv],
  ['.tsv', readTsv],
  ['.parquet', readParquet],
  ['.txt', readText],
  ['.md', readText],
])

/** Endings of data files; each may be followed by `.gz`, except `.parquet`. */
export const dataFileEndings: readonly string[] = [...readers.keys()]

/** A file to read. */
export interface RowFile extends DataFile {
  readonly reader: Reader
  readonly size: number
}

/**
 * The files of a path, of all files in a folder (sorted by name, a README.md left out) or of a glob.
 * @throws ERR_HEDDLE_IO when there is none, ERR_HEDDLE_ARGUMENT when a named file is of another kind
 */
export async function rowFiles(sources: readonly string[]): Promise<RowFile[]> {
  const files: RowFile[] = []
  for (const source of sources) files.push(...(await Promise.all((await pathsOf(source)).map(describe))))
  return files
}

async function pathsOf(source: string): Promise<string[]> {
  const kind = await kindOf(source)
  if (kind === 'file') return [source]
  const found =
    kind === 'folder'
      ? await folderPaths(source)
      : isDynamicPattern(source)
        ? await glob(source, { expandDirectories: false })
        : []
  const paths = found.filter((path) => readers.has(endingOf(path))).sort()
  if (paths.length === 0)
    throw new HeddleError('ERR_HEDDLE_IO', {
      place: source,
      expected: `a data file, or a folder or glob with files ending in ${dataFileEndings.join(', ')}`,
      got: kind === 'folder' ? 'a folder without any' : 'nothing of that name',
    })
  return paths
}

async function kindOf(path: string): Promise<'file' | 'folder' | 'none'> {
  const found = await stat(path).catch(() => undefined)
  if (!found) return 'none'
  return found.isDirectory() ? 'folder' : 'file'
}

/** Hidden files are left out. */
async function folderPaths(folder: string): Promise<string[]> {
  const names = await glob('**/*', { cwd: folder })
  return names.filter((name) => basename(name).toLowerCase() !== 'readme.md').map((name) => join(folder, name))
}

async function describe(path: string): Promise<RowFile> {
  const reader = readers.get(endingOf(path))
  if (!reader)
    throw new HeddleError('ERR_HEDDLE_ARGUMENT', {
      place: path,
      expected: `a data file ending in ${dataFileEndings.join(', ')}`,
      got: extname(path) || 'a name without an ending',
    })
  return { path, reader, isCompressed: isCompressed(path), size: (await stat(path)).size }
}

const isCompressed = (path: string): boolean => extname(path).toLowerCase() === '.gz'

function endingOf(path: string): string {
  const name = basename(path).toLowerCase()
  return extname(isCompressed(path) ? name.slice(0, -'.gz'.length) : name)
}
