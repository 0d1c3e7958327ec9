"""What must not be lost: accepted requests, answers that no broker has acknowledged yet, and which ids were taken.

One SQLite file (WAL). A request is in `requests` from before its PUBACK until its answer is in `answers`, in one
transaction; the answer stays there until the broker's PUBACK. What is promised to somebody (taking a request in, ending
it with an answer) is on the disk when the method returns (synchronous=FULL); what a restart may repeat without harm
(counting a start, forgetting what was delivered) survives a kill of the process, and may be undone by a power cut.

Deleted content is overwritten (secure_delete), and `tidy` empties the WAL: nothing stays after delivery.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import sqlite3
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from edge_runtime.errors import EdgeRuntimeError

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable

log = logging.getLogger(__name__)

SCHEMA_VERSION = 1
_SCHEMA = """
CREATE TABLE requests (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    key BLOB NOT NULL,           -- equal for two requests that are the same one sent again
    id TEXT NOT NULL,
    kind TEXT NOT NULL,
    client TEXT NOT NULL,
    topic TEXT NOT NULL,         -- of the answer
    correlation BLOB,
    rank INTEGER NOT NULL,
    priority INTEGER NOT NULL,
    received REAL NOT NULL,      -- Unix time
    deadline_s REAL,             -- seconds after that
    boot TEXT NOT NULL,          -- the boot whose clock the next one is of
    deadline REAL,               -- time.monotonic()
    attempts INTEGER NOT NULL DEFAULT 0,
    payload BLOB NOT NULL
);
CREATE INDEX requests_key ON requests (key);
CREATE TABLE answers (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    key BLOB NOT NULL,
    id TEXT NOT NULL,
    topic TEXT NOT NULL,
    correlation BLOB,
    body TEXT NOT NULL,
    written REAL NOT NULL        -- Unix time
);
CREATE TABLE known (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    key BLOB NOT NULL UNIQUE,
    came REAL NOT NULL,          -- Unix time
    mid INTEGER NOT NULL,        -- packet identifier of the delivery that was decided on
    taken INTEGER NOT NULL       -- 1: accepted, 0: refused
);
CREATE INDEX known_came ON known (came);
"""
# How long to wait for a daemon that is just ending to let go of the file.
LOCK_S = 3.0
_WAL_LIMIT = 4 * 2**20


@dataclass(frozen=True, slots=True)
class StoredRequest:
    """A row of `requests`, without its payload."""

    seq: int
    id: str
    kind: str
    client: str
    topic: str
    correlation: bytes | None
    rank: int
    priority: int
    received: float
    deadline_s: float | None
    boot: str
    deadline: float | None
    attempts: int


@dataclass(frozen=True, slots=True)
class NewRequest:
    """A request to be stored; the fields as in `requests`."""

    key: bytes
    id: str
    kind: str
    client: str
    topic: str
    correlation: bytes | None
    rank: int
    priority: int
    deadline_s: float | None
    deadline: float | None
    payload: bytes


@dataclass(frozen=True, slots=True)
class Answer:
    """A row of `answers`; `seq` is None where it could not be stored, and then `request` is the one it ends."""

    seq: int | None
    id: str
    topic: str
    correlation: bytes | None
    body: str
    written: float
    request: int | None = None


class Store:
    """The file, open. Every method is one transaction; safe to use from any thread.

    All raise `sqlite3.Error` when the disk is full or broken: then nothing has changed.
    """

    def __init__(self, file: Path, remembered: int, remembered_s: float) -> None:
        """Opens or makes the file; a damaged one is set aside first.

        Args:
            file: Its path; the folder is made.
            remembered: The number of newest requests that are known again,
            remembered_s: for so many seconds.

        Raises:
            EdgeRuntimeError: It cannot be written, or another daemon uses it.
        """
        self._remembered, self._remembered_s = remembered, remembered_s
        self._lock = threading.Lock()
        self._boot = boot_id()
        self._untidy = True
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.touch(0o600)  # what people asked is nobody else's to read
            self._db = _open(file)
            _sync_folder(file.parent)
        except OSError as error:
            raise EdgeRuntimeError(f"storage.state_dir {file.parent}: {error.strerror or error}") from None
        except sqlite3.OperationalError as error:
            busy = error.sqlite_errorcode == sqlite3.SQLITE_BUSY
            raise EdgeRuntimeError(f"{file}: {'another daemon uses it' if busy else error}", "internal") from None

    @contextlib.contextmanager
    def taking(self) -> Generator[Taking, None, None]:
        """A transaction that takes messages in; on the disk when the block ends without an exception."""
        with self._transaction() as db:
            self._prune()
            yield Taking(db, self._boot)

    def begin(self, seq: int) -> bytes:
        """Counts a start of the request; its payload."""
        with self._transaction(durable=False) as db:
            db.execute("UPDATE requests SET attempts = attempts + 1 WHERE seq = ?", (seq,))
        return self.payload(seq)

    def payload(self, seq: int) -> bytes:
        """The payload of a stored request."""
        with self._lock:
            row = self._db.execute("SELECT payload FROM requests WHERE seq = ?", (seq,)).fetchone()
        return bytes(row[0])

    def hand_back(self, seq: int) -> None:
        """Takes a start back that was not the request's fault: it is stored as before `begin`."""
        with self._transaction(durable=False) as db:
            db.execute("UPDATE requests SET attempts = attempts - 1 WHERE seq = ?", (seq,))

    def finish(self, seq: int, body: str) -> Answer:
        """Puts the answer in the place of the request."""
        now = time.time()
        with self._transaction() as db:
            row = db.execute("SELECT key, id, topic, correlation FROM requests WHERE seq = ?", (seq,)).fetchone()
            key, request_id, topic, correlation = row
            answer = _insert_answer(db, key, Answer(None, request_id, topic, correlation, body, now))
            db.execute("DELETE FROM requests WHERE seq = ?", (seq,))
        return answer

    def forget(self, answers: Iterable[int] = (), requests: Iterable[int] = ()) -> None:
        """Drops what has been delivered."""
        with self._transaction(durable=False) as db:
            db.executemany("DELETE FROM answers WHERE seq = ?", [(seq,) for seq in answers])
            db.executemany("DELETE FROM requests WHERE seq = ?", [(seq,) for seq in requests])

    def requests(self) -> list[StoredRequest]:
        """What was accepted and not answered, in order of arrival."""
        names = ", ".join(StoredRequest.__slots__)
        with self._lock:
            rows = self._db.execute(f"SELECT {names} FROM requests ORDER BY seq").fetchall()  # noqa: S608 - our own names
        return [StoredRequest(*row) for row in rows]

    def answers(self) -> list[Answer]:
        """What was answered and not acknowledged, in order."""
        query = "SELECT seq, id, topic, correlation, body, written FROM answers ORDER BY seq"
        with self._lock:
            return [Answer(*row) for row in self._db.execute(query).fetchall()]

    @property
    def untidy(self) -> bool:
        """Whether something was written since `tidy`."""
        return self._untidy

    def tidy(self) -> None:
        """Where nothing waits: leaves no content in the file or its WAL."""
        with self._lock:
            self._untidy = False
            if self._db.execute("SELECT EXISTS(SELECT 1 FROM requests) OR EXISTS(SELECT 1 FROM answers)").fetchone()[0]:
                return
            # A statement that gives a row for each page: it works only while they are fetched.
            self._db.execute("PRAGMA incremental_vacuum").fetchall()
            self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()

    def close(self) -> None:
        """Closes the file; a second call does nothing."""
        with self._lock:
            self._db.close()

    def deadline_of(self, request: StoredRequest) -> float | None:
        """The request's deadline on this process's `time.monotonic()`.

        Exact within one boot of the machine, whatever happened to the clock on the wall; after another boot by that
        clock, and never later than what was asked for, counted from now.
        """
        if request.deadline_s is None or request.deadline is None:
            return None
        if request.boot == self._boot:
            return request.deadline
        left = request.received + request.deadline_s - time.time()
        return time.monotonic() + min(left, request.deadline_s)

    @contextlib.contextmanager
    def _transaction(self, *, durable: bool = True) -> Generator[sqlite3.Connection, None, None]:
        with self._lock:
            self._untidy = True
            self._db.execute(f"PRAGMA synchronous = {'FULL' if durable else 'NORMAL'}")
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield self._db
                self._db.execute("COMMIT")
            except BaseException:
                with contextlib.suppress(sqlite3.Error):  # a full disk may have rolled back already
                    self._db.execute("ROLLBACK")
                raise

    def _prune(self) -> None:
        self._db.execute(
            "DELETE FROM known WHERE (seq <= (SELECT max(seq) FROM known) - ? OR came < ?)"
            " AND key NOT IN (SELECT key FROM requests) AND key NOT IN (SELECT key FROM answers)",
            (self._remembered, time.time() - self._remembered_s),
        )


