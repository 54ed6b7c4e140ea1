import { existsSync, lstatSync, readdirSync, readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import test, { type ExecutionContext } from 'ava'
import { HeddleError, type HeddleErrorCode } from '../lib/errors.js'
import { fetchFromHub, type HubProgress } from '../lib/formats/hub.js'
import { commit, files, id, sha256, startHub, weights } from './support/fake_hub.js'
import { temporaryFolder } from './support/temporary_folder.js'

async function failure(t: ExecutionContext, work: Promise<unknown>, code: HeddleErrorCode): Promise<HeddleError> {
  const error = (await t.throwsAsync(work, { instanceOf: HeddleError })) as HeddleError
  t.is(error.code, code, error.message)
  return error
}

test('a model comes as a snapshot folder in the cache of Hugging Face', async (t) => {
  const hub = await startHub(t)
  const cacheFolder = temporaryFolder()
  const snapshot = await fetchFromHub(id, { endpoint: hub.endpoint, cacheFolder })
  t.is(snapshot, join(cacheFolder, 'models--loom--tiny', 'snapshots', commit))
  t.deepEqual(readdirSync(snapshot).sort(), ['config.json', 'model.safetensors', 'tokenizer.json'])
  t.true(lstatSync(join(snapshot, 'model.safetensors')).isSymbolicLink())
  t.true(readFileSync(join(snapshot, 'model.safetensors')).equals(weights))
  t.is(readFileSync(join(cacheFolder, 'models--loom--tiny', 'refs', 'main'), 'utf8'), commit)
})

test('what the cache has is not fetched again', async (t) => {
  const hub = await startHub(t)
  const options = { endpoint: hub.endpoint, cacheFolder: temporaryFolder() }
  await fetchFromHub(id, options)
  hub.requests.length = 0
  await fetchFromHub(id, options)
  t.deepEqual(
    hub.requests.filter(({ path }) => path.includes('/resolve/')),
    [],
  )
})

test('a download that breaks off goes on where it stopped', async (t) => {
  const hub = await startHub(t)
  const options = { endpoint: hub.endpoint, cacheFolder: temporaryFolder() }
  hub.breakAfter = 100_000
  await failure(t, fetchFromHub(id, options), 'ERR_HEDDLE_NETWORK')
  hub.breakAfter = undefined
  hub.requests.length = 0
  const snapshot = await fetchFromHub(id, options)
  t.true(readFileSync(join(snapshot, 'model.safetensors')).equals(weights))
  const starts = hub.requests.map(({ range }) => Number(/^bytes=(\d+)-/.exec(range ?? '')?.[1] ?? 0))
  t.true(Math.max(...starts) > 0, 'the second try asked for the rest only')
})

test('a partial file that is not what the hub has is dropped', async (t) => {
  const hub = await startHub(t)
  const options = { endpoint: hub.endpoint, cacheFolder: temporaryFolder() }
  await fetchFromHub(id, options)
  const blob = join(options.cacheFolder, 'models--loom--tiny', 'blobs', sha256(weights))
  writeFileSync(blob, '')
  writeFileSync(`${blob}.incomplete`, 'something else')
  const error = await failure(t, fetchFromHub(id, options), 'ERR_HEDDLE_NETWORK')
  t.regex(error.message, /damaged/)
  t.false(existsSync(`${blob}.incomplete`))
  await t.notThrowsAsync(fetchFromHub(id, options))
})

test('progress counts the bytes of all files', async (t) => {
  const hub = await startHub(t)
  const seen: HubProgress[] = []
  const onProgress = (progress: HubProgress) => seen.push(progress)
  await fetchFromHub(id, { endpoint: hub.endpoint, cacheFolder: temporaryFolder(), onProgress })
  const total = files['config.json']!.length + files['tokenizer.json']!.length + weights.length
  t.is(seen.at(-1)!.loaded, total)
  t.true(seen.every((progress) => progress.total === total && progress.loaded <= total))
})

test('a token is sent, and without it the refusal says what to do', async (t) => {
  const hub = await startHub(t)
  hub.token = 'hf_secret'
  const options = { endpoint: hub.endpoint, cacheFolder: temporaryFolder() }
  const error = await failure(t, fetchFromHub(id, options), 'ERR_HEDDLE_NETWORK')
  t.regex(error.message, /status 401.*HF_TOKEN/)
  await t.notThrowsAsync(fetchFromHub(id, { ...options, token: 'hf_secret' }))
})

test('an unknown model is ERR_HEDDLE_NETWORK with its name', async (t) => {
  const hub = await startHub(t)
  const work = fetchFromHub('loom/missing', { endpoint: hub.endpoint, cacheFolder: temporaryFolder() })
  const error = await failure(t, work, 'ERR_HEDDLE_NETWORK')
  t.is(error.place, 'loom/missing')
  t.regex(error.message, /status 404.*no such model/)
})

test('an unreachable hub is ERR_HEDDLE_NETWORK, or the cached snapshot', async (t) => {
  const hub = await startHub(t)
  const options = { endpoint: hub.endpoint, cacheFolder: temporaryFolder() }
  const snapshot = await fetchFromHub(id, options)
  hub.close()
  t.is(await fetchFromHub(id, options), snapshot)
  await failure(t, fetchFromHub('loom/other', options), 'ERR_HEDDLE_NETWORK')
})

test('an abort signal stops a download with ERR_HEDDLE_ABORTED', async (t) => {
  const hub = await startHub(t)
  const controller = new AbortController()
  const onProgress = () => controller.abort()
  const options = { endpoint: hub.endpoint, cacheFolder: temporaryFolder(), signal: controller.signal, onProgress }
  await failure(t, fetchFromHub(id, options), 'ERR_HEDDLE_ABORTED')
})

test('names that are no hub ids, and tokens that are none, are ERR_HEDDLE_ARGUMENT', async (t) => {
  for (const name of ['../etc/passwd', 'a/b/c', '', 'a//b', '/abs'])
    await failure(t, fetchFromHub(name, { cacheFolder: temporaryFolder() }), 'ERR_HEDDLE_ARGUMENT')
  await failure(t, fetchFromHub(id, { cacheFolder: temporaryFolder(), token: 'nonsense' }), 'ERR_HEDDLE_ARGUMENT')
})
