/** A client that may send anything, at any speed, and sees the bytes that come back. */
import { once } from 'node:events'
import { connect, type Socket } from 'node:net'

export class RawClient {
  #received = ''
  #error: unknown

  private constructor(readonly socket: Socket) {
    socket.setEncoding('latin1')
    socket.on('data', (text: string) => {
      this.#received += text
    })
    // A server that cuts a connection off resets it while this side still writes.
    socket.on('error', (error) => {
      this.#error = error
    })
  }

  static async connect(url: string): Promise<RawClient> {
    const { hostname, port } = new URL(url)
    const socket = connect(Number(port), hostname)
    const client = new RawClient(socket)
    await once(socket, 'connect')
    return client
  }

  get received(): string {
    return this.#received
  }

  /** Of the first answer. */
  get status(): number | undefined {
    const digits = /^HTTP\/1\.1 (\d{3})/.exec(this.#received)?.[1]
    return digits === undefined ? undefined : Number(digits)
  }

  /** Hands bytes to the socket and waits while it is full; false once the connection has ended. */
  async send(data: string | Buffer): Promise<boolean> {
    const { socket } = this
    if (socket.destroyed || socket.writableEnded) return false
    if (!socket.write(data)) await Promise.race([once(socket, 'drain'), once(socket, 'close')]).catch(() => {})
    return !socket.destroyed
  }

  /** All that came until the server ended the connection. */
  async untilClosed(): Promise<string> {
    if (!this.socket.closed) await once(this.socket, 'close').catch(() => {})
    return this.#received
  }

  async untilReceived(text: string): Promise<void> {
    while (!this.#received.includes(text)) {
      if (this.socket.closed) throw new Error(`closed (${String(this.#error)}) after ${this.#received}`)
      await Promise.race([once(this.socket, 'data'), once(this.socket, 'close')]).catch(() => {})
    }
  }
}

/** A request as it goes over the wire. */
export const rawRequest = (line: string, headers: Readonly<Record<string, string>> = {}, body = ''): string =>
  `${line} HTTP/1.1\r\nhost: 127.0.0.1\r\n${Object.entries(headers)
    .map(([name, value]) => `${name}: ${value}\r\n`)
    .join('')}\r\n${body}`
