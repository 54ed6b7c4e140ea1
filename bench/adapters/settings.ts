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

const own = (
  label: string,
  method: string,
  learningRates: readonly number[],
  config: Setting['config'] = {},
): Setting => ({
  label,
  method,
  config,
  learningRates,
})

export const settings: readonly Setting[] = [
  { label: 'full fine-tuning', method: undefined, config: {}, learningRates: [3e-5, 1e-4] },
  lora('LoRA'),
  lora('rsLoRA', { use_rslora: true }),
  { ...lora('LoRA+'), learningRates: [2e-4, 5e-4], loraplusLrRatio: 16 },
  lora('DoRA', { use_dora: true }),
  lora('PiSSA', { init_lora_weights: 'pissa' }),
  lora('OLoRA', { init_lora_weights: 'olora' }),
  own('EVA', 'eva', [5e-4, 2e-3], { r: 8, lora_alpha: 16 }),
  own('AdaLoRA', 'adalora', [2e-3, 1e-2], { init_r: 12, target_r: 8, lora_alpha: 16, tinit: 5, tfinal: 10, deltaT: 5 }),
  own('VeRA', 'vera', [2e-2, 5e-2]),
  own('RandLoRA', 'randlora', [1e-4, 1e-3], { r: 32 }),
  own('(IA)³', 'ia3', [3e-3, 2e-2]),
  own('MiSS', 'miss', [1e-4, 5e-4], { r: 16 }),
  own('MiSS (bat)', 'miss', [1e-4, 5e-4], { r: 16, init_weights: 'bat' }),
  own('OFT', 'oft', [5e-4, 4e-3], { oft_block_size: 32 }),
  own('BOFT', 'boft', [5e-4, 4e-3], { boft_block_size: 4, boft_n_butterfly_factor: 1 }),
  own('LoRA-XS', 'lora_xs', [1e-3, 5e-3], { r: 32 }),
  own('LoRA-SB', 'lora_sb', [1e-3, 5e-3], { r: 32 }),
  own('SVFit', 'svfit', [3e-3, 2e-2], { r: 384 }),
  own('SALT', 'salt', [1e-3, 5e-3], { rank: 256, r_lora: 8 }),
  own('LaMDA', 'lamda', [5e-4, 2e-3], { r: 32 }),
  own('LoLDU', 'loldu', [1e-3, 2e-3], { rank: 384, lora_alpha: 384 }),
  own('FLoRA', 'flora', [5e-4, 2e-3], { r: 8, scale: 4 }),
  own('Monarch', 'monarch_adapter', [2e-3, 5e-3]),
  own('Compacter', 'compacter', [3e-3, 1e-2], { hypercomplex_division: 4, task_reduction_factor: 16 }),
  own('S²FT', 's2ft', [2e-4, 1e-3], { o_ratio: 0.1, d_ratio: 0.1 }),
  own('DSEE', 'dsee', [5e-4, 2e-3], { lora_r: 8, lora_alpha: 16, num_sparse: 64 }),
  own('LQ-LoRA', 'lq_lora', [5e-4, 2e-3], { num_ranks: 8 }),
  own('DiffoRA', 'diffora', [5e-4, 2e-3], { r: 8, lora_alpha: 16, search_steps: 20 }),
]
