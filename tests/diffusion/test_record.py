"""A PNG that carries its run: replayed to the last bit, refused when forged."""

import io
import json
import struct
import zlib
from dataclasses import fields, replace

import numpy as np
import pytest
from PIL import Image

from pipelines.common.errors import UserError
from pipelines.common.limits import limits
from pipelines.diffusion import DiffusionRequest, fork, read_png, record, run, write_png
from pipelines.diffusion.travel import Node

NOISE = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)
MASK = np.zeros((20, 30), bool)
MASK[:, 12:18] = True
REQUEST = DiffusionRequest(
    "a “red” 苹果\n🙂", "blur\x00red", 3, 3.3, "euler_a", 2**62 + 1, 12, 20, precision="float32", previews=False
)  # fmt: skip


def png(text, packed=0, keyword=b"glasshouse", damage=False, twice=False):
    """A small PNG file with a record."""
    body = keyword + b"\0" + bytes([packed, 0]) + b"\0\0" + (zlib.compress(text) if packed else text)
    stream = io.BytesIO()
    Image.fromarray(NOISE).save(stream, "PNG")
    data = stream.getvalue()
    crc = zlib.crc32(b"iTXt" + body) ^ damage
    chunk = struct.pack(">I", len(body)) + b"iTXt" + body + struct.pack(">I", crc)
    return data[:33] + chunk * (1 + twice) + data[33:]


@pytest.fixture
def drawn(tiny_catalogue):
    return run(REQUEST)


@pytest.fixture
def forged(drawn):
    """A file whose record was changed by a function."""

    def make(change):
        content = json.loads(json.dumps(drawn.record))
        change(content)
        return png(json.dumps(content).encode())

    return make


def test_a_picture_replays_to_the_last_bit(drawn):
    data = write_png(drawn)
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(data))), drawn.image)
    request = read_png(data)
    assert request == replace(drawn.request, previews=True) and request.weights == "tiny"
    assert np.array_equal(run(request).image, drawn.image)
    assert not np.array_equal(run(replace(request, seed=request.seed + 1)).image, drawn.image)  # the planted fault
    assert record.notes(record.read_record(data)) == ()


def test_every_field_is_recorded_or_left_out_for_a_reason(drawn):
    names = {field.name for field in fields(DiffusionRequest)}
    assert set(record.RECORDED) | set(record.LEFT_OUT) == names and not set(record.RECORDED) & set(record.LEFT_OUT)
    content = drawn.record
    assert content["request"]["prompt"] == REQUEST.prompt and content["request"]["seed"] == 2**62 + 1
    assert content["request"]["sampler"] == "euler_a" and content["request"]["guidance_scale"] == 3.3
    assert set(content["weights"]["files"]) >= {"unet", "vae", "text_encoder", "vocab"}
    assert all(len(digest) == 64 for digest in content["weights"]["files"].values())
    assert {"torch", "python", "numpy", "device", "dtype", "threads"} == set(content["made_with"])
    assert json.loads(json.dumps(content)) == content
    assert "/" not in json.dumps({**content, "start": None})  # no path of this machine


def test_the_files_of_the_weights_are_hashed(tiny_entry, tmp_path):
    from hashlib import sha256

    from pipelines.common.checkpoint import paths

    assert record.hashes(tiny_entry)["unet"] == sha256(paths(tiny_entry)["unet"].read_bytes()).hexdigest()


def test_other_weights_and_versions_are_told(drawn, forged):
    other = forged(lambda r: r["weights"]["files"].update(unet="0" * 64))
    assert "others here" in record.notes(record.read_record(other))[0]
    away = forged(lambda r: (r["weights"].update(id="gone"), r["request"].update(weights="gone")))
    assert "not on this machine" in record.notes(record.read_record(away))[0]
    with pytest.raises(UserError, match="no weights called"):
        run(read_png(away))
    old = record.notes(record.read_record(forged(lambda r: r["made_with"].update(torch="1.0\x1b[2J"))))
    assert len(old) == 1 and old[0].startswith("It was drawn with torch 1.0[2J, and here is ")


