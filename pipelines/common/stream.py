"""Text that arrives in pieces of bytes, shown without half characters and without parts of what may end it."""

from __future__ import annotations

import codecs
from collections.abc import Sequence


class TextStream:
    """Grows by bytes of UTF-8; `shown` is the text that no later byte can take back.

    Held back are the bytes of a character that is not whole yet, and an end of the text that could become a stop
    string. Bytes that are no UTF-8 become `�`, as when the whole is decoded with errors="replace". The text ends before
    the stop string that is complete first, reading character by character; of two complete at the same character,
    before the longer. So it never matters how the bytes were cut.
    """

    def __init__(self, stops: Sequence[str] = ()) -> None:
        """ValueError: a stop string of no length, which would end every text before it begins."""
        if not all(stops):
            raise ValueError("a stop string needs a character")
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._stops = tuple(stops)
        self._longest = max(map(len, self._stops), default=0)
        self._text = ""
        self._held = 0  # characters at the end that are not shown yet
        self.stopped = False

    @property
    def shown(self) -> str:
        return self._text[: len(self._text) - self._held]

    @property
    def length(self) -> int:
        """Characters so far, those held back included."""
        return len(self._text)

    def push(self, data: bytes) -> str:
        """Take in more bytes; returns `shown`. After a stop string nothing more is taken."""
        return self._grow(self._decoder.decode(data))

    def finish(self) -> str:
        """No byte will follow: what was held back is shown, a character cut short as `�`."""
        self._grow(self._decoder.decode(b"", final=True))
        self._held = 0
        return self.shown

    def _grow(self, new: str) -> str:
        if not new or self.stopped:
            return self.shown
        unsearched = max(0, len(self._text) - self._longest + 1)
        self._text += new
        places = [(self._text.find(stop, unsearched), stop) for stop in self._stops]
        found = [(at + len(stop), at) for at, stop in places if at >= 0]
        if found:
            self._text, self._held, self.stopped = self._text[: min(found)[1]], 0, True
        else:
            self._held = self._pending()
        return self.shown

    def _pending(self) -> int:
        """Characters at the end that a stop string begins with."""
        most = min(self._longest - 1, len(self._text))
        for count in range(most, 0, -1):
            if any(stop.startswith(self._text[-count:]) for stop in self._stops):
                return count
        return 0
