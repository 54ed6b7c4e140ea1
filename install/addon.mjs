// Builds the addon from source where npm has not installed one for this platform: npm runs it as the install script (if
// the user lets it), `npx heddle build` at any time. An installation never fails here: where a build is not possible it
// prints what to do, and loading Heddle says the same again.
import { createRequire } from 'node:module'
import { buildAddon, installSystemPackages, Refusal, stage } from './build.mjs'

const duringInstall = process.env.npm_lifecycle_event === 'install'

if (!duringInstall || !hasPlatformPackage()) {
  try {
    await installSystemPackages({ mayInstall: false })
    await stage('Native core', buildAddon)
  } catch (error) {
    const reason = error instanceof Refusal ? error.message : error.stack
    process.stderr.write(`${reason}\n\nHeddle cannot run before its native core is built:\n\n  npx heddle build\n`)
    process.exitCode = duringInstall ? 0 : 1
  }
}

function hasPlatformPackage() {
  try {
    createRequire(import.meta.url).resolve(`heddle-${process.platform}-${process.arch}`)
    return true
  } catch {
    return false
  }
}
