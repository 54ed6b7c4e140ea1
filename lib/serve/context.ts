/** What every part of the server is given. */
import type { Engine } from '../engine/engine.js'

/** See {@link ServerContext.folders}. */
export interface ServerFolders {
  /** Uploaded files, jobs and their database. */
  readonly data: string
  /** Adapters by name; jobs put theirs here. */
  readonly adapters: string
}

/** What every part of the server is given. */
export interface ServerContext {
  readonly engine: Engine
  /** The name under which the model alone is asked for. */
  readonly modelName: string
  readonly folders: ServerFolders
}
