/** Adapters as PEFT's folders: adapter_config.json and adapter_model.safetensors, read and written unchanged. */
import { mkdir, readFile } from 'node:fs/promises'
import { join } from 'node:path'
import { HeddleError } from '../errors.js'
import { writeFileAtomic } from '../formats/atomic_file.js'
import { openSafetensors } from '../formats/safetensors.js'
import type { StoredTensor } from '../formats/tensor_archive.js'
import { computed } from '../graph/computed.js'
import { abs, cast, mul, sub } from '../graph/ops/elementwise.js'
import { max } from '../graph/ops/reduce.js'
import { assign, read } from '../graph/sym.js'
import { addon } from '../native.js'
import { sameShape, shapeText } from '../tensor/dtype.js'
import { Tensor } from '../tensor/tensor.js'
import type { Adapter } from './adapter.js'
import type { Parametrization } from './parametrization.js'
import { byPeftType, parametrizations } from './registry.js'
import { selectSites } from './target_modules.js'

const sharedPrefix = 'base_model.'
/** What the names of modules begin with in the file. @internal */
export const parameterPrefix = `${sharedPrefix}model.`
/** The file of an adapter's tensors. @internal */
export const weightsFile = 'adapter_model.safetensors'

/** Options of {@link Adapter.save}. */
export interface SaveOptions {
  /**
   * For an adapter that works on weights of its own (PiSSA, OLoRA). True, the default, writes a plain LoRA of twice the
   * rank, which fits the original model anywhere; this is PEFT's `path_initial_model_for_weight_conversion`. False
   * writes the trained factors and the initialisation's name: a reader must make the same base weights again.
   */
  readonly convert?: boolean
}

/**
 * Writes an adapter so that `PeftModel.from_pretrained(base, folder)` loads it. The weights are written before the
 * config, each file whole or not at all.
 * @throws ERR_HEDDLE_IO; ERR_HEDDLE_ARGUMENT when the adapter should be converted and cannot be
 */
export async function writeAdapter(
  adapter: Adapter,
  folder: string,
  { convert = true }: SaveOptions = {},
): Promise<void> {
  await mkdir(folder, { recursive: true }).catch((cause: Error) => {
    throw new HeddleError('ERR_HEDDLE_IO', { place: folder, expected: 'a folder to write', got: cause.message, cause })
  })
  const written = await adapter.method.written?.(adapter.attachedSites, { convert })
  const entries = [...storedTensors(adapter)].map(([name, own]) => {
    const { native } = written?.tensors.get(name.replace(parameterPrefix, '')) ?? own
    return { name, tensor: native }
  })
  try {
    await addon.writeSafetensors(join(folder, weightsFile), entries, { format: 'pt' })
  } finally {
    for (const value of written?.tensors.values() ?? []) value.dispose()
  }
  const { peftType } = parametrizations.find(({ name }) => name === adapter.method.name)!
  const own = written?.config ?? adapter.method.config
  const config = {
    ...own,
    base_model_name_or_path: adapter.baseModel,
    // A module here knows how its weight is stored; PEFT is told.
    ...('fan_in_fan_out' in adapter.method.config ? { fan_in_fan_out: isTransposed(adapter) } : {}),
    inference_mode: true,
    peft_type: peftType,
    target_modules: targetNames(adapter, own),
    task_type: adapter.taskType,
  }
  const sorted = Object.fromEntries(Object.entries(config).sort(([a], [b]) => (a < b ? -1 : 1)))
  await writeFileAtomic(join(folder, 'adapter_config.json'), `${JSON.stringify(sorted, null, 2)}\n`)
}

/**
 * The method that a PEFT folder's adapter_config.json describes, and what the adapter is for.
 * @throws ERR_HEDDLE_IO when there is none, ERR_HEDDLE_FORMAT when it asks for something that is not supported
 */
export async function readMethod(
  folder: string,
): Promise<{ readonly method: Parametrization; readonly taskType: string }> {
  const path = join(folder, 'adapter_config.json')
  const config = await readConfig(path)
  const method = byPeftType(config.peft_type, path).restore(config)
  return { method, taskType: typeof config.task_type === 'string' ? config.task_type : 'CAUSAL_LM' }
}

const isTransposed = ({ attachments }: Adapter): boolean =>
  [...attachments.values()].some(({ site, plan }) => plan !== undefined && site.transposed === true)

/** What the adapter's file holds, under the names in it. */
function storedTensors(adapter: Adapter): Map<string, Tensor> {
  const { shared, attachments } = adapter
  const stored = new Map<string, Tensor>()
  for (const [name, { isTrained, isStored, tensor }] of Object.entries(shared))
    if (isTrained || isStored) stored.set(`${sharedPrefix}${name}`, tensor)
  for (const [name, tensor] of adapter.parameters())
    if (!(name in shared)) stored.set(`${parameterPrefix}${name}`, tensor)
  for (const { site, plan, buffers } of attachments.values())
    for (const [name, tensor] of Object.entries(buffers))
      if (plan?.buffers?.[name]?.isStored !== false) stored.set(`${parameterPrefix}${site.path}.${name}`, tensor)
  return stored
}

/**
 * Module names that select just the adapter's sites, as PEFT writes them; whole paths where names would select more. The
 * choice is narrowed by what the file's config says: not every method of PEFT has all of these fields.
 */
