"""External data of the input: which files a model may read its tensors from, and what they must hold."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass, field
from pathlib import Path

import onnx

from twinquant.errors import ModelFileError
from twinquant_onnx.tensor_sizes import stored_nbytes, tensor_label
from twinquant_onnx.tensors import FileRange

__all__ = ["ExternalFiles", "external_entries"]

_MOST_DIGITS = 19
"""No file has an offset of more decimal digits."""


def external_entries(tensor: onnx.TensorProto) -> dict[str, str]:
    """Return the external_data entries of a tensor by key; of equal keys the last counts."""
    return {entry.key: entry.value for entry in tensor.external_data}


@dataclass(slots=True)
class ExternalFiles:
    """The files that tensors of one model lie in.

    Attributes:
        folder: the model's folder; no file may lie outside.
        advice: what to do about a file that is not found, for models that do not say which folder they come from.
        files: the files seen so far with their sizes in bytes, resolved, by location.
    """

    folder: Path
    advice: str = ""
    files: dict[str, tuple[Path, int]] = field(default_factory=dict)

    @property
    def paths(self) -> tuple[Path, ...]:
        """The files that were read from, each once, in the order of their first tensor."""
        return tuple(dict.fromkeys(path for path, _ in self.files.values()))

    def content(self, tensor: onnx.TensorProto, node: onnx.NodeProto | None) -> FileRange:
        """Return where the data of an external tensor is.

        Args:
            tensor: a tensor with data_location EXTERNAL.
            node: the node whose attribute it is, or None.

        Raises:
            ModelFileError: its file may not be read, is missing, or does not hold the tensor.
        """
        entries = external_entries(tensor)
        location = entries.get("location", "")
        label = f"{tensor_label(tensor, node)}, external data {location!r}"
        return self.range(
            label,
            location,
            _number(entries, "offset", label) or 0,
            _number(entries, "length", label),
            stored_nbytes(tensor.data_type, tensor.dims),
        )

    def range(self, label: str, location: str, offset: int, length: int | None, needed: int | None) -> FileRange:
        """Return a range of an external file after checking it.

        Args:
            label: how errors speak of the tensor.
            location: the file, relative to the model's folder.
            offset: where the tensor starts, in bytes.
            length: how many bytes the model says it takes; None if it does not say.
            needed: how many bytes its shape and element type take; None if they cannot lie in a file.

        Raises:
            ModelFileError: the file may not be read, is missing, or does not hold the tensor.
        """
        if needed is None:
            raise ModelFileError(f"{label}: strings and unknown element types cannot lie in a file of their own")
        if needed < 0 or offset < 0:
            raise ModelFileError(f"{label}: dims and offset must not be negative")
        if length is not None and length != needed:
            raise ModelFileError(
                f"{label}: the model says length {length}, but shape and element type need {needed} bytes"
            )
        if location not in self.files:
            self.files[location] = self._open(label, location)
        path, size = self.files[location]
        if offset + needed > size:
            raise ModelFileError(
                f"{label}: the tensor takes bytes {offset} to {offset + needed}, but {str(path)!r} has only {size}: "
                "the file is truncated or belongs to another model"
            )
        return FileRange(path, offset, needed)

    def _open(self, label: str, location: str) -> tuple[Path, int]:
        """Resolve a location and measure its file."""
        if not location:
            raise ModelFileError(
                f"{label}: the location is empty; the name of a file in the model's folder is expected"
            )
        if Path(location).is_absolute():
            raise ModelFileError(f"{label}: the location is absolute; it must be relative to the model's folder")
        try:
            folder = Path(os.path.realpath(self.folder))
            path = Path(os.path.realpath(self.folder / location))
            if not path.is_relative_to(folder):
                raise ModelFileError(
                    f"{label}: the location leads out of the model's folder, to {str(path)!r}; put the file itself "
                    f"(not a link to it) into {str(folder)!r}"
                )
            status = path.stat()
        except FileNotFoundError as error:
            raise ModelFileError(f"{label}: there is no file {str(path)!r}; {self._missing()}") from error
        except (OSError, ValueError) as error:
            raise ModelFileError(f"{label}: the file cannot be read ({error})") from error
        if not stat.S_ISREG(status.st_mode):
            raise ModelFileError(f"{label}: {str(path)!r} is not a regular file")
        return path, status.st_size

    def _missing(self) -> str:
        return self.advice or "copy the model together with its data files"


def _number(entries: dict[str, str], key: str, label: str) -> int | None:
    """Read a number of an external_data entry; an empty one counts as absent, as for onnx itself."""
    text = entries.get(key, "")
    if not text:
        return None
    if not (text.isascii() and text.isdigit() and len(text) <= _MOST_DIGITS):
        raise ModelFileError(f"{label}: {key} must be a number of bytes, 0 or more, got {text!r}")
    return int(text)
