/** Parameter groups, as torch's optimizers have them: parameters whose names match get a rate and a decay of their own. */

import { HeddleError } from '../errors.js'
import { mul } from '../graph/ops/elementwise.js'
import type { Sym } from '../graph/sym.js'
import type { GradientTransform, TransformState } from './gradient_transform.js'

/** Settings for the parameters whose names match. */
export interface ParameterGroup {
  /** Regular expression that is looked for in the parameter's name; the first group that matches counts. */
  readonly params: string
  /** Base learning rate of the group; default: the optimizer's. The schedule scales both. */
  readonly lr?: number | undefined
  /** Default: the optimizer's. */
  readonly weightDecay?: number | undefined
}

/**
 * The rule with other settings for some parameters. Each group has its own state; parameters that no group matches
 * keep the rule's settings.
 * @param names of the parameters, in the order in which `init` gets them
 * @throws ERR_HEDDLE_ARGUMENT when a group matches nothing or asks for what the rule does not have
 */
export function withParameterGroups(
  rule: GradientTransform,
  groups: readonly ParameterGroup[],
  names: readonly string[],
): GradientTransform {
  const parts = partsOf(rule, groups, names)
  if (parts.length === 1 && parts[0]!.rule === rule && parts[0]!.rateScale === 1) return rule
  return {
    ...rule,
    config: { ...rule.config, groups },
    init: async (parameters) => {
      const states: TransformState[] = []
      for (const { rule: own, members } of parts) states.push(await own.init(members.map((i) => parameters[i]!)))
      return {
        tensors: Object.fromEntries(
          states.flatMap(({ tensors }, part) => Object.entries(tensors).map(([name, t]) => [`${part}.${name}`, t])),
        ),
        update: async (gradients, context) => {
          const updates = new Array<Sym>(gradients.length)
          const pick = (list: readonly Sym[], members: readonly number[]): Sym[] => members.map((i) => list[i]!)
          for (const [part, { members, rateScale }] of parts.entries()) {
            const learningRate = rateScale === 1 ? context.learningRate : mul(context.learningRate, rateScale)
            const own = { ...context, learningRate, parameters: pick(context.parameters, members) }
            const found = await states[part]!.update(pick(gradients, members), own)
            for (const [i, member] of members.entries()) updates[member] = found[i]!
          }
          return updates
        },
      }
    },
  }
}

/** LoRA+ (Hayou et al. 2024, arXiv 2402.12354) as groups: B learns `loraplusLrRatio` times as fast as A. */
export const loraPlusGroups = (lr: number, loraplusLrRatio: number): ParameterGroup[] => [
  { params: String.raw`\.lora_B\.|\.lora_embedding_B$|\.lora_B$`, lr: lr * loraplusLrRatio },
]

interface Part {
  readonly rule: GradientTransform
  readonly rateScale: number
  readonly members: readonly number[]
}

function partsOf(rule: GradientTransform, groups: readonly ParameterGroup[], names: readonly string[]): Part[] {
  const patterns = groups.map(({ params }) => patternOf(params))
  const groupOf = names.map((name) => patterns.findIndex((pattern) => pattern.test(name)))
  const members = (group: number): number[] => [...names.keys()].filter((i) => groupOf[i] === group)
  const rest = members(-1)
  return [
    ...(rest.length > 0 ? [{ rule, rateScale: 1, members: rest }] : []),
    ...groups.flatMap((group, index) => {
      const own = members(index)
      if (own.length > 0) return [{ ...settingsOf(rule, group), members: own }]
      if (names.some((name) => patterns[index]!.test(name))) return []
      throw misuse(group.params, `a pattern that matches a trained parameter, such as ${names[0]}`, 'one without match')
    }),
  ]
}

function settingsOf(rule: GradientTransform, { params, lr, weightDecay }: ParameterGroup): Omit<Part, 'members'> {
  if (lr !== undefined && !rule.learningRate) throw misuse(params, 'an optimizer with a learning rate', rule.name)
  if (weightDecay !== undefined && !rule.withWeightDecay)
    throw misuse(params, 'an optimizer with weight decay', rule.name)
  return {
    rule: weightDecay === undefined ? rule : rule.withWeightDecay!(weightDecay),
    rateScale: lr === undefined ? 1 : lr / rule.learningRate!,
  }
}

function patternOf(text: string): RegExp {
  try {
    return new RegExp(text)
  } catch (cause) {
    throw misuse(text, 'a regular expression', (cause as Error).message)
  }
}

const misuse = (pattern: string, expected: string, got: string): HeddleError =>
  new HeddleError('ERR_HEDDLE_ARGUMENT', { place: `parameterGroups: ${pattern}`, expected, got })