class Taking:
    """A transaction in which messages are taken in."""

    def __init__(self, db: sqlite3.Connection, boot: str) -> None:
        self._db = db
        self._boot = boot

    def known(self, key: bytes) -> tuple[int, bool] | None:
        """The packet identifier of the last request of that key, and whether it was accepted; None: it never came."""
        row = self._db.execute("SELECT mid, taken FROM known WHERE key = ?", (key,)).fetchone()
        return None if row is None else (row[0], bool(row[1]))

    def accept(self, request: NewRequest, mid: int) -> int:
        """Stores a request; its number."""
        self._know(request.key, mid, taken=True)
        values = (
            request.key, request.id, request.kind, request.client, request.topic, request.correlation, request.rank,
            request.priority, time.time(), request.deadline_s, self._boot, request.deadline, request.payload,
        )  # fmt: skip
        seq = self._db.execute(
            "INSERT INTO requests (key, id, kind, client, topic, correlation, rank, priority, received, deadline_s,"
            " boot, deadline, payload) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            values,
        ).lastrowid
        return seq or 0

    def refuse(self, key: bytes, mid: int, answer: Answer) -> Answer:
        """Stores the answer to a request that is not accepted."""
        self._know(key, mid, taken=False)
        return _insert_answer(self._db, key, answer)

    def _know(self, key: bytes, mid: int, *, taken: bool) -> None:
        self._db.execute(
            "INSERT OR REPLACE INTO known (key, came, mid, taken) VALUES (?, ?, ?, ?)", (key, time.time(), mid, taken)
        )


