"""Both galleries: what goes in comes out, what is erased is gone, and no file or name can hurt."""

from __future__ import annotations

import copy
import io
import json
import pickle
import sqlite3
import struct
import threading
import zipfile

import numpy as np
import pytest
from safetensors.numpy import load, save

from pipelines.common.errors import UserError
from pipelines.face import gallery_format, gallery_sqlite
from pipelines.face.gallery import Gallery, Match, open_gallery
from pipelines.face.gallery_format import GalleryLimits, check_name
from pipelines.face.gallery_sqlite import LastingGallery, codes

D = 8
DEFAULTS = GalleryLimits()
SMALL = GalleryLimits(people=3, embeddings=6, per_person=4)
try:
    gallery_sqlite.driver()
    NO_DRIVER = ""
except UserError as error:
    NO_DRIVER = str(error)
needs_driver = pytest.mark.skipif(bool(NO_DRIVER), reason=NO_DRIVER or "a driver is here")


def axis(i: int, d: int = D) -> np.ndarray:
    return np.eye(d, dtype=np.float32)[i]


def unit(vectors: np.ndarray) -> np.ndarray:
    return (vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)).astype(np.float32)


def random_unit(seed: int, *shape: int) -> np.ndarray:
    return unit(np.random.default_rng(seed).standard_normal(shape))


@pytest.fixture(params=["memory", pytest.param("lasting", marks=needs_driver)])
def make(request, tmp_path):
    """make(limits, weights) -> a gallery; the lasting ones of a test share one file."""

    def build(limits: GalleryLimits = DEFAULTS, weights: str = "dlib", d: int = D):
        if request.param == "memory":
            return Gallery(weights, d, limits)
        return LastingGallery(tmp_path / "gallery.db", weights, d, limits)

    return build


def test_identify_names_the_nearest_person_and_the_runner_up(make):
    gallery = make()
    assert gallery.enrol("Ada", np.stack([axis(0), axis(1)])) == 2
    assert gallery.enrol("Bob", axis(2)) == 1
    assert len(gallery) == 3
    query = np.zeros(D, np.float32)
    query[[1, 2]] = 0.8, 0.6
    (found,) = gallery.identify(query, 0.5)
    assert (found.name, found.nearest, found.runner_up) == ("Ada", "Ada", "Bob")
    # The best of Ada's two pictures; their mean would have given 0.566.
    assert found.similarity == pytest.approx(0.8, abs=1e-6)
    assert found.runner_up_similarity == pytest.approx(0.6, abs=1e-6)


def test_the_runner_up_is_another_person_even_when_the_second_picture_is_nearer(make):
    gallery = make()
    gallery.enrol("Ada", unit(np.stack([axis(0), axis(0) + 0.1 * axis(1), axis(0) + 0.2 * axis(1)])))
    gallery.enrol("Bob", unit(axis(0) + 2 * axis(3)))
    (found,) = gallery.identify(axis(0), 0.9)
    assert found.runner_up == "Bob"
    assert found.runner_up_similarity == pytest.approx(1 / np.sqrt(5), abs=1e-6)


def test_the_threshold_decides_and_belongs_to_the_accepted(make):
    gallery = make()
    gallery.enrol("Ada", axis(0))
    below, at = gallery.identify(np.stack([unit(0.6 * axis(0) + 0.8 * axis(1)), axis(0)]), 1.0 - 1e-7)
    assert (below.name, below.nearest) == (None, "Ada")
    assert below.similarity == pytest.approx(0.6, abs=1e-6)
    assert at.name == "Ada"
    assert gallery.identify(axis(1), 0.0)[0].name == "Ada"  # a cosine of exactly the threshold
    assert gallery.identify(axis(1), 1e-6)[0].name is None


def test_nobody_and_nothing(make):
    gallery = make()
    assert gallery.identify(axis(0), 0.5) == [Match(None, None, None, None, None)]
    assert gallery.identify(np.zeros((0, D), np.float32), 0.5) == []
    assert gallery.identify([], 0.5) == []
    assert (len(gallery), gallery.people(), gallery.erase(), gallery.remove("Ada")) == (0, [], 0, 0)
    with pytest.raises(UserError, match="no face"):
        gallery.enrol("Ada", np.zeros((0, D), np.float32))
    assert len(Gallery.load(gallery.export(), "dlib", D)) == 0