def test_what_began_in_a_picture_needs_it(tiny_catalogue):
    result = run(replace(REQUEST, image=NOISE, mask=MASK, strength=0.9))
    data = write_png(result)
    with pytest.raises(UserError, match="a start picture that its file does not hold; give that, too"):
        read_png(data)
    with pytest.raises(UserError, match="with a mask that its file"):
        read_png(data, NOISE)
    with pytest.raises(UserError, match="start picture is another one"):
        read_png(data, NOISE ^ 1, MASK)
    with pytest.raises(UserError, match="mask is another one"):
        read_png(data, NOISE, ~MASK)
    for bad in ("a.png", NOISE[..., 0], NOISE[:0]):
        with pytest.raises(UserError):
            read_png(data, bad, MASK)
    with pytest.raises(UserError, match="mask must be"):
        read_png(data, NOISE, MASK.astype(np.uint8))
    assert np.array_equal(run(read_png(data, NOISE, MASK)).image, result.image)
    assert len(data) < 6000  # the picture itself is not in it


def test_a_picture_that_is_not_needed_is_not_taken(drawn):
    assert read_png(write_png(drawn), NOISE, MASK).image is None


def test_a_fork_replays_without_its_parent(tiny_catalogue):
    root = run(DiffusionRequest("a red apple", num_steps=6, history=True))
    request = fork(Node(root.request, root.image, root.history), 3, {})
    result = run(request)
    back = read_png(write_png(result))
    assert np.array_equal(back.start.latents, request.start.latents) and back.start.call == 3
    assert np.array_equal(back.start.memory, request.start.memory) and len(back.start.memory) == 1
    assert np.array_equal(run(back).image, result.image) and np.array_equal(result.image, root.image)


def test_other_programs_text_and_chunks_are_passed_over(drawn):
    from PIL import PngImagePlugin

    info = PngImagePlugin.PngInfo()
    info.add_text("Comment", "x" * 10_000, zip=True)
    info.add_itxt("glasshouses", "{}")
    info.add_itxt("glasshouse", json.dumps(drawn.record))
    stream = io.BytesIO()
    Image.fromarray(drawn.image).save(stream, "PNG", pnginfo=info)
    assert read_png(stream.getvalue()) == replace(drawn.request, previews=True)


def test_the_longest_prompts_are_carried(drawn):
    for char in ("狗", "\x01", '"', "🙂"):
        long = replace(drawn.request, prompt=char * 100_000, negative_prompt=char * 100_000)
        content = {**drawn.record, "request": record.fields_of(long)}
        assert read_png(write_png(replace(drawn, record=content))).prompt == long.prompt
    with pytest.raises(UserError, match="save its tree instead"):
        write_png(replace(drawn, record={**drawn.record, "start": "a" * record.record_bytes()}))


# --- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "no PNG file"),
        (b"GIF89a" + b"\0" * 50, "no PNG file"),
        ("text", "no PNG file"),
        (None, "no PNG file"),
        (png(b"{}")[:60], "cut short"),
        (png(b"{}", damage=True), "damaged"),
        (png(b"{}", keyword=b"other"), "carries no run"),
        (png(b"{}", twice=True), "two of them"),
        (png(b"{}", packed=1), "not ours"),
        (png(b"\xff\xfe"), "no text"),
        (png(b""), "no JSON"),
        (png(b"[" * 100_000), "no JSON"),
        (png(b'{"format": NaN}'), "no JSON"),
        (png(b"9" * 10_000), "no JSON"),
        (png(b"[]"), "another kind"),
        (png(b'{"format": "other"}'), "another kind"),
        (png(b'{"format": "glasshouse-diffusion", "version": 2}'), "version"),
        (png(b'{"format": "glasshouse-diffusion", "version": true}'), "version"),
        (png(b'{"format": "glasshouse-diffusion"}'), "version"),
        (png(b'{"format": "glasshouse-diffusion", "version": 1}'), "section"),
    ],
)  # fmt: skip
def test_what_is_no_record_is_a_sentence(data, said):
    with pytest.raises(UserError, match=said) as caught:
        read_png(data)
    assert str(caught.value).endswith(".")


def test_a_huge_record_is_refused_unread(monkeypatch):
    with pytest.raises(UserError, match="longer than a run can be"):
        read_png(png(b" " * (record.record_bytes() + 1)))
    bomb = png(b" " * 50_000_000, packed=1)  # 50 kB that would be 50 MB
    with pytest.raises(UserError, match="not ours"):
        read_png(bomb)
    with pytest.raises(UserError, match="larger than 30 MB"):
        read_png(record.SIGNATURE + b"\0" * limits().upload_bytes)


