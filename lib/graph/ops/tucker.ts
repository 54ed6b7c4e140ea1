/**
 * Products of a tensor with a matrix along each of its axes, and what follows: a Tucker tensor G ×₁ A₁ … ×_N A_N made
 * dense, and a convolution with a Tucker kernel that never is.
 */
import { elementCount, sameShape } from '../../tensor/dtype.js'
import { misuse, typeText } from '../operator.js'
import type { Sym } from '../sym.js'
import { axisOf, moveAxis } from './axes.js'
import { type Conv2dOptions, conv2d } from './conv.js'
import { broadcastTo } from './elementwise.js'
import { transpose } from './index.js'
import { matmul } from './matmul.js'
import { reshape } from './reduce.js'

/** Options of {@link modeProduct} and {@link modeProducts}. */
export interface ModeProductOptions {
  /** Multiply with the transposed matrices `[size, j]`. */
  readonly transpose?: boolean
}

/**
 * The mode-n product x ×ₙ A: y[…, j, …] = Σᵢ A[j, i] x[…, i, …].
 * @param matrix `[j, size of the axis]`
 * @returns x's shape with the axis j long
 * @throws ERR_HEDDLE_SHAPE
 */
export function modeProduct(x: Sym, matrix: Sym, axis: number, options: ModeProductOptions = {}): Sym {
  const { transpose: turned = false } = options
  const at = axisOf('mode_product', x, axis)
  const size = x.shape[at]!
  if (matrix.rank !== 2 || matrix.shape[turned ? 0 : 1] !== size)
    misuse('mode_product', turned ? `a matrix [${size}, j]` : `a matrix [j, ${size}]`, typeText(matrix))
  const j = matrix.shape[turned ? 1 : 0]!
  const outer = elementCount(x.shape.slice(0, at))
  const inner = elementCount(x.shape.slice(at + 1))
  const shape = x.shape.with(at, j)
  if (inner === 1) return reshape(matmul(reshape(x, [outer, size]), matrix, { transposeB: !turned }), shape)
  if (outer === 1) return reshape(matmul(matrix, reshape(x, [size, inner]), { transposeA: turned }), shape)
  // A copy of the matrix for each outer index, or the axis brought to the end: what moves less.
  if (j > 2 * inner) return moveAxis(modeProduct(moveAxis(x, at, -1), matrix, -1, options), -1, at)
  const copies = broadcastTo(turned ? transpose(matrix) : matrix, [outer, j, size])
  return reshape(matmul(copies, reshape(x, [outer, size, inner])), shape)
}

/**
 * x ×₁ A₁ … ×_N A_N, in the order of the fewest multiplications; axes without a matrix stay as they are.
 * @param matrices one per axis, `[j, size]`
 * @throws ERR_HEDDLE_SHAPE
 */
export function modeProducts(x: Sym, matrices: readonly (Sym | undefined)[], options: ModeProductOptions = {}): Sym {
  if (matrices.length !== x.rank)
    misuse('mode_products', `a matrix or none for each of ${x.rank} axes`, `${matrices.length}`)
  const targets = matrices.map((matrix) => matrix?.shape[options.transpose ? 1 : 0])
  return modeOrder(x.shape, targets).axes.reduce((value, axis) => modeProduct(value, matrices[axis]!, axis, options), x)
}

/** An order of mode products. */
export interface ModeOrder {
  /** Axes that get a product, first to last. */
  readonly axes: readonly number[]
  /** Floating-point operations of all products. */
  readonly flops: number
}

/**
 * The order of the fewest operations for products that bring the axes of `shape` to `targets` (undefined: no product),
 * found among all orders by way of the sets of axes that are done.
 */
export function modeOrder(shape: readonly number[], targets: readonly (number | undefined)[]): ModeOrder {
  const axes = shape.flatMap((_, axis) => (targets[axis] === undefined ? [] : [axis]))
  const best: ModeOrder[] = [{ axes: [], flops: 0 }]
  for (let set = 1; set < 1 << axes.length; set += 1)
    best[set] = axes
      .flatMap((axis, bit) => {
        if (!(set & (1 << bit))) return []
        const before = best[set ^ (1 << bit)]!
        const size = shape.reduce((count, full, i) => count * (before.axes.includes(i) ? targets[i]! : full), 1)
        return [{ axes: [...before.axes, axis], flops: before.flops + 2 * size * targets[axis]! }]
      })
      .reduce((a, b) => (b.flops < a.flops ? b : a))
  return best.at(-1)!
}