def test_people_in_order_with_the_first_chip_as_thumbnail(make):
    gallery = make()
    red = np.zeros((60, 60, 3), np.uint8)
    red[..., 0] = 255
    gallery.enrol("Bob", axis(0))
    gallery.enrol("Ada", np.stack([axis(1), axis(2)]), [red, 0 * red])
    gallery.enrol("Ada", axis(3), [0 * red])
    gallery.enrol("Bob", axis(4), red[None])
    bob, ada = gallery.people()
    assert [(p.name, p.samples) for p in (bob, ada)] == [("Bob", 2), ("Ada", 3)]
    for person in (bob, ada):
        assert person.thumbnail.shape == (48, 48, 3) and person.thumbnail.dtype == np.uint8
        assert person.thumbnail.reshape(-1, 3).mean(axis=0).tolist() == [255, 0, 0]


def test_remove_takes_one_person_and_leaves_the_others_right(make):
    gallery = make()
    for i, name in enumerate(["Ada", "Bob", "Cy"]):
        gallery.enrol(name, np.stack([axis(2 * i), axis(2 * i + 1)]))
    assert gallery.remove("Bob") == 2
    assert gallery.remove("Bob") == 0
    assert len(gallery) == 4
    assert [(p.name, p.samples) for p in gallery.people()] == [("Ada", 2), ("Cy", 2)]
    assert [m.name for m in gallery.identify(np.stack([axis(i) for i in range(6)]), 0.5)] == [
        "Ada", "Ada", None, None, "Cy", "Cy",
    ]  # fmt: skip
    assert gallery.enrol("Bob", axis(2)) == 1


def test_erase_counts_and_the_gallery_can_be_used_again(make):
    gallery = make()
    gallery.enrol("Ada", random_unit(0, 5, D))
    gallery.enrol("Bob", random_unit(1, 2, D))
    assert gallery.erase() == 7
    assert (len(gallery), gallery.people(), gallery.erase()) == (0, [], 0)
    assert gallery.identify(random_unit(0, 1, D), -1)[0].nearest is None
    assert gallery.enrol("Ada", axis(0)) == 1


def test_the_session_gallery_overwrites_what_leaves():
    gallery = Gallery("dlib", D)
    chip = np.full((50, 50, 3), 200, np.uint8)
    gallery.enrol("Ada", random_unit(0, 2, D), chip[None])
    first = gallery._vectors
    gallery.enrol("Bob", random_unit(1, 30, D))  # grows: the old table must not linger
    assert not first.any()
    table, face = gallery._vectors, gallery.people()[0].thumbnail
    assert table.any() and face.any()
    assert gallery.remove("Ada") == 2
    assert not face.any()
    assert np.count_nonzero(np.linalg.norm(table, axis=1)) == 30  # Bob's rows moved up, none is left behind
    owners = gallery._owner
    assert gallery.erase() == 30
    assert not table.any() and not owners.any()
    assert gallery._vectors.nbytes == 0


def test_room_is_checked_before_anything_enters(make):
    gallery = make(SMALL)
    gallery.enrol("Ada", random_unit(0, 3, D))
    with pytest.raises(UserError, match="One person would have 5 pictures; 4 are"):
        gallery.enrol("Ada", random_unit(1, 2, D))
    gallery.enrol("Bob", random_unit(2, 2, D))
    with pytest.raises(UserError, match="would hold 7 pictures; it has room for 6"):
        gallery.enrol("Cy", random_unit(3, 2, D))
    with pytest.raises(UserError, match="would hold 4 people; it has room for 3"):
        gallery.enrol_many([("Cy", axis(0)), ("Di", axis(1))])
    assert [(p.name, p.samples) for p in gallery.people()] == [("Ada", 3), ("Bob", 2)]
    assert gallery.enrol("Cy", axis(0)) == 1
    assert len(gallery) == 6


def test_enrol_many_is_all_or_nothing(make):
    gallery = make()
    assert gallery.enrol_many([("Ada", random_unit(0, 2, D)), ("Bob", axis(0)), ("Ada", axis(1))]) == 4
    assert [(p.name, p.samples) for p in gallery.people()] == [("Ada", 3), ("Bob", 1)]
    with pytest.raises(UserError):
        gallery.enrol_many([("Cy", axis(2)), ("", axis(3))])
    assert len(gallery) == 4


