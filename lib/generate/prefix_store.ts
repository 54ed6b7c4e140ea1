/**
 * Keys and values of the beginnings of earlier texts, in blocks of tokens that hang on the block before them: texts that
 * begin alike share blocks, and the least recently used ones go first.
 */
import type { Tensor } from '../tensor/tensor.js'

/** Tokens of a block. */
export const blockTokens = 64

/** A block with its tensors: keys and values of every layer. */
interface Block {
  readonly id: number
  readonly tensors: readonly Tensor[]
  readonly byteLength: number
}

export class PrefixStore {
  readonly #maxBytes: number
  /** Least recently used first; a block's key names the block before it. */
  readonly #blocks = new Map<string, Block>()
  #byteLength = 0
  #nextId = 0

  constructor(maxBytes: number) {
    this.#maxBytes = maxBytes
  }

  /**
   * The blocks that begin `tokens`, under the weights that `root` stands for.
   * @param most tokens at most
   */
  find(root: string, tokens: ArrayLike<number>, most: number): (readonly Tensor[])[] {
    const found: (readonly Tensor[])[] = []
    let parent = root
    while ((found.length + 1) * blockTokens <= most) {
      const key = keyOf(parent, tokens, found.length)
      const block = this.#blocks.get(key)
      if (!block) break
      this.#blocks.delete(key)
      this.#blocks.set(key, block)
      found.push(block.tensors)
      parent = `${block.id}`
    }
    return found
  }

  /** Keeps the whole blocks of a text; `read` gives the tensors of the block at a position. */
  async add(
    root: string,
    tokens: ArrayLike<number>,
    read: (position: number) => Promise<readonly Tensor[]>,
  ): Promise<void> {
    let parent = root
    for (let index = 0; (index + 1) * blockTokens <= tokens.length; index += 1) {
      const key = keyOf(parent, tokens, index)
      const known = this.#blocks.get(key)
      const block = known ?? this.#made(await read(index * blockTokens))
      if (!block) return
      this.#blocks.delete(key)
      this.#blocks.set(key, block)
      parent = `${block.id}`
    }
  }

  clear(): void {
    for (const { tensors } of this.#blocks.values()) for (const each of tensors) each.dispose()
    this.#blocks.clear()
    this.#byteLength = 0
  }

  /** A block of these tensors, for which others have to go; undefined when it is larger than the store. */
  #made(tensors: readonly Tensor[]): Block | undefined {
    const byteLength = tensors.reduce((sum, { native }) => sum + native.byteLength, 0)
    if (byteLength > this.#maxBytes) {
      for (const each of tensors) each.dispose()
      return undefined
    }
    for (const [key, oldest] of this.#blocks) {
      if (this.#byteLength + byteLength <= this.#maxBytes) break
      this.#blocks.delete(key)
      this.#byteLength -= oldest.byteLength
      for (const each of oldest.tensors) each.dispose()
    }
    this.#byteLength += byteLength
    return { id: this.#nextId++, tensors, byteLength }
  }
}

const keyOf = (parent: string, tokens: ArrayLike<number>, index: number): string =>
  `${parent}:${Array.from({ length: blockTokens }, (_, i) => tokens[index * blockTokens + i]).join(',')}`
