// Architectures unlike Llama, end to end: trained from random weights, they learn, and generate as without a cache.
import test from 'ava'
import { program } from '../lib/graph/program.js'
import { loadModel } from '../lib/model.js'
import { writeRandomCheckpoint } from '../lib/models/random_checkpoint.js'
import { adamw } from '../lib/optim/adamw.js'
import { tensor } from '../lib/tensor/tensor.js'
import { train } from '../lib/train/train.js'
import { goldenJson } from './golden.js'
import { textFile, tinyModelFolder } from './tiny_model.js'

// Learned positions and a transposed, fused projection; windows, caps and norms on all sides; parallel with fused heads.
for (const name of ['gpt2', 'gemma2', 'gpt-neox'])
  test(`${name}: learns a text, and its greedy text is that of the uncached logits`, async (t) => {
    const folder = await tinyModelFolder()
    const config = goldenJson<Record<string, unknown>>(`models/${name}/config.json`)
    await writeRandomCheckpoint(folder, { ...config, vocab_size: 257 }, { seed: 3 })
    const model = await loadModel(folder)
    const losses: number[] = []
    const data = await textFile()
    for await (const { loss } of train(model, {
      data,
      full: true,
      maxSteps: 25,
      optimizer: adamw({ lr: 1e-2 }),
      batchSize: 8,
      maxLength: 32,
    }))
      losses.push(loss)
    t.true(losses.at(-1)! < 0.8 * losses[0]!, `${losses[0]} → ${losses.at(-1)}`)

    const prompt = 'A stitch in '
    let text = ''
    for await (const piece of model.generate(prompt, { maxTokens: 12, temperature: 0 })) text += piece
    const logits = program(async (ids) => {
      const forward = { precision: 'f32', training: false } as const
      return model.network.logits(await model.network.hidden({ ids: ids! }, forward), forward)
    })
    const ids = [...(await model.tokenizer.encode(prompt))]
    const start = ids.length
    while (ids.length < start + 12) {
      const rows = (await (await logits(tensor(Int32Array.from(ids), [1, ids.length]))).data()) as Float32Array
      const last = rows.subarray(rows.length - model.network.vocabularySize)
      ids.push(last.indexOf(Math.max(...last)))
    }
    t.is(text, await model.tokenizer.decode(ids.slice(start)))
    await model.dispose()
  })