@pytest.mark.parametrize(
    ("given", "kept"),
    [("  Ada \t Lovelace ", "Ada Lovelace"), ("Zoe\u0308", "Zoë"), ("O'Brien-Smith 2.", "O'Brien-Smith 2."),
     ("王小明", "王小明"), ("نیلوفر\u200cها", "نیلوفر\u200cها"), ("x" * 60, "x" * 60)],
)  # fmt: skip
def test_good_names(given, kept):
    assert check_name(given, GalleryLimits()) == kept


@pytest.mark.parametrize(
    "name",
    ["", "  \n", "x" * 61, "Unknown", "未知", "../../etc/passwd", "a\\b", "<b>Ada</b>", 'A"da', "Ada\0", "Ada\u202eadA",
     "\x1b[31mAda", "\ud800", "...", "\u200c", None, 5, ["Ada"]],
)  # fmt: skip
def test_bad_names(make, name):
    gallery = make()
    with pytest.raises(UserError):
        gallery.enrol(name, axis(0))
    assert len(gallery) == 0


def test_other_weights_and_bad_numbers_are_refused(make):
    gallery = make()
    gallery.check("dlib")
    with pytest.raises(UserError, match="“dlib”"):
        gallery.check("facenet-casia")
    with pytest.raises(UserError, match="of 8 numbers, and these have 9"):
        gallery.enrol("Ada", axis(0, 9))
    with pytest.raises(UserError, match="of 8 numbers, and these have 512"):
        gallery.identify(random_unit(0, 3, 512), 0.5)
    for bad in (2 * axis(0), 0 * axis(0), axis(0) * np.nan, axis(0) + np.inf):
        with pytest.raises(ValueError, match="unit length"):
            gallery.enrol("Ada", bad)
    assert len(gallery) == 0


def filled(gallery):
    chip = np.arange(50 * 50 * 3, dtype=np.uint32).astype(np.uint8).reshape(50, 50, 3)
    gallery.enrol("Ada", random_unit(0, 3, D), [chip] * 3)
    gallery.enrol("Bob", random_unit(1, 1, D))
    gallery.enrol("Ada", random_unit(2, 1, D))
    return gallery


def test_export_and_load_give_the_same_gallery(make):
    gallery = filled(make())
    data = gallery.export()
    assert isinstance(data, bytes)
    loaded = Gallery.load(data, "dlib", D)
    assert [(p.name, p.samples) for p in loaded.people()] == [("Ada", 4), ("Bob", 1)]
    assert np.array_equal(loaded.people()[0].thumbnail, gallery.people()[0].thumbnail)
    assert loaded.people()[1].thumbnail is None
    queries = random_unit(9, 40, D)
    for a, b in zip(gallery.identify(queries, 0.3), loaded.identify(queries, 0.3), strict=True):
        assert (a.name, a.nearest, a.runner_up) == (b.name, b.nearest, b.runner_up)
        assert a.similarity == pytest.approx(b.similarity, abs=1e-6)
    enrolled = np.concatenate([random_unit(i, n, D) for i, n in ((0, 3), (1, 1), (2, 1))])
    assert {row.tobytes() for row in loaded._vectors[:5]} == {row.tobytes() for row in enrolled}


def test_include_adds_to_people_of_the_same_name(make):
    data = filled(Gallery("dlib", D)).export()
    gallery = make()
    gallery.enrol("Bob", axis(0))
    assert gallery.include(data) == 5
    assert [(p.name, p.samples) for p in gallery.people()] == [("Bob", 2), ("Ada", 4)]
    full = make(GalleryLimits(embeddings=8))
    before = len(full)
    with pytest.raises(UserError, match="room for"):
        for _ in range(2):
            full.include(data)
    assert (len(full) - before) % 5 == 0 and len(full) <= 8  # never a part of a file


def parts(data: bytes) -> tuple[dict, bytes]:
    (length,) = struct.unpack("<Q", data[:8])
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def joined(header: dict | bytes, body: bytes) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body


def edited(data: bytes, **metadata) -> bytes:
    header, body = parts(data)
    header["__metadata__"].update(metadata)
    return joined(header, body)


def with_table(data: bytes, name: str, change) -> bytes:
    """The file with one table changed in place by `change(view)`."""
    header, body = parts(data)
    start, end = header[name]["data_offsets"]
    kind = {"F32": np.float32, "I32": np.int32, "U8": np.uint8}[header[name]["dtype"]]
    table = np.frombuffer(body[start:end], kind).copy().reshape(header[name]["shape"])
    change(table)
    return joined(header, body[:start] + table.tobytes() + body[end:])


