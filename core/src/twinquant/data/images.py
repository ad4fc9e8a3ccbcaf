"""Images as they lie in a folder, decoded, resized and normalized."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt

from twinquant.data.feeds import make_feeds, shape_text
from twinquant.data.grouping import FileGroups
from twinquant.data.options import DataOptions
from twinquant.data.source import DataSource, Feeds
from twinquant.errors import ArgumentError, DataError
from twinquant.registry.float_model import ModelInput

__all__ = ["IMAGE_SUFFIXES", "ImageFolder"]

_log = logging.getLogger(__name__)

IMAGE_SUFFIXES = frozenset({".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"})
"""How the names of images end, in lower case."""

_LISTED = 10
_CHANNEL_AXES = (("NCHW", 1), ("NHWC", 3))
_MODES = {1: "L", 3: "RGB", 4: "RGBA"}
_INTEGERS = "biu"
_LARGEST_16_BITS = 65535


class ImageFolder(DataSource):
    """Pictures in the order of their names; a batch has as many as the model fixes, else as given, else one.

    Where the model leaves the number open, the last batch may have fewer than is given.
    """

    def __init__(
        self,
        folder: Path,
        files: Sequence[Path],
        inputs: Sequence[ModelInput],
        options: DataOptions,
        *,
        batch_num: int,
    ) -> None:
        """Find out how the model wants its pictures, and decode those that will be used once, to find broken ones.

        Args:
            folder: the folder.
            files: the pictures in it.
            inputs: the inputs of the model: one.
            options: how they are prepared.
            batch_num: how many batches calibration wants.

        Raises:
            ArgumentError: Pillow is not installed.
            DataError: pictures are broken, or the model's input is none for pictures.
        """
        self.name = f"data {str(folder)!r}"
        self._inputs, self._options = tuple(inputs), options
        self._layout, self._channels, self._size = _geometry(inputs, options, self.name)
        self._groups = FileGroups.of(folder, files, inputs[0], options.batch_size, self.name)
        whole, unseen = self._whole(files, self._groups.size * batch_num)
        together = replace(self._groups, files=whole + unseen)
        self._groups = replace(self._groups, files=whole)
        self._rest = together.rest("image") if together.count == self._groups.count else ""

    def _whole(self, files: Sequence[Path], needed: int) -> tuple[tuple[Path, ...], tuple[Path, ...]]:
        """Return as many pictures as are needed, without the broken ones before them, and those behind them."""
        pillow = _pillow()
        whole: list[Path] = []
        broken: list[str] = []
        unseen = iter(files)
        while len(whole) < needed and (path := next(unseen, None)) is not None:
            problem = _problem(pillow, path)
            if problem is None:
                whole.append(path)
            else:
                broken.append(f"{self._groups.label(path)}: {problem}")
        if broken:
            listed = "; ".join(broken[:_LISTED]) + (
                f"; and {len(broken) - _LISTED} more" if len(broken) > _LISTED else ""
            )
            found = f"{self.name}: {len(broken)} of {len(whole) + len(broken)} images are broken: {listed}"
            if not self._options.skip_broken:
                raise DataError(f"{found}. Replace them, or leave them out with skip_broken (--skip-broken)")
            _log.warning("%s; they are left out", found)
        return tuple(whole), tuple(unseen)

    @property
    def count(self) -> int:
        """How many batches there are; pictures beyond those that calibration wants do not count."""
        return self._groups.count

    @property
    def rest(self) -> str:
        """Which pictures do not fill a batch that the model fixes."""
        return self._rest

    @property
    def outline(self) -> str:
        """The names and sizes of the files, and how they are prepared."""
        return f"images by {self._groups.size}, {self._options}: {self._groups.sizes}"

    def batch(self, number: int) -> Feeds | None:
        """Decode the pictures of one batch."""
        files = self._groups.batch(number)
        if not files:
            return None
        where = f"{self.name}, {self._groups.label(files[0])}"
        pictures = [self._picture(path) for path in files]
        shapes = {picture.shape for picture in pictures}
        if len(shapes) > 1:
            raise DataError(f"{where}: pictures of one batch have different sizes; give a size (--size HxW)")
        return make_feeds(np.stack(pictures), self._inputs, where)

    def _picture(self, path: Path) -> npt.NDArray[Any]:
        pillow = _pillow()
        try:
            with pillow.open(path) as image:
                if image.mode.startswith("I"):
                    image = _as_8_bits(image, pillow)
                image = image.convert(_MODES[self._channels])
                if self._size is not None and image.size != self._size[::-1]:
                    image = image.resize(self._size[::-1], pillow.Resampling.BILINEAR)
                pixels = np.asarray(image).reshape(image.height, image.width, self._channels)
                if self._options.channel_order == "BGR":
                    pixels = pixels[..., ::-1]
        except (OSError, ValueError, SyntaxError, pillow.DecompressionBombError) as error:
            raise DataError(f"{self.name}: the image {self._groups.label(path)!r} is broken: {error}") from error
        wanted = np.dtype(self._inputs[0].dtype)
        if wanted.kind not in _INTEGERS:
            options = self._options
            pixels = (pixels.astype(np.float32) - np.asarray(options.mean, np.float32)) / np.asarray(
                options.std, np.float32
            )
        if self._layout == "NCHW":
            pixels = pixels.transpose(2, 0, 1)
        return np.ascontiguousarray(pixels.astype(wanted, copy=False))


def _as_8_bits(image: Any, pillow: Any) -> Any:
    """Return a 16-bit grayscale picture with 8 bits: Pillow by itself takes everything above 255 for white."""
    values = np.asarray(image)
    if values.size and not 0 <= int(values.min()) <= int(values.max()) <= _LARGEST_16_BITS:
        raise ValueError(f"its values go from {values.min()} to {values.max()}, which is no picture of 8 or 16 bits")
    return pillow.fromarray(np.rint(values / (_LARGEST_16_BITS / 255)).astype(np.uint8))


def _geometry(inputs: Sequence[ModelInput], options: DataOptions, name: str) -> tuple[str, int, tuple[int, int] | None]:
    """Return layout, channels and size (None: each picture's own) of what a model takes."""
    if len(inputs) != 1:
        listed = ", ".join(repr(wanted.name) for wanted in inputs)
        raise DataError(f"{name}: images feed one input, the model has {listed}; give arrays by input name")
    shape = inputs[0].shape
    if shape is None:
        shape = (None, None, None, None)
    if len(shape) != 4:
        raise DataError(
            f"{name}: the input {inputs[0].name!r} has shape {shape_text(shape)}, images need four axes (NCHW or NHWC)"
        )
    layout = options.layout
    if layout is None:
        # A height of 4 pixels is rarer than an opaque picture: 1 and 3 count before 4.
        layout = next((where for few in ((1, 3), (4,)) for where, n in _CHANNEL_AXES if shape[n] in few), "NCHW")
    channels, height, width = (shape[1], shape[2], shape[3]) if layout == "NCHW" else (shape[3], shape[1], shape[2])
    if not isinstance(channels, int):
        channels = 3
    if channels not in _MODES:
        raise DataError(
            f"{name}: the input {inputs[0].name!r} has shape {shape_text(shape)}; as {layout} it has {channels} "
            "channels, images have 1, 3 or 4. Is the layout the other one?"
        )
    dtype = np.dtype(inputs[0].dtype)
    kind = f"the input {inputs[0].name!r} is {dtype.name}"
    if dtype.kind in _INTEGERS and not np.can_cast(np.uint8, dtype):
        raise DataError(f"{name}: {kind}, which does not hold pixels from 0 to 255; give arrays")
    for what, values, neutral in (("mean", options.mean, 0.0), ("std", options.std, 1.0)):
        if dtype.kind in _INTEGERS and set(values) != {neutral}:
            raise ArgumentError(f"{what}: {kind} and takes the pixels as they are; leave {what} out")
        if len(values) not in (1, channels):
            raise ArgumentError(f"{what}: has {len(values)} values, but the model takes {channels} channels")
    if options.channel_order == "BGR" and channels != 3:
        raise ArgumentError(f"channel_order: BGR is for three channels, but the model takes {channels}; leave it out")
    size = options.size
    if size is None and isinstance(height, int) and isinstance(width, int):
        size = height, width
    return layout, channels, size


def _problem(pillow: ModuleType, path: Path) -> str | None:
    """Decode a picture and return why that fails, or None."""
    try:
        with pillow.open(path) as image:
            image.draft(None, (1, 1))  # a JPEG is read to its end in any case, and much faster at an eighth of its size
            image.load()
    except (OSError, ValueError, SyntaxError, pillow.DecompressionBombError) as error:
        return str(error) or type(error).__name__
    return None


def _pillow() -> ModuleType:
    try:
        from PIL import Image
    except ImportError as error:
        raise ArgumentError(
            "data: reading images needs Pillow; run: pip install 'twinquant-core[images]', or give arrays "
            "(.npy or .npz files)"
        ) from error
    return Image
