"""A photo or a film as one that Chromium takes for its camera."""

from itertools import islice
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from pipelines.common.video import Video


def write_y4m(photo: Path, target: Path, size: tuple[int, int] = (640, 480), frames: int = 15) -> Path:
    """An uncompressed film (YUV4MPEG2, 4:2:0) of a still photo on grey."""
    image = Image.open(photo).convert("RGB")
    image.thumbnail(size)
    canvas = Image.new("RGB", size, (128, 128, 128))
    canvas.paste(image, ((size[0] - image.width) // 2, (size[1] - image.height) // 2))
    y, cb, cr = (np.asarray(plane) for plane in canvas.convert("YCbCr").split())
    small = [
        plane.reshape(size[1] // 2, 2, size[0] // 2, 2).mean(axis=(1, 3)).round().astype(np.uint8) for plane in (cb, cr)
    ]
    frame = b"FRAME\n" + y.tobytes() + small[0].tobytes() + small[1].tobytes()
    header = f"YUV4MPEG2 W{size[0]} H{size[1]} F15:1 Ip A1:1 C420jpeg\n".encode()
    target.write_bytes(header + frame * frames)
    return target


def film_y4m(video: Path, target: Path, most: int = 100) -> Path:
    """The same of a film: its first frames, at its own rate."""
    with Video(video) as source:
        rate, (height, width) = round(source.rate), source.size
        width, height = width - width % 2, height - height % 2
        with target.open("wb") as stream:
            stream.write(f"YUV4MPEG2 W{width} H{height} F{rate}:1 Ip A1:1 C420jpeg\n".encode())
            for frame in islice(source.every(), most):
                pixels = cv2.cvtColor(frame.pixels[:height, :width], cv2.COLOR_RGB2YUV_I420)
                stream.write(b"FRAME\n" + pixels.tobytes())
    return target
