/**
 * NVIDIA's published numbers. Peaks (dense, with boost clocks) and bandwidths: the data sheets of A100 (2021) and H100 (2023),
 * compared with what others quote of them; L4 (2023) and the whitepapers of GA102 (2020) and AD102 (2022) have not been
 * compared. Limits of multiprocessors and granularities: CUDA's occupancy calculator (cuda_occupancy.h of CUDA 13).
 */
import type { Unit } from './cases.js'

/** What a card does at most. */
export interface Card {
  readonly name: string
  /** Finds it by the name that the driver gives. */
  readonly pattern: RegExp
  /** Operations a second, a multiply-add counted as two. */
  readonly flops: Readonly<Record<Unit, number>>
  readonly bytesPerSecond: number
}

/** In the order in which they are looked for. */
export const cards: readonly Card[] = [
  card('A100 SXM 80 GB', /A100.*80GB/, 19.5, 312, 2039),
  card('A100 40 GB', /A100/, 19.5, 312, 1555),
  card('H100 PCIe', /H100 PCIe/, 51, 756, 2000),
  card('H100 SXM', /H100/, 67, 989.4, 3350),
  card('L4', /\bL4\b/, 30.3, 121, 300),
  card('RTX 3090', /RTX 3090/, 35.6, 71, 936),
  card('RTX 4090', /RTX 4090/, 82.6, 165.2, 1008),
]

/** Teraflops of f32 and of bf16 with sums in f32, gigabytes a second. */
function card(name: string, pattern: RegExp, f32: number, bf16: number, gigabytes: number): Card {
  return { name, pattern, flops: { f32: f32 * 1e12, bf16: bf16 * 1e12 }, bytesPerSecond: gigabytes * 1e9 }
}

/** Seconds that a card needs at least, and what for. */
export function roofline(
  { flops: peaks, bytesPerSecond }: Pick<Card, 'flops' | 'bytesPerSecond'>,
  { flops, bytes, unit }: { readonly flops: number; readonly bytes: number; readonly unit: Unit },
): { readonly seconds: number; readonly bound: 'bytes' | 'flops' } {
  const [moving, computing] = [bytes / bytesPerSecond, flops / peaks[unit]]
  return computing > moving ? { seconds: computing, bound: 'flops' } : { seconds: moving, bound: 'bytes' }
}

/** A multiprocessor of an architecture. */
export interface Multiprocessor {
  readonly architecture: string
  readonly threads: number
  readonly blocks: number
  readonly registers: number
  readonly sharedBytes: number
}

const registers = 65_536

/** Those that kernels are compiled for. */
export const multiprocessors: readonly Multiprocessor[] = [
  { architecture: '80', threads: 2048, blocks: 32, registers, sharedBytes: 164 << 10 },
  { architecture: '86', threads: 1536, blocks: 16, registers, sharedBytes: 100 << 10 },
  { architecture: '89', threads: 1536, blocks: 24, registers, sharedBytes: 100 << 10 },
  { architecture: '90', threads: 2048, blocks: 32, registers, sharedBytes: 228 << 10 },
]

/** What a block takes of a multiprocessor. */
export interface BlockNeeds {
  readonly threads: number
  readonly registersPerThread: number
  readonly sharedBytes: number
}

const up = (value: number, to: number): number => Math.ceil(value / to) * to
const [warpSize, warpsTogether, registerUnit, sharedUnit, sharedOfSystem] = [32, 4, 256, 128, 1024]

/** Blocks that a multiprocessor holds at a time; 0 where it cannot hold one. */
export function residentBlocks(chip: Multiprocessor, { threads, registersPerThread, sharedBytes }: BlockNeeds): number {
  const warps = Math.ceil(threads / warpSize)
  // Registers are handed out by warp, to each quarter of the multiprocessor its own.
  const perQuarter = Math.floor(chip.registers / warpsTogether / up(registersPerThread * warpSize, registerUnit))
  const limits = [
    chip.blocks,
    Math.floor(chip.threads / warpSize / warps),
    Math.floor((perQuarter * warpsTogether) / up(warps, warpsTogether)),
    Math.floor(chip.sharedBytes / (up(sharedBytes, sharedUnit) + sharedOfSystem)),
  ]
  return Math.min(...limits)
}

/** The part of the threads of a multiprocessor that such blocks keep there. */
export const occupancy = (chip: Multiprocessor, needs: BlockNeeds): number =>
  (residentBlocks(chip, needs) * up(needs.threads, warpSize)) / chip.threads
