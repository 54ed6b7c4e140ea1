/**
 * Replaces the MLP weights of the model that ships with Heddle by Monarch matrices of two thirds of their size, trains the
 * smaller model on a help desk's answers, and saves it. Beside each error stands that of a low-rank pair of the same size:
 * on weights that were trained dense the two are about as far away, which is why one trains on.
 *
 *   node dist/examples/monarch/main.js [folder]     where the smaller model is written; default: nowhere
 */
import { fileURLToPath } from 'node:url'
import {
  adamw,
  Dataset,
  evaluate,
  loadModel,
  lowRankMatrix,
  monarchMatrix,
  replaceLinear,
  train,
} from '../../lib/index.js'

const file = (path: string) => fileURLToPath(new URL(`../../../${path}`, import.meta.url))
const isShort = process.argv.includes('--ci')
const folder = process.argv.slice(2).find((argument) => !argument.startsWith('--'))

const model = await loadModel(file('models/heddle-tiny'))
const data = await Dataset.open(file('examples/data/support.jsonl'), model.tokenizer, { maxLength: 128 })
const lossNow = async (): Promise<number> => (await evaluate(model, data)).loss

const dense = await lossNow()
const replaced = await replaceLinear(model, ['gate_proj', 'up_proj', 'down_proj'], async (weight, { path }) => {
  const monarch = await monarchMatrix.fromDense(weight, { nblocks: 2 })
  const { parameterCount } = monarch.matrix
  const rank = Math.floor(parameterCount / (weight.shape[0]! + weight.shape[1]!))
  const pair = await lowRankMatrix.fromDense(weight, { rank })
  const percent = (error: number) => `${(100 * error).toFixed(1)} %`
  const share = percent(parameterCount / weight.size)
  console.log(
    `${path}: ${share} of the numbers, error ${percent(monarch.relativeError)}, low-rank ${percent(pair.relativeError)}`,
  )
  pair.matrix.dispose()
  return monarch
})
console.log(`${replaced.size} weights replaced`)

console.log(`loss: dense ${dense.toFixed(3)}, projected ${(await lossNow()).toFixed(3)}`)
const run = train(model, { full: true, data, epochs: isShort ? 2 : 20, optimizer: adamw({ lr: 1e-3 }) })
for await (const { index, total, loss } of run)
  if (index % 10 === 0 || index === total) console.log(`step ${index}/${total}  loss ${loss.toFixed(3)}`)
console.log(`loss: trained ${(await lossNow()).toFixed(3)}`)
if (folder) {
  await model.save(folder)
  console.log(`written to ${folder}`)
}
await model.dispose()
