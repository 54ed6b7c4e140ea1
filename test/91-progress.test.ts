// Progress on a terminal and in a log.
import { Writable } from 'node:stream'
import test from 'ava'
import { progress } from '../lib/cli/progress.js'

class Screen extends Writable {
  text = ''
  constructor(readonly isTTY: boolean) {
    super()
  }
  override _write(chunk: Buffer, _: BufferEncoding, done: () => void): void {
    this.text += chunk.toString()
    done()
  }
}

test('a log gets one line for every ten per cent', (t) => {
  const stream = new Screen(false)
  const bar = progress({ label: 'Training', total: 200, stream })
  for (let step = 1; step <= 200; step++) bar.update(step, { note: `loss ${step}` })
  bar.stop()
  const lines = stream.text.trimEnd().split('\n')
  t.is(lines.length, 10)
  t.is(lines[0], 'Training 20/200 (10%) · loss 20')
  t.is(lines[9], 'Training 200/200 (100%) · loss 200')
})

test('stopping early prints where it stopped, once', (t) => {
  const stream = new Screen(false)
  const bar = progress({ label: 'Training', total: 100, stream })
  bar.update(3)
  bar.stop()
  bar.stop()
  t.is(stream.text, 'Training 3/100 (3%)\n')
})

test('a total may become known later, and bytes are shown as MiB', (t) => {
  const stream = new Screen(false)
  const bar = progress({ label: 'model', total: 0, unit: 'bytes', stream })
  bar.update(2 ** 20)
  bar.update(2 * 2 ** 20, { total: 4 * 2 ** 20 })
  bar.stop()
  t.is(stream.text, 'model 2.0 MiB/4.0 MiB (50%)\n')
})

test('a terminal gets a bar that ends complete', (t) => {
  const stream = new Screen(true)
  const bar = progress({ label: 'Training', total: 4, stream })
  for (let step = 1; step <= 4; step++) bar.update(step, { note: 'loss 1.5' })
  bar.stop()
  t.regex(stream.text, /Training █{24} 100% · 4\/4 · .* left · loss 1\.5/)
})
