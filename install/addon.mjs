// Runs when someone installs the package: takes the prebuilt addon of this platform, or builds one. An installation
// never fails here: where neither works it prints what to do, and loading Heddle says the same again.
import { cpSync, existsSync } from 'node:fs'
import { join } from 'node:path'
import { addonFile, buildAddon, installSystemPackages, Refusal, root, stage } from './build.mjs'

const prebuilt = join(root, 'prebuilds', `${process.platform}-${process.arch}`, 'heddle.node')

if (existsSync(prebuilt)) {
  cpSync(prebuilt, addonFile)
} else {
  try {
    await installSystemPackages({ mayInstall: false })
    await stage('Native core', buildAddon)
  } catch (error) {
    const reason = error instanceof Refusal ? error.message : error.stack
    process.stderr.write(
      `${reason}\n\nHeddle cannot run before its native core is built:\n\n  node ${process.argv[1]}\n`,
    )
    process.exitCode = process.env.npm_lifecycle_event === 'install' ? 0 : 1
  }
}
