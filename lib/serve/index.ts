/** Serve a model over HTTP, in the form of OpenAI's API: `import { startServer } from 'heddle/serve'`. */
export type { ServerContext, ServerFolders } from './context.js'
export type { UploadLimits } from './jobs/uploads.js'
export { KeyRing } from './keys.js'
export type { Limits } from './limits.js'
export type { NamedEncoder } from './openai/embedder.js'
export { heddle, type ServeOptions } from './plugin.js'
export { type RunningServer, type ServerOptions, startServer } from './server.js'