/** The parts of a convolution's kernel w[o, i, h, v] = Σ core[a, b, c, d] out[o, a] in[i, b] height[h, c] width[v, d]. */
export interface TuckerKernel {
  /** `[ro, ri, jh, jw]`; jh × jw is the window where there is no `height` and `width`. */
  readonly core: Sym
  /** `[o, ro]` */
  readonly out: Sym
  /** `[c, ri]`; with groups `[c / groups, ri]`, the same for each */
  readonly in: Sym
  /** `[kh, jh]` */
  readonly height?: Sym | undefined
  /** `[kw, jw]` */
  readonly width?: Sym | undefined
}

/** Options of {@link tuckerConv2d}. */
export interface TuckerConv2dOptions extends Conv2dOptions {
  /** Default: the one with fewer operations. */
  readonly path?: 'stages' | 'dense'
}

/** The kernel `[o, c, kh, kw]` as a whole. */
export const tuckerKernelToDense = ({ core, out, in: input, height, width }: TuckerKernel): Sym =>
  modeProducts(core, [out, input, height, width])

/**
 * conv2d with a kernel in Tucker form, without making the kernel: 1 × 1 from c to ri channels, the core with the window,
 * stride, padding and dilation, 1 × 1 from ro to o channels. Groups of channels have the first two stages in common; the
 * third has their own rows of `out`. Where the ranks are so high that this costs more than the dense kernel, the kernel
 * is made.
 * @param x `[n, c, h, w]`
 * @returns `[n, o, oh, ow]`
 * @throws ERR_HEDDLE_SHAPE
 */
export function tuckerConv2d(x: Sym, kernel: TuckerKernel, options: TuckerConv2dOptions = {}): Sym {
  const { bias, path, groups = 1, ...window } = options
  const { core, out, in: input, height, width } = kernel
  const [ro, ri] = core.shape as [number, number]
  const [o, c] = [out.shape[0]!, input.shape[0]!]
  const fits = x.rank === 4 && core.rank === 4 && sameShape(out.shape, [o, ro]) && sameShape(input.shape, [c, ri])
  if (!fits || x.shape[1] !== c * groups || o % groups !== 0)
    misuse(
      'tucker_conv2d',
      `x [n, ${groups} c, h, w], core [ro, ri, jh, jw], out [o, ro] and in [c, ri]`,
      [x, core, out, input].map(typeText).join(', '),
    )
  const spatial = modeProducts(core, [undefined, undefined, height, width])
  const chosen = path ?? tuckerConvPath(x.shape, { o, c, ro, ri, groups, window: elementCount(spatial.shape.slice(2)) })
  if (chosen === 'dense')
    return conv2d(x, modeProducts(spatial, [out, input, undefined, undefined]), { bias, groups, ...window })
  const [n, , h, w] = x.shape as [number, number, number, number]
  const narrow = conv2d(reshape(x, [n * groups, c, h, w]), reshape(transpose(input), [ri, c, 1, 1]))
  const moved = conv2d(narrow, spatial, window)
  return conv2d(reshape(moved, [n, groups * ro, ...moved.shape.slice(2)]), reshape(out, [o, ro, 1, 1]), {
    bias,
    groups,
  })
}

/**
 * Per pixel, stride 1 and g groups: g·c·ri + g·ri·ro·window + ro·o multiplications against c·o·window, and the kernel's
 * own making.
 */
function tuckerConvPath(
  [n, , h, w]: readonly number[],
  { o, c, ro, ri, groups, window }: Record<'o' | 'c' | 'ro' | 'ri' | 'groups' | 'window', number>,
): 'stages' | 'dense' {
  const stages = n! * h! * w! * (groups * ri * (c + ro * window) + ro * o)
  const dense = n! * h! * w! * c * o * window + modeOrder([ro, ri, window], [o, c, undefined]).flops / 2
  return stages <= dense ? 'stages' : 'dense'
}
