/**
 * Feeds kernels instructions that a stranger might write, and ends with 0 when each of them ran or was refused with a
 * HeddleError. Says on stdout what it is about to try, so that the last line tells what a crash was about.
 *
 * Usage: hostile_child.js <kernel,…> <rounds> [device]
 */
import { HeddleError } from '../../lib/errors.js'
import { addon, type Device, type NativeTensor } from '../../lib/native.js'
import { dtypeSize, dtypes, elementCount } from '../../lib/tensor/dtype.js'
import { randomNumbers } from '../random_numbers.js'
import { prepare, results } from './both_devices.js'
import { type Attribute, type Buffer as Declaration, encode } from './instruction_list.js'
import { type Call, kernels, type Operand, type Random } from './kernel_calls.js'

/** What one case may use: enough for every template, little enough that no hostile shape fills the machine. */
const maxBytes = 2 ** 22

const sizes = [0, 1, 2, 3, 5, 8, 17, 64, 127, 128, 513, 2 ** 31 - 1, 2 ** 31, 2 ** 32, 2 ** 40, 2 ** 52, -1]
const integers = [-1, 0, 1, 2, 7, 100, -(2 ** 31), 2 ** 31, 2 ** 53, -(2 ** 53)]
const numbers = [0, -1, 0.5, 1e-300, 1e300, Number.NaN, Number.POSITIVE_INFINITY, Number.NEGATIVE_INFINITY]
const words = ['', 'f32', 'bf16', 'add', 'constant', 'select', 'no such thing']

const [names, rounds, device = 'cpu'] = process.argv.slice(2) as [string, string, Device?]
let draws: Float32Array = new Float32Array()
let drawn = 0
const random: Random = {
  below: (limit) => Math.floor(((draws[drawn++ % draws.length]! + 1) / 2) * limit),
  pick: (values) => values[random.below(values.length)]!,
}

function hostileShape(shape: readonly number[]): number[] {
  const changed = [...shape]
  const at = random.below(changed.length + 1)
  switch (random.below(5)) {
    case 0:
      changed.splice(at, 1)
      break
    case 1:
      changed.splice(at, 0, random.pick(sizes))
      break
    case 2:
      changed.reverse()
      break
    default:
      if (changed.length > 0) changed[at % changed.length] = random.pick(sizes)
  }
  return changed
}

function hostileAttribute(value: Attribute): Attribute {
  if (typeof value === 'string') return random.pick<Attribute>([...words, 1])
  if (typeof value === 'number') return random.pick<Attribute>([...integers, ...numbers, 'text', []])
  const texts = value.some((each) => typeof each === 'string')
  const list: (string | number)[] = [...value]
  const at = random.below(list.length + 1)
  const fresh = texts ? random.pick(words) : random.pick([...integers, ...sizes])
  const kind = random.below(3)
  if (kind === 0) list.splice(at, 1)
  else if (kind === 1) list.splice(at, 0, fresh)
  else list[Math.min(at, Math.max(0, list.length - 1))] = fresh
  return list as Attribute
}

/** One thing about the call made wrong, or at least different. */
function disturb({ inputs, outputs, attributes }: Call): void {
  const operands = random.below(3) > 0 ? inputs : outputs
  const at = random.below(operands.length + 1)
  const operand = operands[at] ?? null
  const which = random.below(attributes.length)
  switch (random.below(9)) {
    case 0:
      operands.splice(at, 1)
      break
    case 1:
      operands.splice(at, 0, random.pick([...inputs, ...outputs, null]))
      break
    case 2:
      if (at < operands.length) operands[at] = null
      break
    case 3:
      if (operand !== null) operands[at] = { ...operand, dtype: random.pick(dtypes) }
      break
    case 4:
      if (which < attributes.length) attributes.splice(which, 1)
      break
    case 5:
    case 6:
      if (which < attributes.length)
        attributes[which] = [attributes[which]![0], hostileAttribute(attributes[which]![1])]
      break
    default:
      if (operand !== null) operands[at] = { ...operand, shape: hostileShape(operand.shape) }
  }
}

const bytesOf = ({ dtype, shape }: Operand): number => elementCount(shape) * dtypeSize(dtype)

