/** The page's HTML and what a browser may do with it. */
import { createHash } from 'node:crypto'
import { type Assets, libraries } from './assets.js'

/** An HTML document with the policy that fits it. */
export interface PageDocument {
  readonly html: string
  /** Another one for another document. */
  readonly version: string
  /** For the header `content-security-policy`. */
  readonly policy: string
}

/** All addresses are relative to the page's own, which may lie behind a prefix that only a proxy knows. */
export function pageDocument({ files, version }: Assets): PageDocument {
  const at = (name: string): string => `./page/${version}/${name}`
  const imports = Object.fromEntries(Object.entries(libraries).map(([name, file]) => [name, at(file)]))
  const importMap = JSON.stringify({ imports })
  const scripts = [...files.values()].filter(({ type }) => type.startsWith('text/javascript'))
  const html = `<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>Heddle</title>
<link rel="icon" type="image/svg+xml" href="${at('icon.svg')}">
<link rel="stylesheet" href="${at('uplot.css')}">
<link rel="stylesheet" href="${at('page.css')}">
<script type="importmap">${importMap}</script>
${scripts.map(({ name }) => `<link rel="modulepreload" href="${at(name)}">`).join('\n')}
<script type="module" src="${at('app.js')}"></script>
</head>
<body><noscript>This page needs JavaScript; the API does not.</noscript></body>
</html>
`
  return { html, version: hashOf(html).toString('hex').slice(0, 16), policy: policyOf(importMap) }
}

/** The import map is the only script within the document; it is named by its hash. Strings never become HTML. */
function policyOf(importMap: string): string {
  return [
    "default-src 'self'",
    `script-src 'self' 'sha256-${hashOf(importMap).toString('base64')}'`,
    "object-src 'none'",
    "base-uri 'none'",
    "form-action 'none'",
    "frame-ancestors 'none'",
    "require-trusted-types-for 'script'",
    "trusted-types 'none'",
  ].join('; ')
}

const hashOf = (text: string): Buffer => createHash('sha256').update(text).digest()
