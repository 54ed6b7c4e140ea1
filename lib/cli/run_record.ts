/** What a run was asked for, in its output folder: `--resume` goes on without being told again. */
import { stat } from 'node:fs/promises'
import { join } from 'node:path'
import { writeJsonAtomic } from '../formats/atomic_file.js'
import { type PartialTrainConfig, readTrainConfig } from './train_config.js'

const recordOf = (outputFolder: string): string => join(outputFolder, 'run.json')

/** Writes a config, with what data and model decided filled in. @throws ERR_HEDDLE_IO */
export const writeRunRecord = (outputFolder: string, config: PartialTrainConfig): Promise<void> =>
  writeJsonAtomic(recordOf(outputFolder), config)

/** The config of the folder's run, if it has one. @throws ERR_HEDDLE_FORMAT when it is damaged */
export async function readRunRecord(outputFolder: string): Promise<PartialTrainConfig | undefined> {
  const path = recordOf(outputFolder)
  const isThere = await stat(path).then(
    () => true,
    () => false,
  )
  return isThere ? readTrainConfig(path) : undefined
}
