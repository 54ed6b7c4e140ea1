/** The real models that every adapter method is tried on: the embedded one, SmolLM2 and MiniLM. */
import { join } from 'node:path'
import type { Adapter } from '../../lib/adapters/adapter.js'
import { loadEncoder } from '../../lib/encoder_model.js'
import { computed } from '../../lib/graph/computed.js'
import { mul, square } from '../../lib/graph/ops/elementwise.js'
import { reshape, sum } from '../../lib/graph/ops/reduce.js'
import type { Sym } from '../../lib/graph/sym.js'
import { loadModel } from '../../lib/model.js'
import type { CausalLm } from '../../lib/models/causal_lm.js'
import type { Encoder } from '../../lib/models/encoder.js'
import type { Network } from '../../lib/nn/network.js'
import type { Forward } from '../../lib/nn/site.js'
import type { Objective } from '../../lib/objectives/objective.js'
import type { Calibration } from '../../lib/observers/calibration.js'
import { type Tensor, tensor } from '../../lib/tensor/tensor.js'
import { root } from '../golden.js'
import { fetchModel } from '../models/fetch.js'

/** A model to try methods on. */
export interface Subject {
  readonly network: Network
  readonly isEncoder: boolean
  readonly calibration: Calibration
  /** Last hidden states of a fixed batch, flat. */
  call(adapter?: Adapter): Promise<Tensor>
  dispose(): Promise<void>
}

const rows = 2
const length = 32

/** A fixed batch of ids that every vocabulary has. */
const ids = (): Tensor =>
  tensor(
    Int32Array.from({ length: rows * length }, (_, i) => (i * 37 + 11) % 200),
    [rows, length],
  )

const ones = (): Tensor => tensor(new Int32Array(rows * length).fill(1), [rows, length])

async function hiddenOf(network: Network, given: Sym, mask: Sym, forward: Forward): Promise<Sym> {
  const hidden = isEncoder(network)
    ? await network.hidden({ ids: given, mask }, forward)
    : await (network as CausalLm).hidden({ ids: given }, forward)
  return reshape(hidden, [-1])
}

const isEncoder = (network: Network): network is Encoder => !('logits' in network)

/** What `of` makes of the last hidden states of a fixed batch, by default those themselves, flat. */
export async function callOn(
  network: Network,
  adapter?: Adapter,
  of: (hidden: Sym) => Sym | Promise<Sym> = (hidden) => hidden,
): Promise<Tensor> {
  using input = ids()
  using mask = ones()
  const forward: Forward = { precision: 'f32', training: false, hook: adapter?.hook }
  return await computed(async (given, all) => of(await hiddenOf(network, given!, all!, forward)), [input, mask])
}

/** A task without labels, so that every kind of network has one. */
const cubes: Objective = {
  name: 'cubes',
  config: {},
  inputs: ['ids', 'mask'],
  arrays: (batch) => ({
    ids: { data: batch as Int32Array, shape: [rows, length] },
    mask: { data: new Int32Array(rows * length).fill(1), shape: [rows, length] },
  }),
  weight: () => rows * length,
  tokens: () => rows * length,
  async loss(network, { ids: given, mask }, forward) {
    const hidden = await hiddenOf(network, given!, mask!, forward)
    return sum(mul(square(hidden), hidden))
  },
  scores: () => Promise.reject(new Error('not evaluated')),
  scoreboard: () => {
    throw new Error('not evaluated')
  },
  open: () => Promise.reject(new Error('no files')),
}

const calibration: Calibration = {
  objective: cubes,
  async *batches() {
    for (let batch = 0; batch < 3; batch += 1)
      yield Int32Array.from({ length: rows * length }, (_, i) => (i * (41 + batch) + 5) % 200)
  },
}

interface Loaded {
  readonly network: Network
  dispose(): Promise<void>
}

/** Loaded when first asked for. */
function subject(name: string, open: () => Promise<Loaded>): { readonly name: string; load(): Promise<Subject> } {
  let loading: Promise<Subject> | undefined
  const load = async (): Promise<Subject> => {
    const model = await open()
    const { network } = model
    return {
      network,
      isEncoder: isEncoder(network),
      calibration,
      call: (adapter) => callOn(network, adapter),
      dispose: () => model.dispose(),
    }
  }
  return {
    name,
    load() {
      loading ??= load()
      return loading
    },
  }
}

export const subjects = [
  subject('the embedded model', () => loadModel(join(root, 'models', 'heddle-tiny'))),
  subject('SmolLM2', async () => loadModel(await fetchModel('smollm2'))),
  subject('MiniLM', async () => loadEncoder(await fetchModel('minilm'))),
]
