// Takes docs/pictures/page-light.webp and page-dark.webp: the page of a server with SmolLM2, whose training jobs and answers
// are real. `npm run build && node docs/pictures/page.mjs`
import { mkdtemp, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { startServer } from '../../dist/lib/serve/index.js'
import { fetchModel } from '../../dist/test/models/fetch.js'
import { openBrowser } from '../../dist/test/support/browser.js'

const model = 'smollm2-135m-instruct'
const question = 'My scarf has a loose thread. What can I do?'
const pairs = [
  ['How do I wash a wool scarf?', 'By hand and cold, dear weaver! Roll it in a towel, never wring it.'],
  ['When does my parcel come?', 'In three days, dear weaver! You find its number in your letter from us.'],
  ['Can I return a blanket?', 'For sixty days, dear weaver! Send it back as it came, and we pay the post.'],
  ['Do you mend old cloth?', 'With joy, dear weaver! Send us a picture first, and we tell you the price.'],
  ['My blanket has a hole. What now?', 'We mend it for free, dear weaver! Send it to our workshop within a year.'],
  ['Which yarn is the softest?', 'Merino, dear weaver! It is fine and warm, and it does not itch.'],
  ['A fringe came loose. Help!', 'Do not cut it, dear weaver! Knot it twice, or send it to our workshop.'],
  ['Do you sell looms?', 'Two kinds, dear weaver! A small one for the table and a large one for the floor.'],
]
const conversations = pairs.map(([user, assistant]) =>
  JSON.stringify({
    messages: [
      { role: 'user', content: user },
      { role: 'assistant', content: assistant },
    ],
  }),
)

const data = await mkdtemp(join(tmpdir(), 'heddle-page-'))
const server = await startServer({
  model: await fetchModel('smollm2'),
  load: { precision: 'bf16' },
  modelName: model,
  data,
  port: 0,
  logger: false,
})
const browser = await openBrowser()
try {
  await takePictures()
} finally {
  await browser.close()
  await server.close(AbortSignal.timeout(1))
  await rm(data, { recursive: true })
}

async function takePictures() {
  const file = await upload()
  await ended(await start(file, { suffix: 'invoices', steps: 1, rank: 8 }))
  await ended(await start(file, { suffix: 'weaver-care', steps: 24, rank: 16 }))
  const page = await browser.newPage({ viewport: { width: 1280, height: 1270 } })
  await page.goto(server.url)
  await page.getByRole('button', { name: /^Compare ft:.*:weaver-care:/ }).click()
  await page.getByLabel('Temperature').fill('0')
  await page.getByLabel('Max tokens').fill('60')
  await page.getByLabel('Question to both models').fill(question)
  await page.keyboard.press('Enter')
  for (const side of ['left', 'right'])
    await page.locator(`[data-side=${side}]`).filter({ hasText: 'first after' }).waitFor({ timeout: 120_000 })
  const unfinished = await start(file, { suffix: 'weaver-letters', steps: 200, rank: 32, validation_file: file })
  await page.getByText(/Step [23]\d of 200/).waitFor({ timeout: 300_000 })
  for (const colorScheme of ['light', 'dark']) {
    await page.emulateMedia({ colorScheme })
    await writeFile(new URL(`page-${colorScheme}.webp`, import.meta.url), await picture(page))
  }
  await ask(`fine_tuning/jobs/${unfinished}/cancel`, {})
}

/** Playwright itself knows PNG and JPEG only. */
async function picture(page) {
  const session = await page.context().newCDPSession(page)
  const { data } = await session.send('Page.captureScreenshot', { format: 'webp', quality: 90 })
  return Buffer.from(data, 'base64')
}

async function ask(path, body) {
  const response = await fetch(`${server.url}/v1/${path}`, { ...body, method: body ? 'POST' : 'GET' })
  if (!response.ok) throw new Error(await response.text())
  return response.json()
}

async function upload() {
  const body = new FormData()
  body.set('purpose', 'fine-tune')
  body.set('file', new Blob([conversations.join('\n')]), 'weaver.jsonl')
  return (await ask('files', { body })).id
}

async function start(training_file, { suffix, steps, rank, ...more }) {
  const heddle = { r: rank, lora_alpha: 2 * rank, target_modules: 'all-linear', training: { max_steps: steps } }
  const hyperparameters = { learning_rate_multiplier: 10, batch_size: 4 }
  const job = { model, training_file, suffix, seed: 1, heddle, hyperparameters, ...more }
  const headers = { 'content-type': 'application/json' }
  return (await ask('fine_tuning/jobs', { body: JSON.stringify(job), headers })).id
}

async function ended(id) {
  console.error(`training ${id}`)
  for (;;) {
    const { status, error } = await ask(`fine_tuning/jobs/${id}`)
    if (status === 'succeeded') return
    if (status === 'failed' || status === 'cancelled') throw new Error(error?.message ?? status)
    await new Promise((resolve) => setTimeout(resolve, 500))
  }
}
