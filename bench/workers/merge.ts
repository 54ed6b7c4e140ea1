/** Heddle's side of `merge`: loads a folder and an adapter, then merges. */
import { createInterface } from 'node:readline'
import { loadModel } from '../../lib/index.js'

const [folder, adapterFolder] = process.argv.slice(2) as [string, string]
console.log(JSON.stringify({ ready: true }))
for await (const line of createInterface({ input: process.stdin })) {
  if (line === 'report') console.log(JSON.stringify({ peak_bytes: process.resourceUsage().maxRSS * 1024 }))
  else {
    const model = await loadModel(folder)
    const adapter = await model.loadAdapter(adapterFolder)
    const start = performance.now()
    await model.merge(adapter)
    const seconds = (performance.now() - start) / 1000
    await model.dispose()
    console.log(JSON.stringify({ seconds }))
  }
}
