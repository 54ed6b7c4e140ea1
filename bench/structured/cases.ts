/** What a case of `structured` is; every other file of this folder exports some as `cases`. */
import { readdir } from 'node:fs/promises'

export interface StructuredCase {
  /** The same in the peer's file; without spaces. */
  readonly name: string
  /** Floating-point operations that the result needs at least, by the best algorithm known. */
  readonly flops: number
  /** Bytes that must be read and written at least. */
  readonly bytes: number
  /** Makes the operands and gives one run, which frees what it makes. */
  prepare(): Promise<() => Promise<void>>
}

const folder = new URL('.', import.meta.url)

/** All cases of this folder. */
export async function loadCases(): Promise<StructuredCase[]> {
  const files = (await readdir(folder)).filter((file) => file.endsWith('.js') && file !== 'cases.js').sort()
  const modules = await Promise.all(files.map((file) => import(new URL(file, folder).href)))
  return modules.flatMap(({ cases }) => cases as StructuredCase[])
}
