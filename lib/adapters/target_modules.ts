/** Which sites an adapter acts on, by PEFT's rules. */
import { HeddleError } from '../errors.js'
import type { Site } from '../nn/site.js'
import type { TargetModules } from './parametrization.js'

/**
 * A list entry matches a path that equals it or ends with `.` + it; a string is a regular expression for the whole
 * path, except "all-linear" (any case): every linear site but the output embedding.
 * @throws ERR_HEDDLE_ARGUMENT when nothing matches, with the names there are
 */
export function selectSites(sites: Iterable<Site>, targets: TargetModules): Site[] {
  const all = [...sites]
  const matches = matcher(targets)
  const chosen = all.filter(matches)
  if (chosen.length === 0) {
    const names = [...new Set(all.filter(({ kind }) => kind === 'linear').map(({ path }) => path.split('.').at(-1)))]
    throw new HeddleError('ERR_HEDDLE_ARGUMENT', {
      place: 'target_modules',
      expected: `names or a pattern that match a module; linear modules here: ${names.join(', ')}`,
      got: JSON.stringify(targets),
    })
  }
  return chosen
}

function matcher(targets: TargetModules): (site: Site) => boolean {
  if (typeof targets !== 'string')
    return ({ path }) => targets.some((entry) => path === entry || path.endsWith(`.${entry}`))
  if (targets.toLowerCase() === 'all-linear') return ({ kind, isOutput }) => kind === 'linear' && !isOutput
  const pattern = wholePath(targets)
  return ({ path }) => pattern.test(path)
}

/** Python's re.fullmatch, with its (?P<name>…) groups in JavaScript's spelling. */
function wholePath(source: string): RegExp {
  try {
    return new RegExp(`^(?:${source.replaceAll('(?P<', '(?<')})$`, 'u')
  } catch (cause) {
    throw new HeddleError('ERR_HEDDLE_ARGUMENT', {
      place: 'target_modules',
      expected: '"all-linear", a list of names, or a valid regular expression',
      got: source,
      cause,
    })
  }
}
