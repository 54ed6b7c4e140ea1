/**
 * A text network with a classification head, as transformers' *ForSequenceClassification: encoders classify what their
 * first token has become, decoders their last one. Module paths are transformers', so that PEFT finds every module.
 */
import { computed } from '../graph/computed.js'
import { add, cast, maximum, mul, relu, sub, tanh } from '../graph/ops/elementwise.js'
import { gatherRows, slice } from '../graph/ops/index.js'
import { randomNormal } from '../graph/ops/random.js'
import { reshape, sum } from '../graph/ops/reduce.js'
import { read, type Sym } from '../graph/sym.js'
import type { Network } from '../nn/network.js'
import { type Forward, linear, type Site, type SiteHook } from '../nn/site.js'
import { seedTensor } from '../tensor/seed.js'
import { tensor, zeros } from '../tensor/tensor.js'
import type { CausalLm } from './causal_lm.js'
import type { Encoder } from './encoder.js'
import type { WeightSource } from './weights.js'

/** Inputs of one forward pass. */
export interface ClassifierInputs {
  /** Token ids `i32 [b, t]`. */
  readonly ids: Sym
  /** `i32 [b, t]`: 1 for a token, 0 for padding, which comes last. */
  readonly mask: Sym
}

/** A network that tells classes of texts apart. */
export interface ClassifierNetwork extends Network {
  readonly labels: readonly string[]
  /** Modules that are new, and therefore always trained: PEFT's `modules_to_save`. */
  readonly headModules: readonly string[]
  /** `f32 [b, labels]` */
  logits(inputs: ClassifierInputs, forward: Forward): Promise<Sym>
}

/** Where a head comes from. */
export interface HeadOptions {
  readonly labels: readonly string[]
  /** Seed of a new head. */
  readonly seed: number
  /** The checkpoint, where it has the head already. */
  readonly source?: WeightSource | undefined
}

/** What transformers puts between the encoder and the classes, by architecture. */
interface EncoderHead {
  /** Module of the encoder within the classifier. */
  readonly prefix: string
  /** Transforms the first token's state. */
  readonly dense: string
  readonly output: string
  readonly modules: readonly string[]
  readonly activate: (x: Sym) => Sym
  readonly className: string
}

const robertaHead = (className: string): EncoderHead => ({
  prefix: 'roberta',
  dense: 'classifier.dense',
  output: 'classifier.out_proj',
  modules: ['classifier'],
  activate: tanh,
  className,
})

const encoderHeads: Readonly<Record<string, EncoderHead>> = {
  bert: {
    prefix: 'bert',
    dense: 'bert.pooler.dense',
    output: 'classifier',
    modules: ['classifier'],
    activate: tanh,
    className: 'BertForSequenceClassification',
  },
  roberta: robertaHead('RobertaForSequenceClassification'),
  'xlm-roberta': robertaHead('XLMRobertaForSequenceClassification'),
  distilbert: {
    prefix: 'distilbert',
    dense: 'pre_classifier',
    output: 'classifier',
    modules: ['pre_classifier', 'classifier'],
    activate: relu,
    className: 'DistilBertForSequenceClassification',
  },
}

/** An encoder with a head on its first token. A BERT that comes with its pooler keeps it. */
export async function encoderClassifier(base: Encoder, options: HeadOptions): Promise<ClassifierNetwork> {
  const head = encoderHeads[base.architecture]!
  const { hiddenSize: dim } = base
  const renamed = new Map([...base.sites.values()].map((site) => [site.path, within(site, head.prefix)]))
  const pooler = base.pooler && renamed.get(base.pooler.path)
  const dense = pooler ?? (await headSite(head.dense, [dim, dim], { ...options, stream: 1 }))
  const output = await headSite(head.output, [options.labels.length, dim], { ...options, stream: 0, isOutput: true })
  const added = pooler ? [output] : [dense, output]
  return {
    ...shared(base, options, head.className),
    headModules:
      pooler || head.modules.some((name) => dense.path.startsWith(name)) ? head.modules : ['pooler', ...head.modules],
    sites: new Map([...renamed.values(), ...added].map((site) => [site.path, site])),
    weights: () => [
      ...base.weights().map(({ name, tensor: value }) => ({ name: `${head.prefix}.${name}`, tensor: value })),
      ...added.flatMap(tensorsOf),
    ],
    async logits(inputs, forward) {
      const inner = { ...forward, hook: forward.hook && renamedHook(forward.hook, renamed) }
      const hidden = await base.hidden(inputs, inner)
      const first = reshape(slice(hidden, [{ axis: 1, start: 0, end: 1 }]), [-1, dim])
      return linear(output, head.activate(linear(dense, first, forward)), forward)
    },
  }
}