def with_shape(data: bytes, name: str, shape: list) -> bytes:
    header, body = parts(data)
    header[name]["shape"] = shape
    return joined(header, body)


def bomb() -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("../../embeddings.npy", bytes(50_000_000))
    return packed.getvalue()


def header_twice(data: bytes) -> bytes:
    header, body = parts(data)
    text = json.dumps(header).encode()
    return joined(b'{"__metadata__": {"format": "glasshouse-gallery"}, ' + text[1:], body)


def with_tables(data: bytes, **changed) -> bytes:
    """The file with tables added or, if None, left out: a sound safetensors file."""
    tables = {k: v for k, v in {**load(data), **changed}.items() if v is not None}
    return save(tables, parts(data)[0]["__metadata__"])


def put(index, value):
    def change(table):
        table[index] = value

    return change


GOOD = filled(Gallery("dlib", D)).export()
BAD = {
    "empty": b"",
    "seven bytes": GOOD[:7],
    "cut in the header": GOOD[:40],
    "cut in the numbers": GOOD[:-1],
    "something behind": GOOD + b"\0",
    "text": b"a gallery, honestly",
    "json": json.dumps({"people": ["Ada"]}).encode(),
    "pickle": pickle.dumps({"Ada": [1.0]}),
    "zip bomb": bomb(),
    "header longer than the file": struct.pack("<Q", 1 << 60) + GOOD[8:],
    "wrong json": joined(b"{,}", b""),
    "not utf-8": joined(b'{"__metadata__": "\xff"}', b""),
    "deep json": joined(b"[" * 50_000, b""),
    "header is a list": joined(b"[1]", b""),
    "metadata is a number": joined({"__metadata__": 3}, b""),
    "metadata of numbers": joined({"__metadata__": {"format": 3}}, b""),
    "no metadata": joined({k: v for k, v in parts(GOOD)[0].items() if k[0] != "_"}, parts(GOOD)[1]),
    "a key twice": header_twice(GOOD),
    "another format": edited(GOOD, format="pt"),
    "another version": edited(GOOD, version="2"),
    "other weights": edited(GOOD, weights="facenet-casia"),
    "other dimension": edited(GOOD, dimension="512"),
    "names no json": edited(GOOD, people="Ada, Bob"),
    "names no list": edited(GOOD, people='{"Ada": 1}'),
    "names are numbers": edited(GOOD, people="[1, 2]"),
    "names deep": edited(GOOD, people="[" * 50_000),
    "one name fewer": edited(GOOD, people='["Ada"]'),
    "one name more": edited(GOOD, people='["Ada", "Bob", "Cy"]'),
    "a name twice": edited(GOOD, people='["Ada", "Ada"]'),
    "a name twice but for blanks": edited(GOOD, people='["Ada", " Ada"]'),
    "a name that is a path": edited(GOOD, people='["Ada", "../../Bob"]'),
    "a name that is markup": edited(GOOD, people='["Ada", "<img src=x>"]'),
    "an endless name": edited(GOOD, people=json.dumps(["Ada", "B" * 1000])),
    "a crowd of names": edited(GOOD, people=json.dumps([f"p{i}" for i in range(2000)])),
    "not a number": with_table(GOOD, "embeddings", put((1, 2), np.nan)),
    "infinite": with_table(GOOD, "embeddings", put((1, 2), np.inf)),
    "huge": with_table(GOOD, "embeddings", put((1, 2), 3e38)),
    "not of unit length": with_table(GOOD, "embeddings", lambda t: t.__imul__(1.01)),
    "all zero": with_table(GOOD, "embeddings", put(0, 0)),
    "owner beyond the list": with_table(GOOD, "owner", put(0, 2)),
    "owner below zero": with_table(GOOD, "owner", put(0, -1)),
    "nobody owns": with_table(GOOD, "owner", put(slice(None), 0)),
    "another shape": with_shape(GOOD, "embeddings", [D, 5]),
    "flat": with_shape(GOOD, "embeddings", [5 * D]),
    "owner in two dimensions": with_shape(GOOD, "owner", [5, 1]),
    "owner a single number": with_shape(GOOD, "owner", []),
    "huge count": with_shape(GOOD, "owner", [1 << 62]),
    "negative count": with_shape(GOOD, "owner", [-5]),
    "count is text": with_shape(GOOD, "owner", ["5"]),
    "a hole": joined({k: v for k, v in parts(GOOD)[0].items() if k != "pictured"}, parts(GOOD)[1]),
    "a table missing": with_tables(GOOD, pictured=None),
    "a table too many": with_tables(GOOD, more=axis(0)),
    "half the precision": with_tables(GOOD, embeddings=load(GOOD)["embeddings"].astype(np.float16)),
}  # fmt: skip


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_file_gives_one_sentence_and_nothing_enters(make, kind):
    gallery = make()
    gallery.enrol("Eve", axis(0))
    with pytest.raises(UserError) as caught:
        gallery.include(BAD[kind])
    sentence = str(caught.value)
    assert 20 < len(sentence) < 300 and sentence.endswith(".") and "Error" not in sentence
    assert [(p.name, p.samples) for p in gallery.people()] == [("Eve", 1)]
    assert gallery.include(GOOD) == 5  # the unedited one is fine, so the edit was what was refused


