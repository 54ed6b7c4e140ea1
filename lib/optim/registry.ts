/** The update rules that config files can name. A new one is one file and one entry here. */
import { z } from 'zod'
import { parseConfig, unknownName } from '../config.js'
import { adafactor } from './adafactor.js'
import { adamw } from './adamw.js'
import type { GradientTransform } from './gradient_transform.js'
import { lion } from './lion.js'
import { sgd } from './sgd.js'

const rate = z.number().min(0).exactOptional()
const share = z.number().min(0).lt(1).exactOptional()

interface OptimizerType<S extends z.ZodObject = z.ZodObject> {
  readonly schema: S
  readonly create: (options: z.infer<S>) => GradientTransform
}

const entry = <S extends z.ZodObject>(schema: S, create: OptimizerType<S>['create']): OptimizerType =>
  ({ schema, create }) as unknown as OptimizerType

const types: Readonly<Record<string, OptimizerType>> = {
  adamw: entry(z.strictObject({ lr: rate, beta1: share, beta2: share, eps: rate, weightDecay: rate }), adamw),
  sgd: entry(
    z.strictObject({
      lr: rate,
      momentum: share,
      dampening: share,
      nesterov: z.boolean().exactOptional(),
      weightDecay: rate,
    }),
    sgd,
  ),
  lion: entry(z.strictObject({ lr: rate, beta1: share, beta2: share, weightDecay: rate }), lion),
  adafactor: entry(
    z.strictObject({
      lr: rate,
      beta2Decay: z.number().max(0).exactOptional(),
      eps1: rate,
      eps2: rate,
      d: rate,
      weightDecay: rate,
    }),
    adafactor,
  ),
}

/** Names of the registered update rules. */
export const optimizerNames: readonly string[] = Object.keys(types)

/**
 * An update rule by name, with its own options.
 * @throws ERR_HEDDLE_ARGUMENT for a name or an option that is not known, with the nearest one
 */
export function optimizerNamed(name: string, options: Readonly<Record<string, unknown>>): GradientTransform {
  const type = types[name]
  if (type) return type.create(parseConfig(`optimizer ${name}`, type.schema, options))
  throw unknownName('optimizer.name', name, optimizerNames)
}
