/** Curves: uPlot in the page's colours, with words for those who do not see them. */
import { useEffect, useRef, useState } from 'preact/hooks'
import UPlot from 'uplot'
import { html } from './html.js'

/** A curve. */
export interface Curve {
  readonly label: string
  readonly values: readonly (number | null)[]
  /** A custom property of the style sheet. */
  readonly colour: `--${string}`
  readonly format: (value: number) => string
}

/** See {@link Chart}. */
export interface ChartProps {
  /** What a screen reader says of it. */
  readonly label: string
  readonly x: readonly number[]
  readonly curves: readonly Curve[]
  readonly height: number
  /** Axes, and values under the pointer; without: a small picture. */
  readonly hasAxes?: boolean
  /** The axis of values begins at 0. */
  readonly fromZero?: boolean
}

/** As wide as its place. */
export function Chart(props: ChartProps) {
  const place = useRef<HTMLDivElement>(null)
  const plot = useRef<UPlot | undefined>(undefined)
  const isDark = useDark()
  const { label, x, curves, height } = props
  useEffect(() => {
    const element = place.current!
    const made = new UPlot(optionsOf(props, element.clientWidth), dataOf(props), element)
    plot.current = made
    const sizes = new ResizeObserver(() => made.setSize({ width: element.clientWidth, height: plotHeight(props) }))
    sizes.observe(element)
    return () => {
      sizes.disconnect()
      made.destroy()
    }
    // The values are given below.
  }, [curves.length, height, isDark])
  useEffect(() => plot.current?.setData(dataOf(props)), [x, curves])
  return html`<div class="chart" ref=${place} role="img" aria-label=${label}></div>`
}

/** Colours are part of what is drawn. */
function useDark(): boolean {
  const [isDark, setDark] = useState(dark.matches)
  useEffect(() => {
    const changed = (): void => setDark(dark.matches)
    dark.addEventListener('change', changed)
    return () => dark.removeEventListener('change', changed)
  }, [])
  return isDark
}

const dark = matchMedia('(prefers-color-scheme: dark)')

const dataOf = ({ x, curves }: ChartProps): UPlot.AlignedData =>
  [x, ...curves.map(({ values }) => values)] as unknown as UPlot.AlignedData

const colour = (name: string): string => getComputedStyle(document.documentElement).getPropertyValue(name).trim()

/** Between numbers below the picture: 1, 2, 5, 10, … */
const wholeSteps = Array.from({ length: 21 }, (_, i) => [1, 2, 5][i % 3]! * 10 ** Math.floor(i / 3))

/** The legend stands below the picture. */
const legendHeight = 28
const plotHeight = ({ height, hasAxes }: ChartProps): number => (hasAxes ? height - legendHeight : height)

function optionsOf(props: ChartProps, width: number): UPlot.Options {
  const { curves, hasAxes = false, fromZero = false } = props
  const axis: UPlot.Axis = {
    stroke: () => colour('--muted'),
    font: '12px system-ui, sans-serif',
    grid: { stroke: () => colour('--line'), width: 1 },
    ticks: { show: false },
  }
  return {
    width,
    height: plotHeight(props),
    padding: hasAxes ? [8, 8, 0, 0] : [2, 0, 2, 0],
    legend: { show: hasAxes, live: true },
    cursor: hasAxes ? { y: false, drag: { x: false, y: false }, points: { size: 6 } } : { show: false },
    scales: { x: { time: false }, y: fromZero ? { range: (_, __, most) => [0, most > 0 ? 1.1 * most : 1] } : {} },
    axes: hasAxes
      ? [
          { ...axis, size: 28, incrs: wholeSteps },
          { ...axis, size: 44 },
        ]
      : [{ show: false }, { show: false }],
    series: [
      { label: 'Step', value: (_, value) => (value === null ? '–' : `${value}`) },
      ...curves.map(
        ({ label, colour: name, format }): UPlot.Series => ({
          label,
          stroke: () => colour(name),
          width: 1.5,
          spanGaps: true,
          points: { show: false },
          value: (_, value) => (value === null || value === undefined ? '–' : format(value)),
        }),
      ),
    ],
  }
}