def test_the_reason_for_other_weights_is_given():
    with pytest.raises(UserError, match=r"made with the weights “facenet-casia”.*“dlib”"):
        Gallery.load(edited(GOOD, weights="facenet-casia"), "dlib", D)
    with pytest.raises(UserError, match=r"made with the weights “dlib”.*“facenet-vggface2”"):
        Gallery.load(GOOD, "facenet-vggface2", 512)


def test_a_file_beyond_the_limits_is_refused_unread(monkeypatch):
    limits = GalleryLimits(people=2, embeddings=5)
    assert len(Gallery.load(GOOD, "dlib", D, limits)) == 5
    monkeypatch.setattr(gallery_format, "_metadata", lambda data: pytest.fail("it was read"))
    with pytest.raises(UserError, match="larger than a full gallery"):
        Gallery.load(GOOD + bytes(limits.file_bytes(D) + 1 - len(GOOD)), "dlib", D, limits)


def test_more_people_or_pictures_than_the_limits_in_a_file():
    with pytest.raises(UserError, match="would hold 5 pictures"):
        Gallery.load(GOOD, "dlib", D, GalleryLimits(embeddings=4))
    with pytest.raises(UserError, match="would hold 2 people"):
        Gallery.load(GOOD, "dlib", D, GalleryLimits(people=1))
    with pytest.raises(UserError, match="One person would have 4"):
        Gallery.load(GOOD, "dlib", D, GalleryLimits(per_person=3))


def test_the_largest_allowed_gallery_fits_its_own_file_limit():
    limits = GalleryLimits(people=4, embeddings=8, per_person=2)
    gallery = Gallery("dlib", D, limits)
    for i in range(4):
        gallery.enrol("\U0001f600" * 59 + str(i), random_unit(i, 2, D), np.zeros((2, 9, 9, 3), np.uint8))
    data = gallery.export()
    assert len(data) <= limits.file_bytes(D)
    assert len(Gallery.load(data, "dlib", D, limits)) == 8


def test_a_session_gallery_can_be_copied_and_the_copy_is_its_own():
    gallery = filled(Gallery("dlib", D))
    other = copy.deepcopy(gallery)
    assert gallery.erase() == 5
    assert (len(gallery), len(other)) == (0, 5)
    assert other.identify(random_unit(1, 1, D), 0.99)[0].name == "Bob"


def test_many_threads_on_one_gallery(make):
    gallery = make()
    wrong: list[BaseException] = []

    def work(i: int) -> None:
        try:
            for j in range(5):
                gallery.enrol(f"p{i}", random_unit(100 * i + j, 2, D))
                assert gallery.identify(random_unit(100 * i + j, 2, D), 0.99)[0].name == f"p{i}"
        except BaseException as error:
            wrong.append(error)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert len(gallery) == 60
    assert sorted((p.name, p.samples) for p in gallery.people()) == [(f"p{i}", 10) for i in range(6)]


def test_open_gallery_picks_by_the_environment(tmp_path, monkeypatch):
    assert type(open_gallery("dlib", D, {})) is Gallery
    assert type(open_gallery("dlib", D, {"GLASSHOUSE_GALLERY": ""})) is Gallery
    monkeypatch.setattr(gallery_sqlite, "LastingGallery", lambda *arguments: arguments)
    path = str(tmp_path / "gallery.db")
    assert open_gallery("dlib", D, {"GLASSHOUSE_GALLERY": path})[:3] == (path, "dlib", D)