function contents({ dtype, shape }: Operand): NativeTensor {
  const bytes = new Uint8Array(elementCount(shape) * dtypeSize(dtype))
  const index = new Int32Array(bytes.buffer, 0, Math.floor(bytes.length / 4))
  // Small integers for indices, now and then any bits at all; floats of every kind.
  const wild = random.below(4) === 0
  if (dtype === 'i32' && !wild) for (let i = 0; i < index.length; ++i) index[i] = random.below(4)
  else if (dtype === 'f32' && !wild) new Float32Array(bytes.buffer).set(randomNumbers(index.length, random.below(1000)))
  else for (let i = 0; i < bytes.length; ++i) bytes[i] = random.below(256)
  return addon.tensorFromData(dtype, shape, bytes)
}

/** Compiles the call, and runs it unless it is too large for that. Says whether it ran. */
async function attempt(kernel: string, call: Call): Promise<boolean> {
  const buffers: Declaration[] = []
  const declare = (declaration: Declaration): number => buffers.push(declaration) - 1
  const operands = [...call.inputs, ...call.outputs].filter((operand) => operand !== null)
  const small = operands.every((operand) => bytesOf(operand) <= maxBytes && operand.shape.every((size) => size >= 0))
  const given: Operand[] = []
  const bound: Operand[] = []
  const declared = new Map<Operand, number>()
  const inputs = call.inputs.map((operand) => {
    if (operand === null) return null
    const known = declared.get(operand)
    if (known !== undefined) return known
    // An output that names its input, which cache_update must and some others may: the same, bound buffer.
    const shared = call.outputs.includes(operand)
    const held = small && (shared || random.below(3) === 0)
    const list = held ? bound : given
    const id = declare({ ...operand, kind: held ? 'bound' : 'input', index: list.push(operand) - 1 })
    declared.set(operand, id)
    return id
  })
  let wanted = 0
  const outputs = call.outputs.map((operand) => {
    if (operand === null) return null
    return declared.get(operand) ?? declare({ ...operand, kind: 'output', index: wanted++ })
  })
  const bytes = encode({ buffers, instructions: [{ op: kernel, inputs, outputs, attributes: call.attributes }] })
  const tensors = bound.map(contents)
  const program = await addon.compile(bytes, tensors, device)
  const runs = small && program.peakBytes < 64 * maxBytes
  if (runs) await program.run(given.map(contents))
  return runs
}

/** Some kernels want contents that chance does not give: those that they are compared with. */
async function runsWithItsContents(kernel: string): Promise<boolean> {
  for (let tries = 0; tries < 8; ++tries) {
    try {
      await results(prepare(kernel, kernels[kernel]!(random), random), device)
      return true
    } catch (error) {
      if (!(error instanceof HeddleError) || error.code !== 'ERR_HEDDLE_ARGUMENT') throw error
    }
  }
  return false
}

/** Devices number elements with 32 bits in places, and may say so. */
const isVast = ({ inputs, outputs }: Call): boolean =>
  [...inputs, ...outputs].some((operand) => operand !== null && elementCount(operand.shape) > 2 ** 30)

for (const kernel of names.split(',')) {
  draws = randomNumbers(200_000, [...kernel].reduce((sum, letter) => sum * 31 + letter.charCodeAt(0), 7) >>> 0)
  drawn = 0
  let ran = 0
  for (let round = 0; round < Number(rounds); ++round) {
    const call = kernels[kernel]!(random)
    for (let times = Math.min(round % 4, 3); times > 0; --times) disturb(call)
    process.stdout.write(`${kernel} ${JSON.stringify(call)}\n`)
    try {
      if (await attempt(kernel, call)) ++ran
    } catch (error) {
      if (!(error instanceof HeddleError)) throw error
      if (round % 4 === 0 && error.code !== 'ERR_HEDDLE_ARGUMENT') throw error
      // What the CPU accepts and the device does not is a defect of its kernel, races included.
      if (device !== 'cpu' && error.code === 'ERR_HEDDLE_INTERNAL') throw error
      if (device !== 'cpu' && error.code === 'ERR_HEDDLE_DEVICE' && !isVast(call)) throw error
    }
  }
  if (ran === 0 && !(await runsWithItsContents(kernel))) throw new Error(`no instruction of ${kernel} ran`)
}