def _insert_answer(db: sqlite3.Connection, key: bytes, answer: Answer) -> Answer:
    seq = db.execute(
        "INSERT INTO answers (key, id, topic, correlation, body, written) VALUES (?, ?, ?, ?, ?, ?)",
        (key, answer.id, answer.topic, answer.correlation, answer.body, answer.written),
    ).lastrowid
    return dataclasses.replace(answer, seq=seq)


def boot_id() -> str:
    """A name for this boot of the machine, within which `time.monotonic()` of any process is the same clock."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return f"process-{time.time()}"  # no two processes share a boot then: the clock on the wall must do


def _open(file: Path) -> sqlite3.Connection:
    db = _connect(file)
    try:
        version: int = db.execute("PRAGMA user_version").fetchone()[0]
        problem = db.execute("PRAGMA quick_check(1)").fetchone()[0]
        if version > SCHEMA_VERSION:
            problem = f"it is of a later version ({version})"
    except sqlite3.OperationalError:
        db.close()
        raise
    except sqlite3.DatabaseError as error:
        version, problem = 0, str(error)
    if problem != "ok":
        db.close()
        _set_aside(file, problem)
        db, version = _connect(file), 0
    if not version:
        db.executescript(f"BEGIN; {_SCHEMA} PRAGMA user_version = {SCHEMA_VERSION}; COMMIT;")
    return db


def _connect(file: Path) -> sqlite3.Connection:
    db = sqlite3.connect(file, timeout=LOCK_S, isolation_level=None, check_same_thread=False)
    try:
        # Exclusive: a second daemon on the same file is refused, and no shared memory is needed beside it.
        for pragma in (
            "auto_vacuum = INCREMENTAL",
            "locking_mode = EXCLUSIVE",
            "journal_mode = WAL",
            "secure_delete = ON",
            f"journal_size_limit = {_WAL_LIMIT}",
        ):
            db.execute(f"PRAGMA {pragma}").fetchall()
        db.execute("BEGIN IMMEDIATE")  # takes the lock now, not at the first request
        db.execute("ROLLBACK")
    except sqlite3.OperationalError:
        db.close()
        raise
    except sqlite3.DatabaseError:  # no database at all: the caller sees it again, and what it is
        pass
    return db


def _sync_folder(folder: Path) -> None:
    """A file's content outlives a power cut only when its name does."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _set_aside(file: Path, problem: str) -> None:
    aside = file.with_name(f"{file.name}.damaged")
    file.replace(aside)
    with contextlib.suppress(FileNotFoundError):
        Path(f"{file}-wal").replace(f"{aside}-wal")
    log.error("%s cannot be used (%s): it is set aside as %s, what waited in it is lost", file, problem, aside.name)
