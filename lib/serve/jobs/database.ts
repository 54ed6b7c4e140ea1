/** The database of uploads and jobs: one SQLite file in the data folder, which one server at a time may have open. */
import type BetterSqlite3 from 'better-sqlite3'
import { HeddleError } from '../../errors.js'

/** A connection. */
export type Connection = BetterSqlite3.Database

/** Makes connections. */
export type Driver = typeof BetterSqlite3

/** What the tables look like; another number in a file is another program's. */
const version = 1

const tables = `
CREATE TABLE files (
  seq INTEGER PRIMARY KEY AUTOINCREMENT,
  id TEXT NOT NULL UNIQUE,
  filename TEXT NOT NULL,
  purpose TEXT NOT NULL,
  bytes INTEGER NOT NULL,
  created_at INTEGER NOT NULL
) STRICT;
CREATE TABLE jobs (
  seq INTEGER PRIMARY KEY AUTOINCREMENT,
  id TEXT NOT NULL UNIQUE,
  model TEXT NOT NULL,
  status TEXT NOT NULL CHECK (status IN ('queued', 'running', 'succeeded', 'failed', 'cancelled')),
  settings TEXT NOT NULL,
  created_at INTEGER NOT NULL,
  finished_at INTEGER,
  fine_tuned_model TEXT,
  trained_tokens INTEGER NOT NULL DEFAULT 0,
  error TEXT
) STRICT;
CREATE INDEX jobs_by_status ON jobs (status, seq);
CREATE TABLE events (
  seq INTEGER PRIMARY KEY AUTOINCREMENT,
  id TEXT NOT NULL UNIQUE,
  job TEXT NOT NULL REFERENCES jobs (id),
  step INTEGER,
  created_at INTEGER NOT NULL,
  level TEXT NOT NULL,
  message TEXT NOT NULL,
  data TEXT,
  UNIQUE (job, step)
) STRICT;
CREATE INDEX events_by_job ON events (job, seq);
PRAGMA user_version = ${version};`

/** @throws ERR_HEDDLE_IO when better-sqlite3 is not installed, or not for this version of Node */
export async function loadDriver(
  load: () => Promise<{ readonly default: Driver }> = () => import('better-sqlite3'),
): Promise<Driver> {
  try {
    const { default: driver } = await load()
    // The native part is loaded with the first connection.
    new driver(':memory:').close()
    return driver
  } catch (cause) {
    throw new HeddleError('ERR_HEDDLE_IO', {
      place: 'better-sqlite3',
      expected: 'the package, which keeps uploads and jobs',
      got: firstLine(cause),
      hint: 'npm install better-sqlite3',
      cause,
    })
  }
}

/**
 * Opens the file, and makes it where there is none. Other processes are locked out until it is closed. What is written
 * survives the end of the process at once, and a loss of power within seconds: waiting for the disk would stop the event
 * loop.
 * @throws ERR_HEDDLE_FORMAT on a file that is broken or of another version; ERR_HEDDLE_BUSY when another server has it;
 *   ERR_HEDDLE_IO
 */
export function openDatabase(driver: Driver, path: string): Connection {
  let connection: Connection | undefined
  try {
    connection = new driver(path, { timeout: 2000 })
    connection.pragma('locking_mode = EXCLUSIVE')
    connection.pragma('journal_mode = WAL')
    connection.pragma('synchronous = NORMAL')
    connection.pragma('foreign_keys = ON')
    connection.exec('BEGIN IMMEDIATE; COMMIT')
    expectSound(connection, path)
    migrate(connection, path)
    return connection
  } catch (cause) {
    connection?.close()
    throw cause instanceof HeddleError ? cause : unusable(path, cause)
  }
}

function expectSound(connection: Connection, path: string): void {
  const found = connection.pragma('quick_check(1)', { simple: true })
  if (found !== 'ok') throw broken(path, String(found))
}

function migrate(connection: Connection, path: string): void {
  const found = connection.pragma('user_version', { simple: true })
  if (found === version) return
  if (found !== 0 || connection.prepare('SELECT 1 FROM sqlite_schema').get() !== undefined)
    throw new HeddleError('ERR_HEDDLE_FORMAT', {
      place: path,
      expected: `a database of version ${version}`,
      got: `version ${found}`,
      hint: 'Serve with the version of Heddle that wrote it, or with another data folder',
    })
  connection.transaction(() => connection.exec(tables))()
}

function unusable(path: string, cause: unknown): HeddleError {
  const { code = '' } = cause as { readonly code?: string }
  if (/^SQLITE_(CORRUPT|NOTADB)/.test(code)) return broken(path, firstLine(cause), cause)
  if (/^SQLITE_(BUSY|LOCKED)/.test(code))
    return new HeddleError('ERR_HEDDLE_BUSY', {
      place: path,
      expected: 'a data folder of its own',
      got: 'one that another server uses',
      hint: 'End the other server, or give this one another data folder',
      cause,
    })
  return new HeddleError('ERR_HEDDLE_IO', {
    place: path,
    expected: 'a file that can be written',
    got: firstLine(cause),
    cause,
  })
}

const broken = (path: string, got: string, cause?: unknown): HeddleError =>
  new HeddleError('ERR_HEDDLE_FORMAT', {
    place: path,
    expected: 'a sound SQLite database',
    got,
    hint: 'Move it away to start without its jobs and uploads, or put a copy of it back',
    cause,
  })

const firstLine = (error: unknown): string => (error instanceof Error ? error.message : String(error)).split('\n')[0]!