function targetNames({ model, method, sitePaths }: Adapter, config: Readonly<Record<string, unknown>>): string[] {
  const filter = Object.fromEntries(Object.entries(method.targetFilter ?? {}).filter(([name]) => name in config))
  const names = [...new Set(sitePaths.map((path) => path.split('.').at(-1)!))].sort()
  return selectSites(model.sites.values(), names, filter).length === sitePaths.length ? names : [...sitePaths].sort()
}

async function readConfig(path: string): Promise<Readonly<Record<string, unknown>>> {
  const text = await readFile(path, 'utf8').catch((cause: Error) => {
    throw new HeddleError('ERR_HEDDLE_IO', {
      place: path,
      expected: 'a PEFT adapter folder',
      got: cause.message,
      cause,
    })
  })
  try {
    const config: unknown = JSON.parse(text)
    if (typeof config === 'object' && config !== null) return config as Readonly<Record<string, unknown>>
  } catch (cause) {
    throw new HeddleError('ERR_HEDDLE_FORMAT', { place: path, expected: 'JSON', got: (cause as Error).message, cause })
  }
  throw new HeddleError('ERR_HEDDLE_FORMAT', { place: path, expected: 'a JSON object', got: 'another JSON value' })
}

/**
 * Fills an adapter's parameters from a PEFT folder.
 * @throws ERR_HEDDLE_IO, ERR_HEDDLE_FORMAT when the folder's tensors are not those of the adapter's modules
 */
export async function readParameters(adapter: Adapter, folder: string): Promise<void> {
  const path = join(folder, weightsFile)
  const archive = await openSafetensors(path)
  const loaded = new Map<Tensor, Tensor>()
  try {
    const wanted = storedTensors(adapter)
    const found = new Map([...archive.tensors].map(([name, stored]) => [currentName(adapter, name), stored]))
    for (const [name, stored] of found) {
      if (wanted.has(name) || isCopyOfShared(adapter, name) || (await isCopyOfBase(adapter, name, stored))) continue
      throw mismatch(path, 'tensors of the modules that target_modules selects', `"${name}" besides`)
    }
    for (const [name, tensor] of wanted) {
      const stored = found.get(name)
      if (!stored) throw mismatch(path, `a tensor "${name}"`, 'none')
      if (!sameShape(stored.shape, tensor.shape))
        throw mismatch(`${path}: ${stored.name}`, shapeText(tensor.shape), shapeText(stored.shape))
      loaded.set(tensor, new Tensor(stored.load(tensor.dtype)))
    }
    await expectSameWeights(adapter, loaded, path)
    await computed(() => {
      for (const [parameter, value] of loaded) assign(parameter, read(value))
      return []
    })
  } finally {
    for (const value of loaded.values()) value.dispose()
    archive.close()
  }
}

/** What the method knows a weight by must be in the file what it is here. @throws ERR_HEDDLE_FORMAT */
async function expectSameWeights(
  { attachments }: Adapter,
  loaded: ReadonlyMap<Tensor, Tensor>,
  place: string,
): Promise<void> {
  for (const { site, plan, buffers } of attachments.values())
    for (const [name, { sameWithin }] of Object.entries(plan?.buffers ?? {})) {
      if (sameWithin === undefined) continue
      const [own, stored] = [buffers[name]!, loaded.get(buffers[name]!)!]
      using apart = await computed(() => {
        const [here, there] = [cast(read(own), 'f32'), cast(read(stored), 'f32')]
        return sub(max(abs(sub(here, there))), mul(max(abs(here)), sameWithin))
      })
      if (!(apart.item() <= 0))
        throw mismatch(`${place}: ${site.path}.${name}`, "that of this model's weight", "another weight's")
    }
}

/** The name here of a tensor that an older PEFT named otherwise. */
function currentName({ method }: Adapter, name: string): string {
  const names = parametrizations.find((type) => type.name === method.name)!.formerly?.names ?? {}
  const [old, now] = Object.entries(names).find(([suffix]) => name.endsWith(`.${suffix}`)) ?? []
  return old === undefined ? name : `${name.slice(0, -old.length)}${now}`
}

/** PEFT 0.21 writes RandLoRA's shared matrices once more under every module. */
function isCopyOfShared({ shared, attachments }: Adapter, name: string): boolean {
  const [suffix, path] = [name.split('.').at(-1)!, name.replace(parameterPrefix, '').split('.').slice(0, -1).join('.')]
  return shared[suffix]?.isTrained === false && attachments.has(path)
}

/** PEFT saves an embedding that it adapts with the base's own weight; it must be that of this model. */
async function isCopyOfBase(adapter: Adapter, name: string, stored: StoredTensor): Promise<boolean> {
  const suffix = '.base_layer.weight'
  if (!name.endsWith(suffix)) return false
  const attachment = adapter.attachments.get(name.replace(parameterPrefix, '').slice(0, -suffix.length))
  if (!attachment || !sameShape(attachment.site.weight.shape, stored.shape)) return false
  using copy = new Tensor(stored.load('f32'))
  using result = await computed(() => max(abs(sub(read(copy), read(attachment.site.weight)))))
  return result.item() === 0
}

const mismatch = (place: string, expected: string, got: string): HeddleError =>
  new HeddleError('ERR_HEDDLE_FORMAT', { place, expected, got })
