/** The config fields by which every method of PEFT chooses its modules, and what follows from them. */
import { z } from 'zod'
import { HeddleError } from '../errors.js'
import type { Site } from '../nn/site.js'
import type { Parametrization, SitePart } from './parametrization.js'
import { isModuleToSave } from './target_modules.js'

const names = z.union([z.string(), z.array(z.string()).min(1)])
const layer = z.int().min(0)

/** Fields of {@link TargetOptions}, for a method's own schema. @param only PEFT's word for the biases of adapted modules */
export const targetFields = <Only extends string>(only: Only) =>
  ({
    target_modules: names.default('all-linear'),
    exclude_modules: names.optional(),
    layers_to_transform: z.union([layer, z.array(layer).min(1)]).optional(),
    layers_pattern: names.optional(),
    modules_to_save: z.array(z.string().min(1)).optional(),
    bias: z
      .custom<'none' | 'all' | Only>((value) => value === 'none' || value === 'all' || value === only, {
        error: `"none", "all" or "${only}"`,
      })
      .default('none'),
  }) as const

/** Which modules a method acts on, and what else is trained, in PEFT's names. */
export interface TargetOptions<Only extends string = never> {
  /** Names or path ends, a regular expression for whole paths, or "all-linear" (default). */
  readonly target_modules?: string | readonly string[]
  /** Paths to leave out, by the same rules. */
  readonly exclude_modules?: string | readonly string[]
  /** Only modules of these layers; needs a list as `target_modules`. */
  readonly layers_to_transform?: number | readonly number[]
  /** Name of the list that the layer's number follows. */
  readonly layers_pattern?: string | readonly string[]
  /** Ends of module paths whose modules are copied and trained as a whole, such as a classification head. */
  readonly modules_to_save?: readonly string[]
  /** Biases of the model that are trained too: `none` (default), `all`, or those of adapted modules. */
  readonly bias?: 'none' | 'all' | Only
}

/** {@link TargetOptions} with the defaults filled in. */
export interface TargetConfig {
  readonly target_modules: string | readonly string[]
  readonly exclude_modules?: string | readonly string[] | undefined
  readonly layers_to_transform?: number | readonly number[] | undefined
  readonly layers_pattern?: string | readonly string[] | undefined
  readonly modules_to_save?: readonly string[] | undefined
  readonly bias: string
}

/** What a method's {@link Parametrization} says about its modules. */
export function targeting(
  config: TargetConfig,
): Pick<Parametrization, 'targetModules' | 'targetFilter' | 'trainedParts'> &
  Required<Pick<Parametrization, 'targetFilter'>> {
  const { target_modules, exclude_modules, layers_to_transform, layers_pattern, modules_to_save } = config
  return {
    targetModules: target_modules,
    targetFilter: { exclude_modules, layers_to_transform, layers_pattern, modules_to_save },
    trainedParts: (site, isTarget) => trainedParts(site, isTarget, config),
  }
}

/** `modules_to_save` and `bias`: tensors of the model that are trained as they are. */
function trainedParts(
  site: Site,
  isTarget: boolean,
  { bias, modules_to_save = [] }: TargetConfig,
): readonly SitePart[] {
  if (!isTarget && isModuleToSave(site, modules_to_save)) return site.bias ? ['weight', 'bias'] : ['weight']
  const isTrained = bias === 'all' || (bias !== 'none' && isTarget)
  return isTrained && site.bias ? ['bias'] : []
}

/** Fields that PEFT writes for every method: they say nothing about what is computed. */
const folderFields = new Set([
  'auto_mapping',
  'base_model_name_or_path',
  'inference_mode',
  'peft_type',
  'peft_version',
  'revision',
  'task_type',
])

/**
 * The fields of an adapter_config.json that a method's schema knows. PEFT writes null where a field is not used; one
 * that asks for what the method does not know must not be dropped silently.
 * @throws ERR_HEDDLE_FORMAT naming the field
 */
export function storedFields(schema: z.ZodObject, stored: Readonly<Record<string, unknown>>): Record<string, unknown> {
  const kept: Record<string, unknown> = {}
  for (const [name, value] of Object.entries(stored)) {
    if (folderFields.has(name) || isEmpty(value)) continue
    if (!(name in schema.shape)) throw unsupported(name, 'a field that the method has', JSON.stringify(value))
    kept[name] = value
  }
  return kept
}

/** What PEFT writes for a field that is not used. */
export const isEmpty = (value: unknown): boolean =>
  value === undefined || value === null || (typeof value === 'object' && Object.keys(value).length === 0)

/** What an adapter_config.json asks for and does not get. */
export const unsupported = (name: string, expected: string, got: string): HeddleError =>
  new HeddleError('ERR_HEDDLE_FORMAT', { place: `adapter_config.json: ${name}`, expected, got })

/** What a method cannot do at a site. */
export const unsuited = (method: string, { path }: Site, expected: string, got: string): HeddleError =>
  new HeddleError('ERR_HEDDLE_ARGUMENT', { place: `${method}: ${path}`, expected, got })
