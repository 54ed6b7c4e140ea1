/** A pretrained image classifier with its adapters: pixels in, one score for each class out. */
import { z } from 'zod'
import { AdaptedModel } from './adapted_model.js'
import type { Adapter } from './adapters/adapter.js'
import { AdapterPrograms } from './adapters/adapter_programs.js'
import { parseConfig } from './config.js'
import { HeddleError } from './errors.js'
import { openCheckpoint } from './formats/checkpoint.js'
import type { HubOptions } from './formats/hub.js'
import type { Precision } from './graph/ops/matmul.js'
import { buildNetwork, siteStructures } from './models/build.js'
import type { ImageClassifier } from './models/image_classifier.js'
import { imageClassifiers } from './models/registry.js'
import { tensor } from './tensor/tensor.js'

/** Options of {@link loadImageClassifier}. */
export interface LoadImageClassifierOptions extends HubOptions {
  /** How frozen weights are stored and multiplied; default `f32`. */
  readonly precision?: Precision
}

/** Options of {@link ImageModel.logits}. */
export interface ImageScoreOptions {
  /** Default: none. */
  readonly adapter?: Adapter | undefined
  readonly signal?: AbortSignal | undefined
}

const schema = z.strictObject({ precision: z.enum(['f32', 'bf16']).default('f32') })

/**
 * Loads an image classifier (ViT): a folder in Hugging Face layout, or a Hugging Face id.
 * @throws ERR_HEDDLE_ARGUMENT, ERR_HEDDLE_IO, ERR_HEDDLE_FORMAT, ERR_HEDDLE_NETWORK
 */
export async function loadImageClassifier(
  source: string,
  options: LoadImageClassifierOptions = {},
): Promise<ImageModel> {
  const { precision: given, ...hub } = options
  const { precision } = parseConfig('loadImageClassifier', schema, { precision: given })
  const checkpoint = await openCheckpoint(source, hub)
  try {
    return new ImageModel(
      checkpoint.modelId,
      buildNetwork(imageClassifiers, checkpoint, await siteStructures(checkpoint)),
      precision,
    )
  } finally {
    checkpoint.close()
  }
}

/** An image classifier; made by {@link loadImageClassifier}. */
export class ImageModel extends AdaptedModel<ImageClassifier> {
  readonly #programs: AdapterPrograms

  constructor(source: string, network: ImageClassifier, precision: Precision) {
    super({ source, network, precision })
    this.#programs = new AdapterPrograms(network, { precision }, async ([pixels], forward) =>
      network.logits(await network.hidden(pixels!, forward), forward),
    )
  }

  /** Names of the classes. */
  get labels(): readonly string[] {
    return this.network.labels
  }

  /**
   * Scores of each image, `f32 [labels]`.
   * @param pixels images one after the other, each `[channels, height, width]` as the network's `imageShape` says,
   *   scaled and normalised as the checkpoint's preprocessor_config.json says
   * @throws ERR_HEDDLE_ARGUMENT, ERR_HEDDLE_ABORTED
   */
  async logits(pixels: Float32Array, { adapter, signal }: ImageScoreOptions = {}): Promise<Float32Array[]> {
    this.expectUsable('logits.adapter', adapter)
    const { imageShape, labels } = this.network
    const count = pixels.length / imageShape.reduce((product, size) => product * size, 1)
    if (!Number.isInteger(count) || count === 0)
      throw new HeddleError('ERR_HEDDLE_ARGUMENT', {
        place: 'logits.pixels',
        expected: `whole images of ${imageShape.join('×')} numbers`,
        got: `${pixels.length} numbers`,
      })
    const input = tensor(pixels, [count, ...imageShape])
    try {
      const result = await this.#programs.for(adapter).run([input], { signal })
      const scores = (await result.data()) as Float32Array
      result.dispose()
      return Array.from({ length: count }, (_, i) => scores.slice(i * labels.length, (i + 1) * labels.length))
    } finally {
      input.dispose()
    }
  }

  protected override forget(): void {
    this.#programs.dispose()
  }
}
