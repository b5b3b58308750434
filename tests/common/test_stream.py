"""Text that arrives in bytes: never half a character, never a part of what may end it, however the bytes are cut."""

import random

import pytest

from pipelines.common import stream
from pipelines.common.stream import TextStream

FAMILY = "👩‍👩‍👧 é 你好"  # 4, 3, 2 and 3 bytes a character


def shown(parts, stops=()):
    """What is shown after each part, the whole text at the end, and whether a stop string came."""
    text = TextStream(stops)
    seen = [text.push(part) for part in parts]
    return seen, text.finish(), text.stopped


def cuts(data, seed):
    rng = random.Random(seed)
    places = sorted(rng.choices(range(len(data) + 1), k=rng.randrange(len(data) + 1)))
    return [data[a:b] for a, b in zip([0, *places], [*places, len(data)], strict=True)]


def test_a_character_is_shown_when_its_last_byte_is_there():
    seen, whole, _ = shown([bytes([byte]) for byte in "a🙂é".encode()])
    assert seen == ["a", "a", "a", "a", "a🙂", "a🙂", "a🙂é"] and whole == "a🙂é"
    every, whole, _ = shown([bytes([byte]) for byte in FAMILY.encode()])
    assert whole == FAMILY and not any("�" in each for each in every)


def test_a_text_that_really_ends_in_half_a_character_says_so():
    assert shown([b"ab", "🙂".encode()[:3]]) == (["ab", "ab"], "ab�", False)
    # Two bytes of an emoji, then a letter: the emoji cannot come any more.
    assert shown(["🙂".encode()[:2], b"a"])[0] == ["", "�a"]


@pytest.mark.parametrize("seed", range(40))
def test_streamed_equals_whole_even_for_bytes_that_are_no_text(seed):
    rng = random.Random(seed)
    kinds = [b"a", "é".encode(), "🙂".encode()[:3], b"\xff", b"\xed\xa0\x80", "你".encode()]
    data = b"".join(rng.choice(kinds) for _ in range(30))
    seen, whole, _ = shown(cuts(data, seed))
    assert whole == data.decode(errors="replace")
    assert all(whole.startswith(each) for each in seen)


def test_what_may_become_a_stop_string_is_held_back():
    seen, whole, stopped = shown([b"one", b" t", b"wo", b" e", b"nd"], [" two three", " end"])
    assert seen == ["one", "one", "one", "one two", "one two"] and (whole, stopped) == ("one two", True)
    assert shown([b"one", b" tw"], [" two"]) == (["one", "one"], "one tw", False)  # it did not come after all


def test_nothing_comes_after_a_stop_string():
    text = TextStream(["."])
    assert [text.push(b"a.b"), text.push(b"c"), text.finish()] == ["a", "a", "a"] and text.stopped
    assert shown([b".a"], ["."]) == ([""], "", True)


def test_the_stop_string_that_is_complete_first_ends_the_text():
    # In "xabcd" the b is there before the abcd; of "bc" and "abc", complete together, the longer counts.
    assert shown([b"xabcd"], ["abcd", "b"])[1] == "xa"
    assert shown([b"xabcd"], ["bc", "abc"])[1] == "x"
    assert shown([b"aab"], ["aab", "ab"])[1] == "" and shown([b"aaab"], ["aab"])[1] == "a"


def expected(text, stops):
    """The definition, read aloud: character by character."""
    for end in range(1, len(text) + 1):
        if ending := [stop for stop in stops if text[:end].endswith(stop)]:
            return text[: end - max(map(len, ending))], True
    return text, False


def check(seed):
    rng = random.Random(seed)
    text = "".join(rng.choice("aab🙂") for _ in range(rng.randrange(14)))
    stops = ["".join(rng.choice("aab🙂") for _ in range(rng.randrange(1, 5))) for _ in range(rng.randrange(4))]
    seen, whole, stopped = shown(cuts(text.encode(), seed), stops)
    assert (whole, stopped) == expected(text, stops)
    for each, later in zip(seen, [*seen[1:], whole], strict=True):
        assert later.startswith(each)  # nothing is taken back


def test_the_cut_never_matters():
    for seed in range(1500):
        check(seed)


@pytest.mark.parametrize("fault", ["nothing is held", "searched too late"])
def test_planted_faults_are_caught(monkeypatch, fault):
    if fault == "nothing is held":
        monkeypatch.setattr(TextStream, "_pending", lambda self: 0)
    else:
        plain = TextStream.__init__

        def short(self, stops=()):
            plain(self, stops)
            self._longest = min(self._longest, 2)

        monkeypatch.setattr(stream.TextStream, "__init__", short)
    with pytest.raises(AssertionError):
        test_the_cut_never_matters()


def test_an_empty_stop_string_is_refused():
    with pytest.raises(ValueError, match="needs a character"):
        TextStream(["a", ""])


def test_length_counts_what_is_held():
    text = TextStream(["end"])
    text.push("a🙂e".encode())
    assert (text.shown, text.length) == ("a🙂", 3)
