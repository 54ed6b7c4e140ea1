/**
 * Counts what is not disposed, whether the collector would find it or not: import it before anything makes tensors. V8's own
 * count of external memory leaves native tensors out in Node 20.
 */
import { addon, NativeProgram, type NativeTensor } from '../../lib/native.js'

const made = new Set<NativeTensor>()

const noted = (tensor: NativeTensor): NativeTensor => {
  made.add(tensor)
  return tensor
}

const { tensorZeros, tensorFromData } = addon
const { run } = NativeProgram.prototype
Object.assign(addon, {
  tensorZeros: (...args: Parameters<typeof tensorZeros>) => noted(tensorZeros(...args)),
  tensorFromData: (...args: Parameters<typeof tensorFromData>) => noted(tensorFromData(...args)),
})
NativeProgram.prototype.run = async function (...args) {
  return (await run.apply(this, args)).map(noted)
}

/** What programs hold as constants is smaller. */
const smallest = 4 * 4096

/** Bytes of all tensors of more than 16 KiB that are not disposed. */
export function liveBytes(): number {
  for (const tensor of made) if (tensor.disposed) made.delete(tensor)
  return [...made].reduce((total, { byteLength }) => total + (byteLength > smallest ? byteLength : 0), 0)
}
