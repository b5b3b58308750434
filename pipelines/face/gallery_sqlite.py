"""A gallery that lasts: SQLite with sqlite-vec, for many threads and processes at once.

Reading 100,000 x 512 float32 through vec0 takes longer than a visitor should wait (sqlite-vec's wheel has no vector
instructions), so a large gallery is searched in two steps, as SimHash does it (Charikar 2002, "Similarity estimation
techniques from rounding algorithms"): the signs of 1,024 random projections make a short code whose Hamming distance
estimates the angle between two embeddings; vec0 finds the nearest codes, and the exact cosine ranks those. A small
gallery is compared one by one, exactly.

Letters: n embeddings, q queries, d numbers in an embedding.
"""

from __future__ import annotations

import hashlib
import importlib
import os
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.common.errors import UserError

from .gallery import Chips, Gallery, Match, Person, match, prepare
from .gallery_format import THUMBNAIL, Enrolment, GalleryLimits, check_embeddings, check_room, decode, encode

LASTING_LIMITS = GalleryLimits(people=100_000, embeddings=200_000)
SCHEMA = "1"
CODE_BITS = 1024  # standard error of the angle at 60 degrees: 2.7 degrees
CANDIDATES = 128  # codes that are ranked exactly; vec0's time grows with them
EXACT_ROWS = 8_192  # up to here every embedding is compared
BUSY_SECONDS = 10
TABLES = f"""
create table if not exists meta (key text primary key, value text not null) without rowid;
create table if not exists people (id integer primary key, name text not null unique, thumbnail blob);
create table if not exists samples (id integer primary key, person integer not null, vector blob not null);
create index if not exists samples_of_person on samples (person);
create virtual table if not exists codes using vec0(code bit[{CODE_BITS}], chunk_size=1024);
"""
NEAREST = """
select people.name, max(1 - vec_distance_cosine(samples.vector, :query)) as similarity
from samples join people on people.id = samples.person {among}
group by samples.person order by similarity desc limit 2
"""
AMONG = "where samples.id in (select rowid from codes where code match vec_bit(:code) and k = :candidates)"


def driver() -> Any:
    """The sqlite3 module, or pysqlite3 where this Python's own can't load extensions (pyenv's and python.org's can't).

    UserError: neither can.
    """
    for name in ("sqlite3", "pysqlite3"):
        try:
            module = importlib.import_module(name)
        except ImportError:
            continue
        if hasattr(module.Connection, "enable_load_extension"):
            return module
    raise UserError(
        "The lasting gallery needs SQLite extensions, which this Python was built without: the operator can run "
        "“pip install pysqlite3”, or unset GLASSHOUSE_GALLERY so that galleries last one session."
    )


