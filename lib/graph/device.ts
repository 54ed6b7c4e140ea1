/** Where programs run that do not say it themselves. */
import { AsyncLocalStorage } from 'node:async_hooks'
import { HeddleError } from '../errors.js'
import type { Device } from '../native.js'

/** The names of all. */
export const devices: readonly Device[] = ['cpu', 'cuda']

const chosen = new AsyncLocalStorage<Device>()

let everywhere: Device | undefined

/**
 * Sets where programs run that are made from now on and choose no device of their own. At the start it is what the
 * environment variable `HEDDLE_DEVICE` says, or `cpu`.
 * @throws ERR_HEDDLE_ARGUMENT for anything but `cpu` and `cuda`
 */
export function setDevice(device: Device): void {
  everywhere = checkedDevice(device, 'setDevice')
}

/** Runs `fn` with another device for the programs that it makes, at whatever time. */
export const onDevice = <T>(device: Device, fn: () => T): T => chosen.run(checkedDevice(device, 'onDevice'), fn)

/** Where a program that is made here and now will run. */
export function currentDevice(): Device {
  everywhere ??= checkedDevice(process.env.HEDDLE_DEVICE || 'cpu', 'HEDDLE_DEVICE')
  return chosen.getStore() ?? everywhere
}

/**
 * Whether programs on a GPU are recorded: what the environment variable `HEDDLE_CUDA_GRAPHS` says, 1 for all and 0 for
 * none; without it, what the program says.
 * @throws ERR_HEDDLE_ARGUMENT when it says something else
 */
export const recordsRuns = (chosen: boolean): boolean => switchedBy('HEDDLE_CUDA_GRAPHS') ?? chosen

/**
 * Whether runs on a GPU are profiled: what the environment variable `HEDDLE_CUDA_PROFILE` says, 1 for all and 0 for none;
 * without it, what the run says.
 * @throws ERR_HEDDLE_ARGUMENT when it says something else
 */
export const profilesRuns = (chosen: boolean): boolean => switchedBy('HEDDLE_CUDA_PROFILE') ?? chosen

function switchedBy(variable: string): boolean | undefined {
  const value = process.env[variable] || undefined
  if (value === undefined) return undefined
  if (value === '0' || value === '1') return value === '1'
  throw new HeddleError('ERR_HEDDLE_ARGUMENT', { place: variable, expected: '0 or 1', got: JSON.stringify(value) })
}

/** @throws ERR_HEDDLE_ARGUMENT unless it is the name of a device */
export function checkedDevice(device: string, place: string): Device {
  const found = devices.find((name) => name === device)
  if (found === undefined)
    throw new HeddleError('ERR_HEDDLE_ARGUMENT', { place, expected: '"cpu" or "cuda"', got: JSON.stringify(device) })
  return found
}