ARRAY = {"shape": [4, 10, 6], "float32": "AAAA" * 320}
FORGED = [
    (lambda r: r.update(extra=1), "section"),
    (lambda r: r.pop("start"), "section"),
    (lambda r: r["request"].update(extra=1), "not the ones of a drawing"),
    (lambda r: r["request"].pop("seed"), "not the ones of a drawing"),
    (lambda r: r["request"].update(image="a.png"), "not the ones of a drawing"),
    (lambda r: r.update(request=None), "not the ones of a drawing"),
    (lambda r: r["request"].update(num_steps=10**9), "number of steps"),
    (lambda r: r["request"].update(num_steps="3"), "number of steps"),
    (lambda r: r["request"].update(seed=10**400), "seed must"),
    (lambda r: r["request"].update(width=10**9), "width"),
    (lambda r: r["request"].update(width=None), "do not fit together"),
    (lambda r: r["request"].update(prompt=["a"]), "must be text"),
    (lambda r: r["request"].update(prompt="a" * 100_001), "shorten it"),
    (lambda r: r["request"].update(prompt="\ud800"), "half of one"),
    (lambda r: r["request"].update(sampler={"a": 1}), "no sampler"),
    (lambda r: r["request"].update(backend="os"), "local or reference"),
    (lambda r: r["request"].update(weights="../../x"), "do not fit together"),
    (lambda r: r.update(image="abc"), "fingerprint"),
    (lambda r: r.update(mask=5), "fingerprint"),
    (lambda r: r.update(weights=[]), "weights and versions"),
    (lambda r: r["weights"].update(id=5), "weights and versions"),
    (lambda r: r["weights"].update(path="/etc"), "weights and versions"),
    (lambda r: r["weights"]["files"].update(unet="ff"), "weights' files"),
    (lambda r: r["weights"].update(files={str(i): "0" * 64 for i in range(65)}), "weights and versions"),
    (lambda r: r["made_with"].update(torch=2), "weights and versions"),
    (lambda r: r["made_with"].update(torch="2" * 201), "weights and versions"),
    (lambda r: r.update(start=[]), "forked"),
    (lambda r: r.update(start={"call": -1, "latents": ARRAY, "memory": ARRAY}), "forked"),
    (lambda r: r.update(start={"call": 1, "latents": 5, "memory": ARRAY}), "latents cannot"),
    (lambda r: r.update(start={"call": 1, "latents": {**ARRAY, "shape": [4, 240]}, "memory": ARRAY}), "no shape"),
    (lambda r: r.update(start={"call": 1, "latents": {**ARRAY, "shape": [4, -10, 6]}, "memory": ARRAY}), "no shape"),
    (lambda r: r.update(start={"call": 1, "latents": {**ARRAY, "shape": [2**20] * 3}, "memory": ARRAY}), "too many"),
    (lambda r: r.update(start={"call": 1, "latents": {**ARRAY, "shape": [4, 9, 6]}, "memory": ARRAY}), "another shape"),
    (lambda r: r.update(start={"call": 1, "latents": {**ARRAY, "float32": "Ü="}, "memory": ARRAY}), "no numbers"),
    (lambda r: r.update(start={"call": 1, "latents": {**ARRAY, "float32": "A"}, "memory": ARRAY}), "no numbers"),
    (
        lambda r: r.update(
            start={
                "call": 1, "latents": {**ARRAY, "float32": "AACAfwAA" * 160},  # infinite
                "memory": {"shape": [0, 4, 10, 6], "float32": ""},
            }
        ),
        "hold what is no number",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("change", "said"), FORGED, ids=range(len(FORGED)))
def test_a_forged_record_is_a_sentence(forged, change, said):
    with pytest.raises(UserError, match=said) as caught:
        read_png(forged(change))
    assert str(caught.value).endswith(".") and len(str(caught.value)) < 300


def test_latents_of_another_size_are_refused_when_they_are_drawn(forged):
    start = {
        "call": 1, "latents": {"shape": [4, 2, 2], "float32": "AAAA" * 21 + "AA=="},
        "memory": {"shape": [0, 4, 2, 2], "float32": ""},
    }  # fmt: skip
    request = read_png(forged(lambda r: r.update(start=start)))
    with pytest.raises(UserError, match="of another size"):
        run(request)
