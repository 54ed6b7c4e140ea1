// einsum: what every equation means, as torch has it; and the order in which several operands are multiplied.
import test from 'ava'
import { einsum } from '../lib/graph/ops/einsum.js'
import { program } from '../lib/graph/program.js'
import { tensor, zeros } from '../lib/tensor/tensor.js'
import { randomNumbers } from './random_numbers.js'
import { testAgainstTorch } from './support/golden_operators.js'

testAgainstTorch('einsums', { einsum: (operands, { equation }) => einsum(equation, ...operands) })

test('a chain is multiplied from its cheap end', async (t) => {
  // (2000 x 2000)(2000 x 2000)(2000 x 1): 8 million multiplications from the right, 8 billion from the left.
  const chain = program((a, b, c) => einsum('ij,jk,kl->il', a!, b!, c!))
  const { peakBytes } = await chain.plan([zeros([2000, 2000]), zeros([2000, 2000]), zeros([2000, 1])])
  t.true(peakBytes < 2000 * 2000 * 4)
})

test('products that fit a matrix product as they lie are not transposed', async (t) => {
  const a = tensor(randomNumbers(12, 1), [4, 3])
  for (const [equation, shape] of [
    ['ji,jk->ik', [4, 5]],
    ['ji,kj->ik', [5, 4]],
  ] as const) {
    const { instructions } = await program((x, y) => einsum(equation, x!, y!)).plan([a, zeros(shape)])
    t.is(instructions, 1, equation)
  }
})

test('equations that cannot be meant are refused', async (t) => {
  const x = zeros([2, 3])
  const refused = async (equation: string, code: string, count = 1) =>
    t.throwsAsync(program((value) => einsum(equation, ...new Array(count).fill(value!)))(x), {
      code,
      message: /einsum/,
    })
  await refused('ij->k', 'ERR_HEDDLE_ARGUMENT')
  await refused('ij->ii', 'ERR_HEDDLE_ARGUMENT')
  await refused('ij,jk', 'ERR_HEDDLE_ARGUMENT')
  await refused('i1', 'ERR_HEDDLE_ARGUMENT')
  await refused('ij->i->j', 'ERR_HEDDLE_ARGUMENT')
  await refused('ijk', 'ERR_HEDDLE_SHAPE')
  await refused('i', 'ERR_HEDDLE_SHAPE')
  await refused('ii', 'ERR_HEDDLE_SHAPE')
  await refused('ij,jk', 'ERR_HEDDLE_SHAPE', 2)
})
