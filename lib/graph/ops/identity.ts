/** A value under another name: it stays where it is and takes no instruction. */
import { defineOperator } from '../operator.js'
import type { Sym } from '../sym.js'

const identityOf = defineOperator({
  name: 'identity',
  kind: 'alias',
  types: ([x]) => [x!],
  vjp: ({ gradients: [g] }) => [g],
})

/** x as a value of its own, so that a derivative can tell this use of x from another. */
export const identity = (x: Sym): Sym => identityOf([x])[0]!
