/**
 * Makes `rotations-conv-heddle/<variant>/`, adapters written by Heddle. Then real PEFT says what they compute:
 *
 *   node dist/test/golden/make_rotations_conv_heddle.js
 *   python test/golden/make_rotations_conv.py --check
 */
import { rm } from 'node:fs/promises'
import { Adapter } from '../../lib/adapters/adapter.js'
import { golden } from '../golden.js'
import { disturb } from '../support/one_site.js'
import { rotationMethods, rotationNetwork } from '../support/rotations_conv.js'

await rm(golden('rotations-conv-heddle'), { recursive: true, force: true })
for (const [name, method] of Object.entries(rotationMethods)) {
  const adapter = await Adapter.attach(rotationNetwork(), method)
  await disturb(adapter, 0.3)
  await adapter.save(golden(`rotations-conv-heddle/${name}`))
}
