/** Small convolutional networks of the golden files: convolutions with relu, the mean over all pixels, a linear module. */
import type { Adapter } from '../../lib/adapters/adapter.js'
import { relu } from '../../lib/graph/ops/elementwise.js'
import { mean } from '../../lib/graph/ops/reduce.js'
import { program } from '../../lib/graph/program.js'
import { read, type Sym } from '../../lib/graph/sym.js'
import type { Network } from '../../lib/nn/network.js'
import { convolution, type Forward, linear, type Site } from '../../lib/nn/site.js'
import type { Tensor } from '../../lib/tensor/tensor.js'

/**
 * conv1 → conv2 → conv3 → mean → fc
 * @param goldens has `base.<module>.weight` and `.bias`
 * @param windows of the convolutions that have no plain one
 */
export function convNetwork(
  goldens: ReadonlyMap<string, Tensor>,
  windows: Readonly<Record<string, Site['window']>>,
): Network {
  const site = (path: string, kind: Site['kind']): Site => ({
    path,
    kind,
    weight: goldens.get(`base.${path}.weight`)!,
    bias: goldens.get(`base.${path}.bias`),
    ...(windows[path] ? { window: windows[path] } : {}),
  })
  const sites = [...convolutions.map((path) => site(path, 'conv2d')), site('fc', 'linear')]
  return {
    config: {},
    architecture: 'test',
    sites: new Map(sites.map((each) => [each.path, each])),
    maxPositions: 1,
    embeddingTied: false,
    weights: () => [],
  }
}

const convolutions = ['conv1', 'conv2', 'conv3']

/** Traced. */
export function convOutput({ sites }: Network, image: Sym, adapter?: Adapter): Sym {
  const forward: Forward = { precision: 'f32', training: false, hook: adapter?.hook }
  let y = image
  for (const path of convolutions) y = relu(convolution(sites.get(path)!, y, forward))
  return linear(sites.get('fc')!, mean(y, { axes: [2, 3] }), forward)
}

/** The output `[n, 4]` for images. */
export const runConvNetwork = (network: Network, x: Tensor, adapter?: Adapter): Promise<Tensor> =>
  program(() => convOutput(network, read(x), adapter))()
