/** Which sites an adapter acts on, by PEFT's rules. */
import { HeddleError } from '../errors.js'
import type { Site } from '../nn/site.js'
import type { TargetModules } from './parametrization.js'

/** What narrows the choice that `target_modules` makes, in PEFT's names. */
export interface TargetFilter {
  /** Paths to leave out, by the rules of `target_modules`. */
  readonly exclude_modules?: TargetModules | undefined
  /** Only modules of these layers, counted as in their paths; needs a list as `target_modules`. */
  readonly layers_to_transform?: number | readonly number[] | undefined
  /** Name of the list that the layer's number follows, if not the first number in the path counts. */
  readonly layers_pattern?: string | readonly string[] | undefined
  /** Modules that are trained as a whole: neither they nor what is inside of them is adapted. */
  readonly modules_to_save?: readonly string[] | undefined
}

/**
 * A list entry matches a path that equals it or ends with `.` + it; a string is a regular expression for the whole
 * path, except "all-linear" (any case): every linear site but the output embedding. A path that equals an entry passes
 * the layer filter in any case.
 * @throws ERR_HEDDLE_ARGUMENT when nothing matches, with the names there are, or when a filter does not fit the targets
 */
export function selectSites(sites: Iterable<Site>, targets: TargetModules, filter: TargetFilter = {}): Site[] {
  const all = [...sites]
  const isTarget = matcher(targets, 'target_modules')
  const isExcluded = filter.exclude_modules ? matcher(filter.exclude_modules, 'exclude_modules') : () => false
  const isInLayer = layerFilter(targets, filter)
  const isKept = ({ path }: Site): boolean =>
    (filter.modules_to_save ?? []).some((name) => `.${path}.`.includes(`.${name}.`))
  const chosen = all.filter((site) => isTarget(site) && isInLayer(site) && !isExcluded(site) && !isKept(site))
  if (chosen.length === 0) {
    const names = [...new Set(all.filter(({ kind }) => kind === 'linear').map(({ path }) => path.split('.').at(-1)))]
    throw misuse(
      'target_modules',
      `names or a pattern that match a module; linear modules here: ${names.join(', ')}`,
      JSON.stringify({ target_modules: targets, ...filter }),
    )
  }
  return chosen
}

/** The value of the first key, a regular expression, that matches the whole path or its end behind a dot. */
export function patternValue(
  patterns: Readonly<Record<string, number>>,
  path: string,
  option: string,
): number | undefined {
  const found = Object.keys(patterns).find((key) => wholePath(`(?:.*\\.)?(?:${key})`, option).test(path))
  return found === undefined ? undefined : patterns[found]
}

/** A pattern for {@link patternValue} that stands for this text alone. */
export const escaped = (text: string): string => text.replaceAll('.', '\\.')

/**
 * True for a module whose path, or that of a module around it, ends with one of the names. Like PEFT, which compares
 * ends of strings: "norm" also stands for "input_layernorm".
 */
export function isModuleToSave({ path }: Site, names: readonly string[]): boolean {
  const parts = path.split('.')
  const around = parts.map((_, i) => parts.slice(0, i + 1).join('.'))
  return around.some((module) => names.some((name) => module.endsWith(name)))
}

function matcher(targets: TargetModules, option: string): (site: Site) => boolean {
  if (typeof targets !== 'string')
    return ({ path }) => targets.some((entry) => path === entry || path.endsWith(`.${entry}`))
  if (option === 'target_modules' && targets.toLowerCase() === 'all-linear')
    return ({ kind, isOutput }) => kind === 'linear' && !isOutput
  const pattern = wholePath(targets, option)
  return ({ path }) => pattern.test(path)
}

function layerFilter(targets: TargetModules, filter: TargetFilter): (site: Site) => boolean {
  const { layers_to_transform: layers, layers_pattern: names } = filter
  if (layers === undefined && names === undefined) return () => true
  if (layers === undefined) throw misuse('layers_pattern', 'layers_to_transform beside it', 'layers_pattern alone')
  if (typeof targets === 'string')
    throw misuse('layers_to_transform', 'target_modules as a list of names', JSON.stringify(targets))
  const wanted = new Set([layers].flat())
  const lists = names === undefined || names.length === 0 ? undefined : [names].flat()
  const numbers = lists
    ? lists.map((name) => compiled(`^(?:|.*?\\.)(?:${name})\\.(?<layer>\\d+)\\.`, name, 'layers_pattern'))
    : [/^.*?\.[^.]*\.(?<layer>\d+)\./u]
  return ({ path }) => {
    if (targets.includes(path)) return true
    const found = numbers.map((pattern) => pattern.exec(path)?.groups?.layer).find((index) => index !== undefined)
    return found !== undefined && wanted.has(Number(found))
  }
}

/** Python's re.fullmatch. @param option where the pattern stands, for messages */
export const wholePath = (source: string, option: string): RegExp => compiled(`^(?:${source})$`, source, option)

/** A regular expression around the user's `source`, with Python's (?P<name>…) groups in JavaScript's spelling. */
function compiled(expression: string, source: string, option: string): RegExp {
  try {
    return new RegExp(expression.replaceAll('(?P<', '(?<'), 'u')
  } catch (cause) {
    throw new HeddleError('ERR_HEDDLE_ARGUMENT', {
      place: option,
      expected: 'a list of names or a valid regular expression',
      got: source,
      cause,
    })
  }
}

const misuse = (place: string, expected: string, got: string): HeddleError =>
  new HeddleError('ERR_HEDDLE_ARGUMENT', { place, expected, got })
