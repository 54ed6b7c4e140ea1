// What users install: `heddle` and the package with its addon, put into an empty project on a machine without compiler,
// with install scripts switched off.
import { execFile } from 'node:child_process'
import { mkdir, mkdtemp, readdir, realpath, rm, symlink, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { basename, join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { promisify } from 'node:util'
import test, { type ExecutionContext } from 'ava'
import { fetchNode } from './models/node.js'

const run = promisify(execFile)
const repository = fileURLToPath(new URL('../..', import.meta.url))

interface Project {
  readonly folder: string
  /** Where nothing but Node.js is. */
  readonly path: string
}

let workspace: string
let project: Project
/** The same without the addon's package. */
let bare: Project

test.before(async () => {
  workspace = await realpath(await mkdtemp(join(tmpdir(), 'heddle-packages-')))
  await run(process.execPath, [join(repository, 'install/package.mjs'), workspace])
  const tarballs = (await readdir(workspace)).map((name) => join(workspace, name))
  project = await install('project', tarballs)
  bare = await install('bare', [tarballs.find((name) => !/linux|darwin/.test(basename(name)))!, '--omit=optional'])
})

test.after.always(() => rm(workspace, { recursive: true, force: true }))

async function install(name: string, packages: readonly string[]): Promise<Project> {
  const folder = join(workspace, name)
  const path = join(folder, 'only-node')
  await mkdir(path, { recursive: true })
  await symlink(process.execPath, join(path, 'node'))
  await writeFile(join(folder, 'package.json'), JSON.stringify({ name, private: true, type: 'module' }))
  const options = ['--ignore-scripts', '--no-audit', '--no-fund', '--prefer-offline']
  await run('npm', ['install', ...options, ...packages], { cwd: folder })
  return { folder, path }
}

function heddle({ folder, path }: Project, args: readonly string[], node = process.execPath) {
  const script = join(folder, 'node_modules/heddle/dist/lib/cli/heddle.js')
  return run(node, [script, ...args], { cwd: folder, env: { PATH: path, HEDDLE_NUM_THREADS: '2', HOME: folder } })
}

async function quickstart(t: ExecutionContext, node: string): Promise<void> {
  const out = join(project.folder, `quickstart-${basename(await mkdtemp(join(workspace, 'out-')))}`)
  const { stdout } = await heddle(project, ['quickstart', '--steps', '3', '--json', '--out', out], node)
  const events = stdout
    .trim()
    .split('\n')
    .map((line) => JSON.parse(line) as { readonly event: string })
  t.is(events.at(-1)?.event, 'done')
  t.true((await readdir(out)).includes('adapter_model.safetensors'))
}

test(`the quickstart runs without compiler or install script on this Node.js, ${process.version}`, (t) =>
  quickstart(t, process.execPath))

for (const version of ['22.23.3', '24.21.0'] as const)
  test(`the quickstart runs without compiler or install script on Node.js ${version}`, async (t) =>
    quickstart(t, await fetchNode(version)))

test('every library that the addon loads comes from its package, but for what Node.js itself is linked to', async (t) => {
  const script = `
    import { zeros } from 'heddle'
    import { readFileSync } from 'node:fs'
    zeros([1])
    const files = readFileSync('/proc/self/maps', 'utf8').split('\\n').map((line) => line.split(/\\s+/)[5])
    console.log(JSON.stringify([...new Set(files)].filter((file) => file?.includes('.so') || file?.endsWith('.node'))))`
  const options = { cwd: project.folder, env: { PATH: project.path } }
  const { stdout } = await run(process.execPath, ['--input-type=module', '--eval', script], options)
  const foreign = (JSON.parse(stdout) as string[]).filter((file) => !file.startsWith(project.folder))
  const ofTheSystem = /\/(ld-linux-x86-64|lib(c|m|dl|rt|pthread|stdc\+\+|gcc_s))\.so/
  t.deepEqual(
    foreign.filter((file) => !ofTheSystem.test(file)),
    [],
  )
  t.true(stdout.includes('heddle.node') && stdout.includes('libdnnl'))
})

test("the server's page is in the package, with everything that it loads", async (t) => {
  const script = `
    import { startServer } from 'heddle/serve'
    const model = 'node_modules/heddle/models/heddle-tiny'
    const server = await startServer({ model, port: 0, logger: false })
    const page = await (await fetch(server.url)).text()
    const paths = [...page.matchAll(/"\\.\\/(page\\/[^"]+)"/g)].map(([, path]) => path)
    const answers = await Promise.all(paths.map((path) => fetch(server.url + '/' + path)))
    await server.close()
    console.log(JSON.stringify(answers.map(({ status }) => status)))`
  await writeFile(join(project.folder, 'page.js'), script)
  const options = { cwd: project.folder, env: { PATH: project.path } }
  const { stdout } = await run(process.execPath, ['page.js'], options)
  const statuses = JSON.parse(stdout) as number[]
  t.true(statuses.length > 10 && statuses.every((status) => status === 200))
})

const app = `
  import { type Limits, startServer } from 'heddle/serve'

  const limits: Partial<Limits> = { newTokens: 10 }
  const server = await startServer({ model: 'node_modules/heddle/models/heddle-tiny', modelName: 'base', port: 0, logger: false, limits })
  const post = { method: 'POST', headers: { 'content-type': 'application/json' } }
  const body = JSON.stringify({ model: 'base', prompt: 'Call me', max_tokens: 4 })
  const answer = await fetch(\`\${server.url}/v1/completions\`, { ...post, body })
  const page = await fetch(server.url)
  console.log(JSON.stringify([answer.status, await answer.json(), page.status, await page.text()]))
  await server.close()`

test('heddle/serve has its types and starts a server with a page', async (t) => {
  const { folder, path } = project
  await writeFile(join(folder, 'app.ts'), app)
  const compiler = join(repository, 'node_modules/typescript/bin/tsc')
  const flags = ['--strict', '--skipLibCheck', '--module', 'nodenext', '--target', 'es2022']
  const libraries = ['--lib', 'es2023,dom,esnext.disposable']
  await run(process.execPath, [compiler, ...flags, ...libraries, 'app.ts'], { cwd: folder })
  const { stdout } = await run(process.execPath, ['app.js'], { cwd: folder, env: { PATH: path, HOME: folder } })
  const [status, answer, pageStatus, page] = JSON.parse(stdout) as [number, object, number, string]
  t.deepEqual([status, pageStatus], [200, 200])
  t.like(answer, { object: 'text_completion', usage: { completion_tokens: 4 } })
  t.regex(page, /<!doctype html>/i)
})

test('without an addon, the first call says which line to type', async (t) => {
  const error = await t.throwsAsync<Error & { stderr: string }>(heddle(bare, ['quickstart', '--steps', '1']))
  t.regex(error?.stderr ?? '', /ERR_HEDDLE_DEVICE|npx heddle build/)
  t.regex(error?.stderr ?? '', /npx heddle build/)
})

test('without an addon, help still answers', async (t) => {
  const { stdout } = await heddle(bare, ['--help'])
  t.regex(stdout, /quickstart/)
})

test('heddle build says what is missing on a machine without compiler', async (t) => {
  const error = await t.throwsAsync<Error & { stderr: string; code: number }>(heddle(bare, ['build']))
  t.is(error?.code, 1)
  t.regex(error?.stderr ?? '', /Missing to build Heddle's native core: .*a C\+\+20 compiler/)
})

test('without an addon, heddle doctor fails and says what to install and which line to type', async (t) => {
  const error = await t.throwsAsync<Error & { stderr: string; stdout: string; code: number }>(heddle(bare, ['doctor']))
  t.is(error?.code, 1)
  t.regex(error?.stdout ?? '', /✗ native core/)
  t.regex(error?.stderr ?? '', /npx heddle build/)
})
