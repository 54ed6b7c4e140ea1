/** The gradient of a task's loss with respect to whole weights, added up over batches, a few sites at a time. */
import { HeddleError, throwIfAborted } from '../errors.js'
import { computed } from '../graph/computed.js'
import { gradients } from '../graph/grad.js'
import { add, div, square } from '../graph/ops/elementwise.js'
import { pause } from '../graph/pause.js'
import { program } from '../graph/program.js'
import { assign, read, type Sym } from '../graph/sym.js'
import type { Network } from '../nn/network.js'
import type { Site } from '../nn/site.js'
import { batchTensors, namedInputs } from '../objectives/batch_tensors.js'
import { type Tensor, tensor, zeros } from '../tensor/tensor.js'
import type { Calibration, Watch } from './calibration.js'

/** Options of {@link weightGradients}. */
export interface WeightGradientOptions extends Watch {
  /** The mean of the batches' gradients (default), or of their squares: the diagonal of the empirical Fisher matrix. */
  readonly of?: 'gradients' | 'squares'
  /** Most bytes of gradients that are held at once: the batches are run again for the next sites. Default 256 MiB. */
  readonly memoryBytes?: number
}

/**
 * Shows each site the mean over all batches of ∂loss/∂weight, in the weight's shape, f32; freed after the visit. The
 * loss is the objective's mean over a batch; dropout is off.
 * @throws ERR_HEDDLE_ARGUMENT when there is no batch
 */
export async function weightGradients(
  network: Network,
  sites: readonly Site[],
  calibration: Calibration,
  visit: (site: Site, gradient: Tensor) => Promise<void>,
  { of = 'gradients', memoryBytes = 256 * 2 ** 20, signal, onBatch }: WeightGradientOptions = {},
): Promise<void> {
  const parts = partsOf(sites, memoryBytes)
  const total = parts.length * (calibration.batchCount ?? 0)
  let done = 0
  const onPart = (): void => {
    done += 1
    onBatch?.(done, total)
  }
  for (const part of parts) {
    const sums: Tensor[] = []
    try {
      for (const { weight } of part) {
        sums.push(zeros(weight.shape))
        await pause()
      }
      const batches = await addUp(network, part, sums, calibration, { of, signal, onBatch: onPart })
      if (batches === 0)
        throw new HeddleError('ERR_HEDDLE_ARGUMENT', { place: 'weightGradients', expected: 'a batch', got: 'none' })
      for (const [i, site] of part.entries()) {
        using mean = await computed((sum) => div(sum!, batches), [sums[i]!])
        throwIfAborted(signal, 'weightGradients')
        await visit(site, mean)
        await pause()
      }
    } finally {
      for (const sum of sums) sum.dispose()
    }
  }
}

/** Adds each batch's gradients to the sums; the number of batches. */
async function addUp(
  network: Network,
  sites: readonly Site[],
  sums: readonly Tensor[],
  { objective, batches, precision = 'f32' }: Calibration,
  { of, signal, onBatch }: Pick<WeightGradientOptions, 'of' | 'signal'> & { readonly onBatch: () => void },
): Promise<number> {
  const step = program(
    async (normaliser, ...arrays) => {
      const total = await objective.loss(network, namedInputs(objective, arrays), { precision, training: false })
      const found = await gradients(
        div(total, normaliser!),
        sites.map(({ weight }) => read(weight)),
      )
      for (const [i, gradient] of found.entries()) {
        const term: Sym = of === 'squares' ? square(gradient) : gradient
        assign(sums[i]!, add(read(sums[i]!), term))
        await pause()
      }
      return []
    },
    { device: network.device },
  )
  let count = 0
  try {
    for await (const batch of batches()) {
      const inputs = [tensor([Math.max(1, objective.weight(batch))], []), ...batchTensors(objective, batch)]
      await step.run(inputs, { signal }).finally(() => {
        for (const used of inputs) used.dispose()
      })
      count += 1
      onBatch()
    }
  } finally {
    step.dispose()
  }
  return count
}

/** Neighbouring sites whose weights fit the limit together; one that is larger stands alone. */
function partsOf(sites: readonly Site[], memoryBytes: number): Site[][] {
  const parts: Site[][] = []
  let bytes = Number.POSITIVE_INFINITY
  for (const site of sites) {
    const own = 4 * site.weight.size
    if (bytes + own > memoryBytes) {
      parts.push([])
      bytes = 0
    }
    parts.at(-1)!.push(site)
    bytes += own
  }
  return parts
}
