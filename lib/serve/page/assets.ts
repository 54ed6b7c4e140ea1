/**
 * The files that the page is made of, read once: its own scripts and styles, and those libraries that the browser loads as
 * they are in node_modules. Nothing else can be asked for.
 */
import { createHash } from 'node:crypto'
import { readdir, readFile } from 'node:fs/promises'
import { createRequire } from 'node:module'
import { dirname, extname, join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { HeddleError } from '../../errors.js'

/** A file, ready to be sent. */
export interface Asset {
  readonly name: string
  readonly type: string
  readonly body: Buffer
}

/** All files of a page. */
export interface Assets {
  readonly files: ReadonlyMap<string, Asset>
  /** Another one whenever any file is: addresses with it never change their content. */
  readonly version: string
}

/** What scripts import by name, and the file's name for the browser. */
export const libraries = {
  preact: 'preact.mjs',
  'preact/hooks': 'preact-hooks.mjs',
  htm: 'htm.mjs',
  uplot: 'uplot.mjs',
} as const

const types: Readonly<Record<string, string>> = {
  '.js': 'text/javascript; charset=utf-8',
  '.mjs': 'text/javascript; charset=utf-8',
  '.css': 'text/css; charset=utf-8',
  '.svg': 'image/svg+xml; charset=utf-8',
}

const scripts = fileURLToPath(new URL('./client', import.meta.url))
const styles = fileURLToPath(new URL('../../../../lib/serve/page/static', import.meta.url))

/** @throws ERR_HEDDLE_IO when one is missing */
export async function readAssets(): Promise<Assets> {
  const paths = await pathsOf()
  const files = await Promise.all([...paths].map(([name, path]) => readAsset(name, path)))
  const hash = createHash('sha256')
  for (const { name, body } of files) hash.update(`\0${name}\0${body.length}\0`).update(body)
  return { files: new Map(files.map((file) => [file.name, file])), version: hash.digest('hex').slice(0, 16) }
}

async function pathsOf(): Promise<Map<string, string>> {
  const { resolve } = createRequire(import.meta.url)
  const own = (await namesIn(scripts)).filter((name) => name.endsWith('.js'))
  return new Map([
    ...own.map((name) => [name, join(scripts, name)] as const),
    ...['page.css', 'icon.svg'].map((name) => [name, join(styles, name)] as const),
    [libraries.preact, resolve('preact')],
    [libraries['preact/hooks'], resolve('preact/hooks')],
    // Node's `require` is led to another form of this one.
    [libraries.htm, join(dirname(resolve('htm')), 'htm.mjs')],
    [libraries.uplot, resolve('uplot/dist/uPlot.esm.js')],
    ['uplot.css', resolve('uplot/dist/uPlot.min.css')],
  ])
}

const namesIn = async (folder: string): Promise<string[]> =>
  (await readdir(folder).catch((cause: unknown) => Promise.reject(missing(folder, cause)))).sort()

async function readAsset(name: string, path: string): Promise<Asset> {
  const body = await readFile(path).catch((cause: unknown) => Promise.reject(missing(path, cause)))
  return { name, type: types[extname(name)]!, body }
}

const missing = (place: string, cause: unknown): HeddleError =>
  new HeddleError('ERR_HEDDLE_IO', {
    place,
    expected: 'a part of the page',
    got: (cause as NodeJS.ErrnoException).code ?? String(cause),
    hint: 'In a checkout, `npm run build` makes it',
    cause,
  })
