// `heddle serve` as a process: it starts, ends as it is told, and comes back after it was killed.
import { once } from 'node:events'
import { createServer } from 'node:net'
import { join } from 'node:path'
import test from 'ava'
import { type Ended, heddle, serveProcess } from './support/serve_process.js'
import { temporaryFolder } from './support/temporary_folder.js'
import { tinyModelFolder } from './tiny_model.js'

const flags = async (): Promise<string[]> => ['--model', await tinyModelFolder(), '--data', temporaryFolder()]

/** Asks for `n` texts of a length that takes a while; the model's end of a text is ruled out. */
const stream = (url: string, { n = 1, headers = {}, prompt = 'Once' } = {}): Promise<Response> =>
  fetch(`${url}/v1/completions`, {
    method: 'POST',
    headers: { 'content-type': 'application/json', ...headers },
    body: JSON.stringify({ model: 'tiny', prompt, stream: true, n, max_tokens: 100, logit_bias: { 0: -100 } }),
  })

interface Reading {
  /** The first bytes are there. */
  readonly first: Promise<void>
  readonly text: Promise<string>
}

function reading({ body }: Response): Reading {
  let begin = (): void => {}
  const first = new Promise<void>((resolve) => {
    begin = resolve
  })
  const text = (async () => {
    let all = ''
    for await (const chunk of body!.pipeThrough(new TextDecoderStream())) {
      all += chunk
      begin()
    }
    return all
  })()
  text.catch(() => {})
  return { first, text }
}

const events = ({ stdout }: Ended): Record<string, unknown>[] =>
  stdout
    .trim()
    .split('\n')
    .map((line) => JSON.parse(line) as Record<string, unknown>)

test.serial('it says where it listens and what to do next, and is ready', async (t) => {
  const { url, child, ended } = await serveProcess(...(await flags()), '--name', 'base')
  while ((await fetch(`${url}/readyz`)).status === 503);
  const { data } = (await (await fetch(`${url}/v1/models`)).json()) as { readonly data: { readonly id: string }[] }
  t.deepEqual(
    data.map(({ id }) => id),
    ['base'],
  )
  child.kill('SIGTERM')
  const { code, stderr } = await ended
  t.is(code, 0)
  t.regex(stderr, new RegExp(`Listening on ${url}\\nNo adapters yet.\\nNext: curl ${url}`))
})

test.serial('SIGTERM lets a running stream finish, takes no new one, and ends with 0', async (t) => {
  const { url, child, ended } = await serveProcess(...(await flags()))
  const { first, text } = reading(await stream(url, { n: 8 }))
  await first
  child.kill('SIGTERM')
  while (
    await fetch(`${url}/healthz`).then(
      ({ ok }) => ok,
      () => false,
    )
  );
  t.regex(await text, /data: \[DONE\]\n\n$/)
  t.is((await ended).code, 0)
})

test.serial('with no time to drain, SIGTERM cuts streams off and still ends with 0', async (t) => {
  const { url, child, ended } = await serveProcess(...(await flags()), '--drain-seconds', '0')
  const readings = await Promise.all(Array.from({ length: 30 }, async () => reading(await stream(url, { n: 16 }))))
  await readings[0]!.first
  child.kill('SIGTERM')
  t.is((await ended).code, 0)
  const texts = await Promise.all(readings.map(({ text }) => text.catch(() => 'cut off')))
  t.true(texts.some((text) => !text.includes('[DONE]')))
})

test.serial('a second signal ends it at once', async (t) => {
  const { url, child, ended } = await serveProcess(...(await flags()))
  const readings = await Promise.all(Array.from({ length: 30 }, async () => reading(await stream(url, { n: 16 }))))
  await readings[0]!.first
  child.kill('SIGINT')
  while (
    await fetch(`${url}/healthz`).then(
      ({ ok }) => ok,
      () => false,
    )
  );
  child.kill('SIGINT')
  t.is((await ended).code, 130)
})

test.serial('killed under load, it starts again on the same folder and serves', async (t) => {
  const args = await flags()
  const killed = await serveProcess(...args)
  const { first } = reading(await stream(killed.url, { n: 8 }))
  await first
  killed.child.kill('SIGKILL')
  t.is((await killed.ended).signal, 'SIGKILL')
  const again = await serveProcess(...args)
  t.regex(await (await stream(again.url)).text(), /data: \[DONE\]\n\n$/)
  again.child.kill('SIGTERM')
  t.is((await again.ended).code, 0)
})

test.serial('a key made by the command opens the server; neither key nor prompt is logged', async (t) => {
  const keys = join(temporaryFolder(), 'keys.txt')
  const made = await heddle('serve', 'keys', 'add', 'alice', '--keys', keys, '--scopes', 'infer')
  const key = made.stdout.trim()
  const { url, child, ended } = await serveProcess(...(await flags()), '--keys', keys)
  t.is((await stream(url)).status, 401)
  const headers = { authorization: `Bearer ${key}` }
  await (await stream(url, { headers, prompt: 'a private prompt' })).text()
  child.kill('SIGTERM')
  const outcome = await ended
  t.true(
    events(outcome).some((line) => line.client === 'alice' && line.status === 200 && line.route === '/v1/completions'),
  )
  t.notRegex(outcome.stdout + outcome.stderr, /private prompt/)
  t.false((outcome.stdout + outcome.stderr).includes(key))
})

test.serial('a server reads its keys again on SIGHUP', async (t) => {
  const keys = join(temporaryFolder(), 'keys.txt')
  await heddle('serve', 'keys', 'add', 'alice', '--keys', keys)
  const { url, child, ended } = await serveProcess(...(await flags()), '--keys', keys)
  const { stdout: key } = await heddle('serve', 'keys', 'add', 'bob', '--keys', keys)
  child.kill('SIGHUP')
  const ask = (): Promise<Response> => fetch(`${url}/v1/models`, { headers: { authorization: `Bearer ${key.trim()}` } })
  while ((await ask()).status === 401);
  t.is((await ask()).status, 200)
  child.kill('SIGTERM')
  t.is((await ended).code, 0)
})

test.serial('a public address without keys is wrong use', async (t) => {
  const { code, stderr } = await heddle('serve', ...(await flags()), '--host', '0.0.0.0')
  t.is(code, 2)
  t.regex(stderr, /--keys <file>, or say --insecure/)
})

test.serial('keys that cannot be read, and a port that is taken, are failures that say so', async (t) => {
  const missing = await heddle('serve', ...(await flags()), '--keys', join(temporaryFolder(), 'none'))
  t.is(missing.code, 1)
  t.regex(missing.stderr, /none: expected a file of keys.*ENOENT/)
  const other = createServer().listen(0, '127.0.0.1')
  await once(other, 'listening')
  const { port } = other.address() as { readonly port: number }
  const taken = await heddle('serve', ...(await flags()), '--port', `${port}`)
  other.close()
  t.is(taken.code, 1)
  t.regex(taken.stderr, new RegExp(`127.0.0.1:${port}: expected an address that is free.*EADDRINUSE.*--port`))
})

test.serial('--help explains itself with examples, and a mistyped flag is wrong use', async (t) => {
  const { code, stdout } = await heddle('serve', '--help')
  t.is(code, 0)
  t.regex(stdout, /Examples:\n {2}\$ heddle serve --model/)
  const typo = await heddle('serve', '--modell', 'x')
  t.is(typo.code, 2)
  t.regex(typo.stderr, /Did you mean --model\?/)
  t.is((await heddle('serve', 'keys', 'add', 'a', '--scopes', 'read')).code, 2)
})
