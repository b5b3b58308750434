"""Reads dlib's serialised face descriptor network (dlib_face_recognition_resnet_model_v1.dat). numpy only.

dlib writes a network layer by layer, input first. A text is its length and its bytes. An integer is one byte (low 4
bits: how many bytes follow; 0x80: negative) and then those bytes, little endian. A tensor is the integer 2, four
dimensions, and raw float32. After its name, a layer with parameters holds:

    con_4     tensor (all parameters in a row), filters, kernel rows, kernel columns, stride y, x, padding y, x,
              then the shape of the weight part (1, K, C, rows, columns) and of the bias part (1, 1, K, 1, 1)
    affine_   tensor (gamma, then beta), then the shapes (1, 1, K, 1, 1) of both
    fc_2      outputs, whether there is a bias (1: none, dlib's FC_NO_BIAS), tensor (inputs x outputs), its shape again
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipelines.common.errors import UserError

COUNTS = {"con_4": 29, "affine_": 29, "fc_2": 1}
FORMAT = 2  # the version that dlib writes before a tensor


class _Broken(ValueError):
    """The bytes are not what the format asks for; the text says where and what."""


@dataclass
class _Cursor:
    data: bytes
    at: int = 0

    def integer(self) -> int:
        head = self.take(1)[0]
        count = head & 0x0F
        if head & 0x70 or not 1 <= count <= 8:
            raise _Broken(f"no integer at byte {self.at - 1}")
        value = int.from_bytes(self.take(count), "little")
        return -value if head & 0x80 else value

    def integers(self, count: int) -> tuple[int, ...]:
        return tuple(self.integer() for _ in range(count))

    def expect(self, *wanted: int) -> None:
        """The next integers must be these."""
        start = self.at
        found = self.integers(len(wanted))
        if found != wanted:
            raise _Broken(f"{found} at byte {start}, expected {wanted}")

    def tensor(self) -> np.ndarray:
        """A flat tensor or a matrix, with the dimensions that stand in the file."""
        start = self.at
        self.expect(FORMAT)
        shape = self.integers(4)
        if min(shape) < 1:
            raise _Broken(f"a tensor of shape {shape} at byte {start}")
        values = np.frombuffer(self.take(4 * math.prod(shape)), "<f4").reshape(shape)
        if not np.isfinite(values).all():
            raise _Broken(f"a tensor at byte {start} holds values that are not finite")
        return values

    def take(self, count: int) -> bytes:
        if self.at + count > len(self.data):
            raise _Broken(f"the file ends at byte {len(self.data)}, inside a value")
        self.at += count
        return self.data[self.at - count : self.at]


def _convolution(cursor: _Cursor) -> dict[str, np.ndarray]:
    values = cursor.tensor().reshape(-1)
    filters, rows, columns = cursor.integers(3)
    cursor.integers(4)  # stride and padding: the network knows them
    cursor.expect(1, filters)
    channels, *kernel = cursor.integers(3)
    cursor.expect(1, 1, filters, 1, 1)
    count = filters * channels * rows * columns
    if kernel != [rows, columns] or values.size != count + filters:
        raise _Broken(f"a convolution that ends at byte {cursor.at} contradicts itself")
    return {"weight": values[:count].reshape(filters, channels, rows, columns), "bias": values[count:]}


def _affine(cursor: _Cursor) -> dict[str, np.ndarray]:
    values = cursor.tensor().reshape(-1)
    half = values.size // 2
    cursor.expect(1, 1, half, 1, 1)
    cursor.expect(1, 1, half, 1, 1)
    return {"weight": values[:half], "bias": values[half:]}


def _linear(cursor: _Cursor) -> dict[str, np.ndarray]:
    outputs, _ = cursor.integers(2)
    values = cursor.tensor()
    if values.shape[1:] != (outputs, 1, 1):
        raise _Broken(f"a linear layer that ends at byte {cursor.at} contradicts itself")
    cursor.expect(1, *values.shape)
    return {"weight": values[:, :, 0, 0]}


_READERS = {"con_4": _convolution, "affine_": _affine, "fc_2": _linear}
_MARKS = re.compile(b"|".join(re.escape(bytes([1, len(name)]) + name.encode()) for name in _READERS))


def _end(cursor: _Cursor) -> None:
    """What follows fc_2, the last layer: no bias, its mode, four settings of training, three flags, three caches."""
    cursor.expect(1, 0, 0, 0, 0)
    cursor.integers(1 + 4 * 2)  # a floating-point number is mantissa and exponent
    if cursor.take(3) != b"110":
        raise _Broken(f"no flags at byte {cursor.at - 3}")
    cursor.expect(*(FORMAT, 0, 0, 0, 0) * 3)
    if cursor.at != len(cursor.data):
        raise _Broken(f"{len(cursor.data) - cursor.at} bytes too many at the end")


def parse(data: bytes) -> dict[str, np.ndarray]:
    """Parameters by dlib's layer name, number from input to output, and part: "con_4.0.weight" ... "fc_2.0.weight".

    Weights of convolutions are OIHW, that of fc_2 is (inputs, outputs); all float32, views into `data`.
    ValueError: truncated, lengthened, altered where the structure shows it, or another number of layers.
    """
    parameters: dict[str, np.ndarray] = {}
    found = dict.fromkeys(COUNTS, 0)
    cursor = _Cursor(data)
    # A reader leaves the cursor behind its tensor, so bytes of a weight are never taken for a name.
    while mark := _MARKS.search(data, cursor.at):
        cursor.at = mark.end()
        name = mark[0][2:].decode()
        parts = _READERS[name](cursor)
        parameters.update({f"{name}.{found[name]}.{part}": values for part, values in parts.items()})
        found[name] += 1
    if found != COUNTS:
        raise _Broken(f"layers {found}, expected {COUNTS}")
    _end(cursor)
    return parameters


def read(path: Path) -> dict[str, np.ndarray]:
    """`parse` of a file. UserError: the file is not dlib's network, is truncated or was altered."""
    try:
        return parse(path.read_bytes())
    except ValueError as error:
        raise UserError(
            f"{path.name} is damaged or not dlib's face descriptor network ({error}); install or fetch it again."
        ) from error
