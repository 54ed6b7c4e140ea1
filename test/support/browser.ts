/** A headless Chromium, and pages that may ask their own server only. */
import { accessSync, constants } from 'node:fs'
import { delimiter, join } from 'node:path'
import type { ExecutionContext } from 'ava'
import { type Browser, type BrowserContext, type BrowserContextOptions, chromium, type Page } from 'playwright-core'

const names = ['chromium', 'chromium-browser', 'google-chrome']

/** A process of its own for every tab costs more than what the tab does. */
const args = ['--no-sandbox', '--renderer-process-limit=1']

/** @throws when the machine has none, with the command that installs it */
export const openBrowser = (): Promise<Browser> => chromium.launch({ executablePath: findChromium(), args })

function findChromium(): string {
  const folders = (process.env.PATH ?? '').split(delimiter)
  const paths = folders.flatMap((folder) => names.map((name) => join(folder, name)))
  const found = process.env.HEDDLE_TEST_CHROMIUM ?? paths.find(isExecutable)
  if (found !== undefined) return found
  throw new Error(
    'The tests of the page need Chromium: `sudo apt-get install chromium`, or HEDDLE_TEST_CHROMIUM=<path of one>.',
  )
}

function isExecutable(path: string): boolean {
  try {
    accessSync(path, constants.X_OK)
    return true
  } catch {
    return false
  }
}

/** What a page must not do: ask others, break, or be stopped by its own policy. */
export interface WatchedPage {
  readonly page: Page
  /** Each as a sentence; to be empty in the end. */
  readonly faults: readonly string[]
}

/** How a page is opened. */
export interface PageOptions extends BrowserContextOptions {
  /** Error statuses that the test wants to be answered. */
  readonly allowed?: readonly number[]
}

/** That of all tabs which want nothing else. */
const usual = new WeakMap<Browser, Promise<BrowserContext>>()

function contextOf(browser: Browser, options: BrowserContextOptions): Promise<BrowserContext> {
  if (Object.keys(options).length > 0) return browser.newContext(options)
  const made = usual.get(browser) ?? browser.newContext()
  usual.set(browser, made)
  return made
}

/** Opens an address in a tab, closed when the test ends. */
export async function openPage(
  t: ExecutionContext,
  browser: Browser,
  url: string,
  { allowed = [], ...options }: PageOptions = {},
): Promise<WatchedPage> {
  const page = await (await contextOf(browser, options)).newPage()
  t.teardown(() => page.close())
  await page.setViewportSize({ width: 1280, height: 900 })
  page.setDefaultTimeout(30_000)
  const faults: string[] = []
  const { origin } = new URL(url)
  page.on('request', (request) => {
    if (new URL(request.url()).origin !== origin) faults.push(`asked ${request.url()}`)
  })
  // Includes what a policy forbids, and answers with an error status.
  page.on('console', (message) => {
    const isAllowed = allowed.some((status) => message.text().includes(`status of ${status}`))
    if (message.type() === 'error' && !isAllowed) faults.push(`said ${message.text()}`)
  })
  page.on('pageerror', (error) => faults.push(`threw ${error.stack ?? error.message}`))
  await page.goto(url)
  return { page, faults }
}
