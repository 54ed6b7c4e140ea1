/** How each method is set for the comparison: its paper's or reference's settings, scaled to models of this size. */

/** One row of the comparison. */
export interface Setting {
  /** As the table shows it. */
  readonly label: string
  /** Registry name; undefined trains all weights. */
  readonly method: string | undefined
  readonly config: Readonly<Record<string, unknown>>
  /** Rates that are tried with the first seed; the best on the validation mails is used for all seeds. */
  readonly learningRates: readonly number[]
  /** LoRA+'s ratio of the rates of B and A. */
  readonly loraplusLrRatio?: number
}

const lora = (label: string, config: Setting['config'] = {}): Setting => ({
  label,
  method: 'lora',
  config: { r: 8, lora_alpha: 16, ...config },
  learningRates: [5e-4, 2e-3],
})

export const settings: readonly Setting[] = [
  { label: 'full fine-tuning', method: undefined, config: {}, learningRates: [3e-5, 1e-4] },
  lora('LoRA'),
  lora('rsLoRA', { use_rslora: true }),
  { ...lora('LoRA+'), learningRates: [2e-4, 5e-4], loraplusLrRatio: 16 },
  lora('DoRA', { use_dora: true }),
  lora('PiSSA', { init_lora_weights: 'pissa' }),
  lora('OLoRA', { init_lora_weights: 'olora' }),
]
