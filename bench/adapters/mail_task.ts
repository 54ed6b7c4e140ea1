/** Spam or ham with MiniLM, in this process: what the experiments on mails have in common. */
import type { Adapter } from '../../lib/adapters/adapter.js'
import type { Parametrization } from '../../lib/adapters/parametrization.js'
import { sequenceClassification } from '../../lib/objectives/sequence_classification.js'
import { adamw } from '../../lib/optim/adamw.js'
import { loadSequenceClassifier, type SequenceClassifier } from '../../lib/sequence_classifier.js'
import { evaluate } from '../../lib/train/evaluate.js'
import { train } from '../../lib/train/train.js'
import type { Files } from './files.js'

const maxLength = 64

/** A MiniLM with a new head. */
export const mailModel = ({ model }: Pick<Files, 'model'>, seed: number): Promise<SequenceClassifier> =>
  loadSequenceClassifier(model, { labels: ['ham', 'spam'], seed })

/** How {@link trainOnMails} goes. */
export interface MailTraining {
  readonly lr: number
  readonly steps: number
  readonly seed: number
}

/** Batches of 16 mails of at most 64 tokens, AdamW with a linear schedule. @returns the adapter that was trained */
export async function trainOnMails(
  model: SequenceClassifier,
  { training }: Pick<Files, 'training'>,
  what: { readonly method: Parametrization } | { readonly adapter: Adapter },
  { lr, steps, seed }: MailTraining,
): Promise<Adapter> {
  const options = {
    data: training,
    objective: sequenceClassification(),
    optimizer: adamw({ lr, weightDecay: 0 }),
    schedule: 'linear',
    warmupRatio: 0.1,
    batchSize: 16,
    maxLength,
    maxSteps: steps,
    seed,
  } as const
  for await (const _ of train(model, { ...options, ...what }));
  return 'adapter' in what ? what.adapter : model.adapters.at(-1)!
}

/** Share of the judging mails that get their label. */
export async function mailAccuracy(
  model: SequenceClassifier,
  { test }: Pick<Files, 'test'>,
  adapter?: Adapter,
): Promise<number> {
  const objective = sequenceClassification()
  const { tokenizer, network } = model
  const data = await objective.open(test, { tokenizer, network, maxLength, evaluationFraction: 0, seed: 0 })
  return (await evaluate(model, data, { objective, adapter, batchSize: 16 })).accuracy
}

/** As text: 0.9375 → "93.8 %". */
export const percent = (share: number): string => `${(100 * share).toFixed(1)} %`
