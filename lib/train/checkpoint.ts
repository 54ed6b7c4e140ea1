/**
 * Checkpoints of a training run: `<output>/checkpoints/step-00000042/` with parameters, optimizer state and the
 * trainer's own state. A checkpoint is written beside its place, synced and renamed: it is whole or not there.
 */
import { mkdir, readdir, readFile, rename, rm } from 'node:fs/promises'
import { join } from 'node:path'
import { z } from 'zod'
import { HeddleError } from '../errors.js'
import { syncToDisk, writeJsonAtomic } from '../formats/atomic_file.js'
import { openSafetensors } from '../formats/safetensors.js'
import { computed } from '../graph/computed.js'
import { assign } from '../graph/sym.js'
import { addon } from '../native.js'
import { sameShape, shapeText } from '../tensor/dtype.js'
import { Tensor } from '../tensor/tensor.js'

const trainerSchema = z.object({
  format: z.literal(1),
  /** Steps completed. Everything else that a run depends on is a function of it and of the settings. */
  step: z.int().min(0),
  total: z.int().min(1),
  /** Ended early. */
  stopped: z.boolean().optional(),
  /** The step's evaluation was cut short. */
  evaluationDue: z.boolean().optional(),
  /** What the evaluations so far were like. */
  memory: z
    .object({
      best: z.object({ step: z.int().min(1), value: z.number() }).optional(),
      stale: z.int().min(0),
    })
    .optional(),
  /** What must be the same for the run to go on bit for bit. */
  settings: z.record(z.string(), z.unknown()),
})

export type TrainerState = z.output<typeof trainerSchema>

/** Live tensors by stable names: written from, or restored into. */
export interface CheckpointTensors {
  readonly parameters: Readonly<Record<string, Tensor>>
  readonly optimizer: Readonly<Record<string, Tensor>>
}

/** Which checkpoints stay. */
export interface Retention {
  /** So many of the newest: with two, the one before is there should the disk lose the newest. */
  readonly newest: number
  /** The step of one that stays in any case. */
  readonly best?: number | undefined
}

/** Where the checkpoints of a run are. */
export const checkpointFolder = (outputFolder: string): string => join(outputFolder, 'checkpoints')

const nameOf = (step: number): string => `step-${String(step).padStart(8, '0')}`
const namePattern = /^step-(\d{8,})$/
const parts = ['parameters', 'optimizer'] as const

/** Writes a checkpoint and removes those that need not stay. Gives its folder. @throws ERR_HEDDLE_IO */
export async function writeCheckpoint(
  outputFolder: string,
  tensors: CheckpointTensors,
  trainer: TrainerState,
  retention: Retention,
): Promise<string> {
  const folder = checkpointFolder(outputFolder)
  const target = join(folder, nameOf(trainer.step))
  const beside = join(folder, `.step-${trainer.step}.${process.pid}.tmp`)
  try {
    await mkdir(beside, { recursive: true })
    for (const part of parts) {
      const entries = Object.entries(tensors[part]).map(([name, { native }]) => ({ name, tensor: native }))
      await addon.writeSafetensors(join(beside, `${part}.safetensors`), entries, {})
    }
    await writeJsonAtomic(join(beside, 'trainer.json'), trainer)
    await rename(beside, target)
    await syncToDisk(folder)
  } catch (cause) {
    await rm(beside, { recursive: true, force: true })
    if (cause instanceof HeddleError) throw cause
    throw ioError(target, 'a folder that can be written', cause)
  }
  await removeOld(folder, retention)
  return target
}

/** Folder of the newest checkpoint, if there is one. */
export async function latestCheckpoint(outputFolder: string): Promise<string | undefined> {
  const folder = checkpointFolder(outputFolder)
  const newest = (await checkpointNames(folder)).at(-1)
  return newest === undefined ? undefined : join(folder, newest)
}