@cache
def _projections(dimension: int) -> np.ndarray:
    """(d, bits) of +1 and -1. Drawn from a hash, not from a generator: codes in old files must keep their meaning."""
    digest = hashlib.shake_256(f"glasshouse gallery codes {dimension}".encode()).digest(dimension * CODE_BITS // 8)
    bits = np.unpackbits(np.frombuffer(digest, np.uint8)).reshape(dimension, CODE_BITS)
    return bits.astype(np.float32) * 2 - 1


def codes(vectors: np.ndarray) -> np.ndarray:
    """(n, d) float32 -> (n, bits / 8) uint8."""
    if len(vectors) == 1:
        # A query: einsum stays in this thread, where a matrix product would wake the others for a millisecond's work.
        return np.packbits(np.einsum("nd,db->nb", vectors, _projections(vectors.shape[1])) > 0, axis=1)
    blocks = np.array_split(vectors, max(1, len(vectors) // 4096))  # bounds the table of floats to 16 MB
    return np.concatenate([np.packbits(block @ _projections(vectors.shape[1]) > 0, axis=1) for block in blocks])


class LastingGallery:
    """`Gallery`'s methods over a file; see there. Each thread has its own connection.

    Several processes may use one file: writes wait for each other, readers are not held up (write-ahead log).
    UserError also: the file can't be opened, is another embedder's gallery, or is held by somebody else for too long.
    """

    def __init__(self, path: str | Path, weights: str, dimension: int, limits: GalleryLimits = LASTING_LIMITS) -> None:
        self.weights = weights
        self.dimension = dimension
        self.limits = limits
        self._path = os.fspath(path)
        self._sql = driver()
        self._local = threading.local()
        with self._errors():
            self._refuse_others()
            self._prepare()

    check = Gallery.check

    def __deepcopy__(self, memo: dict[int, Any]) -> LastingGallery:
        return self  # a handle on one file; Gradio deep-copies what a session starts with

    def __len__(self) -> int:
        with self._errors():
            return self._connection().execute("select count(*) from samples").fetchone()[0]

    def enrol(self, name: str, embeddings: np.ndarray, chips: Chips = None) -> int:
        """As `Gallery.enrol`."""
        person = prepare(name, embeddings, chips, self.dimension, self.limits)
        with self._transaction() as db:
            self._add(db, [person])
            return db.execute(
                "select count(*) from samples join people on people.id = person where name = ?", (person.name,)
            ).fetchone()[0]

    def enrol_many(self, people: Iterable[tuple[str, np.ndarray]]) -> int:
        """As `Gallery.enrol_many`."""
        checked = [prepare(name, vectors, None, self.dimension, self.limits) for name, vectors in people]
        with self._transaction() as db:
            return self._add(db, checked)

    def include(self, data: bytes) -> int:
        """As `Gallery.include`."""
        people = decode(data, self.weights, self.dimension, self.limits)
        with self._transaction() as db:
            return self._add(db, people)

    def identify(self, embeddings: np.ndarray, threshold: float) -> list[Match]:
        """As `Gallery.identify`."""
        queries = np.zeros((0, self.dimension), np.float32) if len(embeddings) == 0 else embeddings
        queries = check_embeddings(queries, self.dimension)
        search = self.exact if len(self) <= EXACT_ROWS else self.coded
        return [match(search(query), threshold) for query in queries]

    def exact(self, query: np.ndarray) -> list[tuple[str, float]]:
        """(d,) -> name and cosine of the nearest two people, every embedding compared: what `coded` is held to."""
        return self._nearest(NEAREST.format(among=""), query=query.tobytes())

    def coded(self, query: np.ndarray) -> list[tuple[str, float]]:
        """(d,) -> as `exact`, comparing only the embeddings whose codes are nearest."""
        code = codes(query[None])[0].tobytes()
        candidates = max(CANDIDATES, self.limits.per_person + 14)  # so that more than one person is among them
        return self._nearest(NEAREST.format(among=AMONG), query=query.tobytes(), code=code, candidates=candidates)

    def people(self) -> list[Person]:
        """As `Gallery.people`."""
        sql = """select name, count(samples.id), thumbnail from people left join samples on person = people.id
                 group by people.id order by people.id"""
        with self._errors():
            rows = self._connection().execute(sql).fetchall()
        return [Person(name, samples, _face(blob)) for name, samples, blob in rows]

    def remove(self, name: str) -> int:
        """As `Gallery.remove`."""
        with self._transaction() as db:
            mine = "(select id from samples where person = (select id from people where name = :name))"
            db.execute(f"delete from codes where rowid in {mine}", {"name": name})
            gone = db.execute(f"delete from samples where id in {mine}", {"name": name}).rowcount
            db.execute("delete from people where name = :name", {"name": name})
        with self._errors():
            self._connection().execute("pragma wal_checkpoint(truncate)").fetchone()
        return gone

    def erase(self) -> int:
        """Forget everybody; returns how many embeddings are gone.

        Pages are overwritten with zeros (secure_delete), the file is rewritten (VACUUM), and the log is cut to nothing.
        UserError: somebody still reads an older state of the file; everybody is forgotten, but traces are left in it.
        """
        with self._transaction() as db:
            gone = db.execute("select count(*) from samples").fetchone()[0]
            # vec0 keeps the room of deleted rows, so the table goes and comes back.
            db.execute("drop table codes")
            db.execute("delete from samples")
            db.execute("delete from people")
            self._create(db)
        with self._errors():
            db = self._connection()
            db.execute("vacuum")
            busy = db.execute("pragma wal_checkpoint(truncate)").fetchone()[0]
        if busy:
            raise UserError("Everybody is forgotten, but the old file is still being read: erase again in a moment.")
        return gone

    def export(self) -> bytes:
        """As `Gallery.export`."""
        with self._errors():
            query = "select name, thumbnail, vector from people join samples on person = people.id"
            rows = self._connection().execute(f"{query} order by people.id, samples.id").fetchall()
        faces: dict[str, np.ndarray | None] = {}
        vectors: dict[str, list[np.ndarray]] = {}
        for name, blob, vector in rows:
            faces.setdefault(name, _face(blob))
            vectors.setdefault(name, []).append(np.frombuffer(vector, np.float32))
        people = [Enrolment(name, np.stack(mine), faces[name]) for name, mine in vectors.items()]
        return encode(people, self.weights, self.dimension)

    def close(self) -> None:
        """Close this thread's connection; the next call opens one again."""
        db = getattr(self._local, "db", None)
        if db is not None:
            db.close()
            self._local.db = None

    def _nearest(self, sql: str, **values: Any) -> list[tuple[str, float]]:
        with self._errors():
            rows = self._connection().execute(sql, values).fetchall()
        return [(name, float(np.clip(similarity, -1, 1))) for name, similarity in rows]

    def _connection(self) -> Any:
        # A connection must not cross a fork, so a child process opens its own.
        if getattr(self._local, "db", None) is None or self._local.process != os.getpid():
            self._local.db, self._local.process = self._connect(), os.getpid()
        return self._local.db

    def _connect(self) -> Any:
        import sqlite_vec

        db = self._sql.connect(self._path, timeout=BUSY_SECONDS, isolation_level=None)
        db.enable_load_extension(True)
        sqlite_vec.load(db)
        db.enable_load_extension(False)
        db.execute("pragma page_size = 8192")  # of a new file: three embeddings of 512 numbers a page, none split
        db.execute("pragma journal_mode = wal")
        db.execute("pragma synchronous = normal")
        db.execute("pragma secure_delete = on")
        db.execute("pragma mmap_size = 1073741824")
        db.execute("pragma temp_store = memory")  # VACUUM's copy never touches another folder
        return db

    def _refuse_others(self) -> None:
        """Another program's file is looked at before anything is written to it; a new one is the operator's alone."""
        path = Path(self._path)
        if not path.exists():
            path.touch(mode=0o600)
        if path.stat().st_size == 0:
            return
        db = self._sql.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True, timeout=BUSY_SECONDS)
        try:
            tables = {row[0] for row in db.execute("select name from sqlite_schema")}
        finally:
            db.close()
        if tables and not {"meta", "people", "samples", "codes"} <= tables:
            raise UserError("The operator's gallery file belongs to another program; it needs one of its own.")

    def _prepare(self) -> None:
        with self._transaction() as db:
            tables = {row[0] for row in db.execute("select name from sqlite_schema")}
            mine = {"schema": SCHEMA, "weights": self.weights, "dimension": str(self.dimension)}
            if not tables:
                self._create(db)
                db.executemany("insert into meta values (?, ?)", mine.items())
            elif not db.execute("select 1 from samples limit 1").fetchone():
                fresh = [(key, mine[key]) for key in ("weights", "dimension")]  # an empty gallery is anybody's
                db.executemany("replace into meta values (?, ?)", fresh)
            found = dict(db.execute("select key, value from meta"))
        if found.get("schema") != SCHEMA:
            raise UserError("The operator's gallery file was made by another version of this demo; start a new file.")
        if found != mine:
            made_with = found.get("weights", "")
            raise UserError(f"The operator's gallery was made with the weights “{made_with}”: choose those to use it.")

    @staticmethod
    def _create(db: Any) -> None:
        for statement in TABLES.split(";"):
            db.execute(statement)

    def _add(self, db: Any, people: Sequence[Enrolment]) -> int:
        """Within a transaction, so that the room counted is the room there is."""
        arriving = sum(len(person.embeddings) for person in people)
        largest = 0
        first = db.execute("select coalesce(max(id), 0) + 1 from samples").fetchone()[0]
        rows: list[tuple[int, int, bytes]] = []
        for person in people:
            face = None if person.thumbnail is None else person.thumbnail.tobytes()
            place = db.execute(
                """insert into people (name, thumbnail) values (?, ?)
                   on conflict (name) do update set thumbnail = coalesce(thumbnail, excluded.thumbnail)
                   returning id""",
                (person.name, face),
            ).fetchone()[0]
            rows += [(first + len(rows) + i, place, v.tobytes()) for i, v in enumerate(person.embeddings)]
        db.executemany("insert into samples values (?, ?, ?)", rows)
        if rows:
            coded = codes(np.concatenate([person.embeddings for person in people]))
            numbers = ((row[0], code.tobytes()) for row, code in zip(rows, coded, strict=True))
            db.executemany("insert into codes (rowid, code) values (?, vec_bit(?))", numbers)
            largest = db.execute("select max(c) from (select count(*) c from samples group by person)").fetchone()[0]
        count, heads = db.execute("select (select count(*) from samples), (select count(*) from people)").fetchone()
        check_room(heads, count, largest, self.limits)  # the transaction takes everything back if there is none
        return arriving

    @contextmanager
    def _transaction(self) -> Iterator[Any]:
        with self._errors():
            db = self._connection()
            db.execute("begin immediate")
            try:
                yield db
            except BaseException:
                db.execute("rollback")
                raise
            db.execute("commit")

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise UserError("The gallery file can't be used now.") from error
        except self._sql.OperationalError as error:
            busy = "locked" in str(error) or "busy" in str(error)
            sentence = "The gallery is busy; try again in a moment." if busy else "The gallery file can't be used now."
            raise UserError(sentence) from error
        except self._sql.DatabaseError as error:
            raise UserError("The operator's gallery file is damaged or is no gallery.") from error


def _face(blob: bytes | None) -> np.ndarray | None:
    return None if blob is None else np.frombuffer(blob, np.uint8).reshape(THUMBNAIL, THUMBNAIL, 3).copy()
