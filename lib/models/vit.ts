/** Vision Transformer (Dosovitskiy et al. 2021, arXiv 2010.11929): an encoder over image patches and a class token. */
import { z } from 'zod'
import { HeddleError } from '../errors.js'
import { attention } from '../graph/ops/attention.js'
import { add, broadcastTo } from '../graph/ops/elementwise.js'
import { concat, slice, transpose } from '../graph/ops/index.js'
import { reshape } from '../graph/ops/reduce.js'
import { pause } from '../graph/pause.js'
import { read, type Sym } from '../graph/sym.js'
import { activationNames, activations } from '../nn/activation.js'
import { norm } from '../nn/norm.js'
import { convolution, type Forward, linear, type Site } from '../nn/site.js'
import { layerCount, parseModelConfig, refuseField, size } from './config_fields.js'
import type { ImageClassifier } from './image_classifier.js'
import { SiteBuilder, type WeightSource } from './weights.js'

const sides = z.union([size, z.tuple([size, size])])
const schema = z.looseObject({
  model_type: z.literal('vit'),
  architectures: z.array(z.string()).nonempty().default(['ViTForImageClassification']),
  hidden_size: size.default(768),
  num_hidden_layers: layerCount.default(12),
  num_attention_heads: size.default(12),
  intermediate_size: size.default(3072),
  hidden_act: z.enum(activationNames).default('gelu'),
  layer_norm_eps: z.number().positive().default(1e-12),
  image_size: sides.default(224),
  patch_size: sides.default(16),
  num_channels: size.default(3),
  qkv_bias: z.boolean().default(true),
  id2label: z.record(z.string(), z.string()).optional(),
})

interface Layer {
  readonly path: string
  readonly before: Site
  readonly query: Site
  readonly key: Site
  readonly value: Site
  readonly output: Site
  readonly after: Site
  readonly up: Site
  readonly down: Site
}

/** @throws ERR_HEDDLE_FORMAT when the configuration or a tensor does not fit */
export function vit(configuration: unknown, source: WeightSource, place = 'config.json'): ImageClassifier {
  const config = parseModelConfig(schema, configuration, place)
  const { hidden_size: dim, num_attention_heads: heads, num_channels: channels } = config
  const [height, width] = pair(config.image_size)
  const patch = pair(config.patch_size)
  if (dim % heads !== 0) refuseField(place, 'num_attention_heads', `a divisor of ${dim}`, heads)
  if (height % patch[0] !== 0 || width % patch[1] !== 0)
    refuseField(place, 'patch_size', `a divisor of image_size, ${height}×${width}`, config.patch_size)
  const positions = 1 + (height / patch[0]) * (width / patch[1])
  const labels = Object.values(config.id2label ?? { 0: 'LABEL_0', 1: 'LABEL_1' })

  const builder = new SiteBuilder(source)
  const classToken = builder.parameter('vit.embeddings.cls_token', [1, 1, dim])
  const positionTable = builder.parameter('vit.embeddings.position_embeddings', [1, positions, dim])
  const patches = builder.conv2d('vit.embeddings.patch_embeddings.projection', [dim, channels, ...patch], {
    stride: patch,
  })
  const layers = Array.from({ length: config.num_hidden_layers }, (_, index): Layer => {
    const path = `vit.encoder.layer.${index}`
    const dense = (name: string, out: number, inner: number, bias = true): Site =>
      builder.linear(`${path}.${name}`, [out, inner], { bias })
    return {
      path,
      before: builder.norm(`${path}.layernorm_before`, dim, true),
      query: dense('attention.attention.query', dim, dim, config.qkv_bias),
      key: dense('attention.attention.key', dim, dim, config.qkv_bias),
      value: dense('attention.attention.value', dim, dim, config.qkv_bias),
      output: dense('attention.output.dense', dim, dim),
      after: builder.norm(`${path}.layernorm_after`, dim, true),
      up: dense('intermediate.dense', config.intermediate_size, dim),
      down: dense('output.dense', dim, config.intermediate_size),
    }
  })
  const finalNorm = builder.norm('vit.layernorm', dim, true)
  const classifier = config.architectures.includes('ViTForImageClassification')
    ? builder.linear('classifier', [labels.length, dim], { bias: true, isOutput: true })
    : undefined
  const style = { kind: 'layer', eps: config.layer_norm_eps } as const
  const activate = activations[config.hidden_act]

  const embed = (pixels: Sym, forward: Forward): Sym => {
    const [batch] = pixels.shape as [number]
    const grid = convolution(patches, pixels, forward)
    const rows = transpose(reshape(grid, [batch, dim, positions - 1]), [0, 2, 1])
    return add(concat([broadcastTo(read(classToken), [batch, 1, dim]), rows], 1), read(positionTable))
  }

  const block = (layer: Layer, x: Sym, batch: number, forward: Forward): Sym => {
    const inner = norm(layer.before, x, style, forward)
    const split = (site: Site): Sym => reshape(linear(site, inner, forward), [batch, positions, heads, dim / heads])
    const mixed = attention(split(layer.query), split(layer.key), split(layer.value))
    const attended = add(x, linear(layer.output, reshape(mixed, [batch * positions, dim]), forward))
    const normed = norm(layer.after, attended, style, forward)
    return add(attended, linear(layer.down, activate(linear(layer.up, normed, forward)), forward))
  }

  return {
    config,
    architecture: config.model_type,
    sites: builder.sites,
    maxPositions: positions,
    imageShape: [channels, height, width],
    labels: classifier ? labels : [],
    hiddenSize: dim,
    ...(classifier ? { outputSite: classifier } : {}),
    weights: () => builder.weights(),
    async hidden(pixels, forward) {
      const [batch] = pixels.shape as [number]
      let x = reshape(embed(pixels, forward), [batch * positions, dim])
      for (const layer of layers) {
        x = x.node.trace.within(layer.path, () => block(layer, x, batch, forward))
        await pause()
      }
      return reshape(norm(finalNorm, x, style, forward), [batch, positions, dim])
    },
    logits(hidden, forward) {
      if (!classifier)
        throw new HeddleError('ERR_HEDDLE_ARGUMENT', {
          place: 'ImageClassifier.logits',
          expected: 'a checkpoint with a classifier',
          got: 'one without',
        })
      const first = slice(hidden, [{ axis: 1, start: 0, end: 1 }])
      return linear(classifier, reshape(first, [-1, dim]), forward)
    },
  }
}

const pair = (side: number | readonly [number, number]): readonly [number, number] =>
  typeof side === 'number' ? [side, side] : side