/** A decoder with a head without bias, `score`, on its last token. */
export async function decoderClassifier(base: CausalLm, options: HeadOptions): Promise<ClassifierNetwork> {
  const dim = base.outputSite.weight.shape[1]!
  const score = await headSite('score', [options.labels.length, dim], {
    ...options,
    stream: 0,
    isOutput: true,
    bias: false,
  })
  const ownOutput = base.sites.get(base.outputSite.path)
  const sites = [...base.sites.values()].filter((site) => site !== ownOutput)
  const outputTensor = base.embeddingTied ? undefined : base.outputSite.weight
  const className = `${String((base.config.architectures as readonly string[])[0]).replace(/For.*|Model$|LMHeadModel$/, '')}ForSequenceClassification`
  return {
    ...shared(base, options, className),
    headModules: ['score'],
    sites: new Map([...sites, score].map((site) => [site.path, site])),
    weights: () => [...base.weights().filter(({ tensor: value }) => value !== outputTensor), ...tensorsOf(score)],
    async logits({ ids, mask }, forward) {
      const [batch, time] = ids.shape as [number, number]
      const hidden = await base.hidden({ ids, segments: cast(sub(mask, 1), 'i32') }, forward)
      const rows = tensor(
        Int32Array.from({ length: batch }, (_, row) => row * time),
        [batch],
      )
      // A row of padding alone has no last token; its first place stands in.
      const last = maximum(0, sub(sum(cast(mask, 'f32'), { axes: [1] }), 1))
      return linear(score, gatherRows(hidden, cast(add(read(rows), last), 'i32')), forward)
    },
  }
}

function shared(
  base: Network,
  { labels }: HeadOptions,
  className: string,
): Pick<ClassifierNetwork, 'config' | 'configSource' | 'architecture' | 'maxPositions' | 'embeddingTied' | 'labels'> {
  const id2label = Object.fromEntries(labels.entries())
  const label2id = Object.fromEntries(labels.map((label, id) => [label, id]))
  return {
    config: { ...base.config, architectures: [className], id2label, label2id, num_labels: labels.length },
    ...(base.configSource ? { configSource: base.configSource } : {}),
    architecture: base.architecture,
    maxPositions: base.maxPositions,
    embeddingTied: false,
    labels,
  }
}

interface HeadSiteOptions extends HeadOptions {
  /** Random stream of the weight. */
  readonly stream: number
  readonly isOutput?: boolean
  readonly bias?: boolean
}

/** A linear module of a head: the checkpoint's, or drawn as transformers draws it, normal with deviation 0.02. */
async function headSite(
  path: string,
  shape: readonly [number, number],
  { seed, source, stream, isOutput = false, bias = true }: HeadSiteOptions,
): Promise<Site> {
  const site = { path, kind: 'linear', isOutput } as const
  if (source?.has(`${path}.weight`))
    return {
      ...site,
      weight: source.take(`${path}.weight`, shape, 'normal'),
      ...(bias ? { bias: source.take(`${path}.bias`, [shape[0]], 'zeros') } : {}),
    }
  using key = seedTensor(seed)
  const weight = await computed((words) => mul(randomNormal(words!, stream, shape), 0.02), [key])
  return { ...site, weight, ...(bias ? { bias: zeros([shape[0]]) } : {}) }
}

/** The same place under another module: reads and writes go to the site itself. */
function within(site: Site, module: string): Site {
  return {
    path: `${module}.${site.path}`,
    kind: site.kind,
    transposed: site.transposed ?? false,
    isOutput: site.isOutput ?? false,
    get weight() {
      return site.weight
    },
    set weight(value) {
      site.weight = value
    },
    get bias() {
      return site.bias
    },
    set bias(value) {
      site.bias = value
    },
  }
}

/** A hook that knows the sites by their outer paths, for a network that calls with its own. */
const renamedHook = (hook: SiteHook, outer: ReadonlyMap<string, Site>): SiteHook => ({
  targets: (site) => hook.targets(outer.get(site.path) ?? site),
  apply: (site, x, base, forward) => hook.apply(outer.get(site.path) ?? site, x, base, forward),
})

const tensorsOf = ({ path, weight, bias }: Site) => [
  { name: `${path}.weight`, tensor: weight },
  ...(bias ? [{ name: `${path}.bias`, tensor: bias }] : []),
]
