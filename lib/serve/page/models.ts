/** The base and the adapters as the page shows them. */
import { readFile, stat } from 'node:fs/promises'
import { join } from 'node:path'
import type { Engine } from '../../engine/engine.js'
import type { AdapterCard, AdapterFacts, BaseCard } from './messages.js'

/** What is known of the base. */
export function baseCard(name: string, engine: Pick<Engine, 'model' | 'state'>): Omit<BaseCard, 'newTokens'> {
  const { model } = engine
  return {
    name,
    parameters: model.network.weights().reduce((total, { tensor }) => total + tensor.size, 0),
    precision: model.precision,
    maxTokens: engine.state().maxTokens,
    isChat: model.tokenizer.hasChatTemplate,
  }
}

/** Reads about adapters once, and again when their folder's config has changed. */
export class AdapterCards {
  readonly #known = new Map<string, { readonly changed: number; readonly facts: AdapterFacts }>()

  /** @param folder that of all adapters */
  constructor(readonly folder: string) {}

  async list(engine: Pick<Engine, 'adapterNames' | 'state'>): Promise<AdapterCard[]> {
    const adapterNames = new Set(engine.adapterNames)
    const loaded = new Set(engine.state().adapters.loaded)
    for (const name of this.#known.keys()) if (!adapterNames.has(name)) this.#known.delete(name)
    const cards: AdapterCard[] = []
    for (const name of adapterNames) cards.push({ name, isLoaded: loaded.has(name), about: await this.#about(name) })
    return cards
  }

  /** Null for an adapter that lies elsewhere, or is being replaced right now. */
  async #about(name: string): Promise<AdapterFacts | null> {
    const folder = join(this.folder, name)
    try {
      const { mtimeMs: changed } = await stat(join(folder, 'adapter_config.json'))
      const known = this.#known.get(name)
      if (known?.changed === changed) return known.facts
      const facts = await factsOf(folder)
      this.#known.set(name, { changed, facts })
      return facts
    } catch {
      return null
    }
  }
}

async function factsOf(folder: string): Promise<AdapterFacts> {
  const config = JSON.parse(await readFile(join(folder, 'adapter_config.json'), 'utf8')) as {
    readonly peft_type?: unknown
    readonly r?: unknown
  }
  const { size: bytes } = await stat(join(folder, 'adapter_model.safetensors'))
  return { method: String(config.peft_type), rank: typeof config.r === 'number' ? config.r : null, bytes }
}
