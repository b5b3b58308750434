"""The one door for pixels: any upload becomes RGB uint8 of shape (height, width, 3) within the limits."""

from __future__ import annotations

import io
import struct
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from .errors import UserError
from .limits import Limits, limits


@dataclass(frozen=True)
class Picture:
    """pixels: (height, width, 3) uint8 RGB, contiguous. note: what was changed on the way in, "" if nothing."""

    pixels: np.ndarray
    note: str = ""


def open_picture(source: str | Path | bytes, bounds: Limits | None = None) -> Picture:
    """Decode an upload: EXIF orientation applied, alpha over white, first frame of an animation, longest side bounded.

    UserError: empty, no picture, cut short, or over a limit (checked before the pixels are decoded).
    """
    bounds = bounds or limits()
    data = source if isinstance(source, bytes) else _read(Path(source), bounds)
    if not data:
        raise UserError("The file is empty; choose a picture.")
    if len(data) > bounds.upload_bytes:
        raise UserError(f"The file is larger than {bounds.upload_bytes // 1_000_000} MB; choose a smaller one.")
    notes: list[str] = []
    try:
        with warnings.catch_warnings():
            # Pillow warns of bombs at a size of its own; ours is the limit below.
            warnings.simplefilter("ignore")
            image = _open(data, bounds, notes)
    except UserError:
        raise
    except UnidentifiedImageError as error:
        raise UserError("This is not a picture that can be read; use JPEG, PNG, WebP, GIF, BMP or TIFF.") from error
    except Image.DecompressionBombError as error:
        raise UserError(_too_many_pixels(bounds)) from error
    except (OSError, SyntaxError, ValueError, EOFError, struct.error, MemoryError) as error:
        raise UserError("The picture is damaged or cut short; save it again and retry.") from error
    return Picture(np.ascontiguousarray(image), " ".join(notes))


def _read(path: Path, bounds: Limits) -> bytes:
    try:
        if not path.is_file():  # a device or a pipe could be read for ever
            raise OSError(f"{path.name} is no file")
        with path.open("rb") as stream:
            return stream.read(bounds.upload_bytes + 1)
    except OSError as error:
        raise UserError("The file could not be read; upload it again.") from error


def _too_many_pixels(bounds: Limits) -> str:
    return f"The picture has more than {bounds.pixels // 1_000_000} megapixels; make it smaller and retry."


def _open(data: bytes, bounds: Limits, notes: list[str]) -> np.ndarray:
    image: Any = Image.open(io.BytesIO(data))
    width, height = image.size
    if width * height > bounds.pixels:
        raise UserError(_too_many_pixels(bounds))
    frames = getattr(image, "n_frames", 1)
    if frames > 1:
        notes.append(f"First of {frames} frames.")
    image.draft("RGB", (bounds.side, bounds.side))  # JPEG only: decode at the nearest larger eighth
    image.load()
    image = _upright(image)
    if image.mode in ("RGBA", "CMYK", "L") and max(image.size) > bounds.side:
        image.thumbnail((bounds.side, bounds.side), Image.Resampling.LANCZOS, reducing_gap=2.0)  # before it is copied
    image = _to_rgb(image)
    if max(image.size) > bounds.side:
        scale = bounds.side / max(image.size)
        size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
        image = image.resize(size, Image.Resampling.LANCZOS, reducing_gap=2.0)
    if max(width, height) > bounds.side:
        notes.append(f"Made smaller: {width}×{height} to {image.width}×{image.height} pixels.")
    return np.asarray(image)


def _upright(image: Any) -> Any:
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # a broken EXIF block raises nearly anything, and the pixels are still good
        return image


def _to_rgb(image: Any) -> Any:
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        # 16-bit greys: Pillow's own conversion clips at 255 instead of scaling.
        values = np.asarray(image, dtype=np.float32)
        top = 65535.0 if values.max(initial=0) > 255 else 255.0
        values = np.clip(np.nan_to_num(values) * (255.0 / top), 0, 255)
        return Image.fromarray(values.round().astype(np.uint8)).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")


def check_array(image: Any, bounds: Limits | None = None) -> np.ndarray:
    """A picture that a program hands in: (height, width, 3) uint8 RGB, contiguous.

    UserError: another shape or type, no pixels, or more than the limit.
    """
    bounds = bounds or limits()
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise UserError("The picture must be an array of shape (height, width, 3) and type uint8, in RGB order.")
    if image.shape[0] == 0 or image.shape[1] == 0:
        raise UserError("The picture has no pixels; choose another one.")
    if image.shape[0] * image.shape[1] > bounds.array_pixels:
        raise UserError(f"The picture has more than {bounds.array_pixels // 1_000_000} megapixels; make it smaller.")
    return np.ascontiguousarray(image)
