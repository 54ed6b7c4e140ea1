/** What a method would train on a network, without making any of it. */
import type { Network } from '../nn/network.js'
import { elementCount } from '../tensor/dtype.js'
import { networkSites } from './attachment.js'
import type { Parametrization } from './parametrization.js'
import { selectSites } from './target_modules.js'

/** What a method would train. */
export interface ParameterCount {
  /** Trained numbers, those of copied modules and biases included. */
  readonly parameters: number
  /** Modules that the method acts on. */
  readonly sites: number
}

/**
 * Counts what attaching the method would train. A method that looks at data is counted as its config says, before it
 * has seen any.
 * @throws ERR_HEDDLE_ARGUMENT where attaching would throw for the same reason: no module matches, or one is unsuited
 */
export function parameterCount(network: Network, method: Parametrization): ParameterCount {
  const all = networkSites(network)
  const chosen = selectSites(all, method.targetModules, method.targetFilter)
  const targets = new Set(chosen)
  const shared = Object.values(method.shared?.(chosen) ?? {}).filter(({ isTrained }) => isTrained)
  let parameters = shared.reduce((total, { shape }) => total + elementCount(shape), 0)
  for (const site of all) {
    for (const part of method.trainedParts?.(site, targets.has(site)) ?? []) parameters += site[part]?.size ?? 0
    if (targets.has(site))
      for (const { shape } of Object.values(method.plan(site).parameters)) parameters += elementCount(shape)
  }
  return { parameters, sites: chosen.length }
}
