/** Values that gradients do not go through. */
import { defineOperator } from '../operator.js'
import type { Sym } from '../sym.js'

const apply = defineOperator({
  name: 'stop_gradient',
  kind: 'alias',
  types: ([x]) => [x!],
  vjp: () => [undefined],
})

/** x as a constant of differentiation, PyTorch's `detach`. */
export const stopGradient = (x: Sym): Sym => apply([x])[0]!