/** The checkpoint of a step, in the first of these folders that has it. @throws ERR_HEDDLE_IO when none has */
export async function findCheckpoint(folders: readonly string[], step: number): Promise<string> {
  for (const folder of folders)
    if ((await checkpointNames(folder)).includes(nameOf(step))) return join(folder, nameOf(step))
  const place = folders[0] ?? 'checkpoints'
  throw new HeddleError('ERR_HEDDLE_IO', {
    place,
    expected: `the checkpoint of step ${step}, the best one`,
    got: 'none',
  })
}

/** Removes all checkpoints of an output folder. */
export const removeCheckpoints = (outputFolder: string): Promise<void> =>
  rm(checkpointFolder(outputFolder), { recursive: true, force: true })

/** @throws ERR_HEDDLE_IO when it cannot be read, ERR_HEDDLE_FORMAT when it is not what {@link writeCheckpoint} wrote */
export async function readTrainerState(checkpoint: string): Promise<TrainerState> {
  const path = join(checkpoint, 'trainer.json')
  const text = await readFile(path, 'utf8').catch((cause: unknown) => {
    throw ioError(checkpoint, 'a checkpoint folder of Heddle', cause)
  })
  let value: unknown
  try {
    value = JSON.parse(text)
  } catch (cause) {
    throw formatError(path, 'JSON', messageOf(cause))
  }
  const parsed = trainerSchema.safeParse(value)
  if (parsed.success) return parsed.data
  const issue = parsed.error.issues[0]!
  throw formatError(`${path}: ${issue.path.join('.')}`, "a trainer's state of format 1", issue.message)
}

/** Copies a checkpoint's tensors into live ones. @throws ERR_HEDDLE_IO, ERR_HEDDLE_FORMAT, leaving them untouched */
export async function restoreCheckpoint(checkpoint: string, tensors: CheckpointTensors): Promise<void> {
  const stored: Tensor[] = []
  const archives = await Promise.all(parts.map((part) => openSafetensors(join(checkpoint, `${part}.safetensors`))))
  const targets: Tensor[] = []
  try {
    for (const [i, part] of parts.entries())
      for (const [name, target] of Object.entries(tensors[part])) {
        const found = archives[i]!.tensors.get(name)
        if (!found || !sameShape(found.shape, target.shape))
          throw formatError(
            `${archives[i]!.path}: ${name}`,
            `a tensor ${shapeText(target.shape)}`,
            found ? shapeText(found.shape) : 'none',
          )
        targets.push(target)
        stored.push(new Tensor(found.load(target.dtype)))
      }
    await computed((...values) => {
      for (const [i, target] of targets.entries()) assign(target, values[i]!)
      return []
    }, stored)
  } finally {
    for (const each of stored) each.dispose()
    for (const archive of archives) archive.close()
  }
}

/** Names of whole checkpoints, oldest first. */
async function checkpointNames(folder: string): Promise<string[]> {
  const names = await readdir(folder).catch(() => [])
  const stepOf = (name: string): number => Number(namePattern.exec(name)![1])
  return names.filter((name) => namePattern.test(name)).sort((a, b) => stepOf(a) - stepOf(b))
}

async function removeOld(folder: string, { newest, best }: Retention): Promise<void> {
  const names = await checkpointNames(folder)
  for (const name of names.slice(0, -newest)) {
    if (best !== undefined && name === nameOf(best)) continue
    // Renamed first, so that one which is half removed is never taken for whole.
    const doomed = join(folder, `.${name}.old`)
    await rename(join(folder, name), doomed)
    await rm(doomed, { recursive: true, force: true })
  }
  // What a process that was killed while writing has left.
  for (const name of await readdir(folder))
    if (name.endsWith('.tmp') || name.endsWith('.old')) await rm(join(folder, name), { recursive: true, force: true })
}

const messageOf = (cause: unknown): string => (cause instanceof Error ? cause.message : String(cause))

const ioError = (place: string, expected: string, cause: unknown): HeddleError =>
  new HeddleError('ERR_HEDDLE_IO', { place, expected, got: messageOf(cause), cause })

const formatError = (place: string, expected: string, got: string): HeddleError =>
  new HeddleError('ERR_HEDDLE_FORMAT', { place, expected, got })