def test_a_python_without_extensions_says_so(tmp_path, monkeypatch):
    class Bare:
        Connection = object

    monkeypatch.setattr(gallery_sqlite.importlib, "import_module", lambda name: Bare)
    with pytest.raises(UserError, match="pip install pysqlite3"):
        open_gallery("dlib", D, {"GLASSHOUSE_GALLERY": str(tmp_path / "gallery.db")})


@needs_driver
class TestLasting:
    @pytest.fixture
    def path(self, tmp_path):
        return tmp_path / "gallery.db"

    def test_it_lasts(self, path):
        filled(LastingGallery(path, "dlib", D)).close()
        again = LastingGallery(path, "dlib", D)
        assert [(p.name, p.samples) for p in again.people()] == [("Ada", 4), ("Bob", 1)]
        assert again.identify(random_unit(1, 1, D), 0.99)[0].name == "Bob"

    def test_other_weights_or_another_file_are_refused(self, path, tmp_path):
        LastingGallery(path, "dlib", D).enrol("Ada", axis(0))
        for weights, d in (("facenet-casia", D), ("dlib", 9)):
            with pytest.raises(UserError, match="made with the weights “dlib”"):
                LastingGallery(path, weights, d)
        text = tmp_path / "notes.txt"
        text.write_text("no database at all, but long enough to be looked at" * 100)
        with pytest.raises(UserError, match="damaged or is no gallery"):
            LastingGallery(text, "dlib", D)
        other = tmp_path / "other.db"
        with sqlite3.connect(other) as db:
            db.execute("create table accounts (id integer)")
        before = other.read_bytes()
        with pytest.raises(UserError, match="another program"):
            LastingGallery(other, "dlib", D)
        assert other.read_bytes() == before and [p.name for p in tmp_path.glob("other*")] == ["other.db"]
        with pytest.raises(UserError, match="can't be used") as caught:
            LastingGallery(tmp_path / "no such folder" / "gallery.db", "dlib", D)
        assert str(tmp_path) not in str(caught.value)

    def test_an_erased_gallery_may_be_begun_with_other_weights(self, path):
        gallery = LastingGallery(path, "dlib", D)
        gallery.enrol("Ada", axis(0))
        gallery.erase()
        gallery.close()
        LastingGallery(path, "facenet-casia", 9).enrol("Ada", random_unit(1, 1, 9))
        with pytest.raises(UserError, match="made with the weights “facenet-casia”"):
            LastingGallery(path, "dlib", D)

    def test_the_file_is_the_operators_alone(self, path):
        LastingGallery(path, "dlib", D)
        assert path.stat().st_mode & 0o077 == 0

    def test_a_file_of_a_newer_schema_is_refused(self, path):
        gallery = LastingGallery(path, "dlib", D)
        gallery._connection().execute("update meta set value = '99' where key = 'schema'")
        with pytest.raises(UserError, match="another version"):
            LastingGallery(path, "dlib", D)

    def test_nothing_erased_is_left_in_any_file(self, path):
        gallery = LastingGallery(path, "dlib", D)
        vectors = random_unit(7, 40, D)
        chip = np.random.default_rng(3).integers(0, 256, (48, 48, 3), dtype=np.uint8)
        for i in range(20):
            gallery.enrol(f"Somebody {i}", vectors[2 * i : 2 * i + 2], [chip])

        def traces() -> tuple[int, int, int]:
            files = b"".join(file.read_bytes() for file in path.parent.iterdir())
            numbers = sum(vector.tobytes() in files for vector in vectors)
            coded = sum(code[:64].tobytes() in files for code in codes(vectors))
            return numbers, coded, sum(secret in files for secret in (chip[0].tobytes(), b"Somebody"))

        numbers, coded, others = traces()
        assert (numbers, others) == (40, 2) and coded >= 38  # a code may lie across two pages
        assert gallery.erase() == 40
        assert (len(gallery), traces()) == (0, (0, 0, 0))
        db = gallery._connection()
        assert db.execute("select count(*) from codes").fetchone() == (0,)
        assert db.execute("select count(*) from codes_rowids").fetchone() == (0,)

    def test_nothing_removed_is_left_in_any_file(self, path):
        gallery = LastingGallery(path, "dlib", D)
        vectors = random_unit(7, 2, D)
        gallery.enrol("Ada", vectors[:1])
        gallery.enrol("Bob", vectors[1:])
        assert gallery.remove("Ada") == 1
        files = b"".join(file.read_bytes() for file in path.parent.iterdir())
        assert vectors[0].tobytes() not in files and codes(vectors[:1]).tobytes() not in files
        assert vectors[1].tobytes() in files and codes(vectors[1:]).tobytes() in files

    def test_a_second_connection_sees_an_erasure_and_what_comes_after(self, path):
        one, two = LastingGallery(path, "dlib", D), LastingGallery(path, "dlib", D)
        one.enrol("Ada", axis(0))
        assert two.coded(axis(0))[0] == ("Ada", 1.0)
        assert one.erase() == 1
        assert two.coded(axis(0)) == [] and len(two) == 0
        two.enrol("Bob", axis(1))
        assert one.coded(axis(1))[0] == ("Bob", 1.0)

    def test_a_writer_that_waits_too_long_gets_a_sentence(self, path, monkeypatch):
        monkeypatch.setattr(gallery_sqlite, "BUSY_SECONDS", 0.05)
        one, two = LastingGallery(path, "dlib", D), LastingGallery(path, "dlib", D)
        one._connection().execute("begin immediate")
        with pytest.raises(UserError, match="busy"):
            two.enrol("Ada", axis(0))
        one._connection().execute("rollback")
        assert two.enrol("Ada", axis(0)) == 1

    def test_many_threads_may_open_a_new_file_at_once(self, path):
        wrong: list[BaseException] = []
        start = threading.Barrier(6)

        def work(i: int) -> None:
            try:
                start.wait()
                LastingGallery(path, "dlib", D).enrol(f"p{i}", axis(i))
            except BaseException as error:
                wrong.append(error)

        threads = [threading.Thread(target=work, args=(i,)) for i in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert wrong == []
        assert len(LastingGallery(path, "dlib", D)) == 6

    def test_copying_the_handle_keeps_the_gallery(self, path):
        gallery = filled(LastingGallery(path, "dlib", D))
        assert len(copy.deepcopy(gallery)) == 5

    @pytest.mark.parametrize("d", [128, 512])
    def test_the_coded_search_finds_who_the_exact_one_finds(self, path, d, monkeypatch):
        # People of a population that is off centre, as dlib's is: a stranger's cosine is 0.7, one's own 0.9.
        rng = np.random.default_rng(d)
        centres = unit(unit(rng.standard_normal((600, d))) + 1.5 * random_unit(5, 1, d))
        noise = 0.45 * unit(rng.standard_normal((600, 5, d)))
        people = unit(centres[:, None] + noise)
        gallery = LastingGallery(path, "dlib", d)
        assert gallery.enrol_many((f"p{i}", vectors[:4]) for i, vectors in enumerate(people)) == 2400
        strangers = people[:100, 4] @ people[100:, 0].T
        assert 0.5 < strangers.mean() < 0.8
        monkeypatch.setattr(gallery_sqlite, "EXACT_ROWS", 100)
        monkeypatch.setattr(gallery, "exact", lambda query: pytest.fail("the coded search was meant"))
        coded = gallery.identify(people[:100, 4], 0.8)
        monkeypatch.undo()
        assert [found.name for found in coded] == [f"p{i}" for i in range(100)]
        exact = gallery.identify(people[:100, 4], 0.8)
        assert [found.similarity for found in coded] == pytest.approx([found.similarity for found in exact], abs=1e-6)
        assert all(a.runner_up_similarity <= b.runner_up_similarity + 1e-6 for a, b in zip(coded, exact, strict=True))
        gaps = [b.runner_up_similarity - a.runner_up_similarity for a, b in zip(coded, exact, strict=True)]
        assert np.mean(gaps) < 0.005

    def test_codes_keep_their_meaning_from_version_to_version(self):
        # Files hold codes; if this changes, SCHEMA must.
        vector = np.zeros((1, 128), np.float32)
        vector[0, 0] = 1
        assert codes(vector).shape == (1, 128)
        assert codes(vector)[0, :8].tobytes().hex() == "d5eda65050ca901d"
        assert np.unpackbits(codes(vector) ^ codes(-vector)).all()
