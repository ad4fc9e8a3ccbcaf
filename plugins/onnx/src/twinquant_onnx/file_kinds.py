"""What a file is that is no ONNX model, as far as its first bytes tell."""

from __future__ import annotations

__all__ = ["describe_head"]

_KINDS: tuple[tuple[int, bytes, str], ...] = (
    (
        0,
        b"version https://git-lfs",
        "it is a Git LFS pointer to the model: run 'git lfs pull' to fetch the model itself",
    ),
    (0, b"PK\x03\x04", "it is a zip archive, perhaps a PyTorch or NumPy file"),
    (0, b"\x80\x02", "it is a Python pickle, perhaps a PyTorch file"),
    (0, b"\x89HDF", "it is an HDF5 file, perhaps a Keras model"),
    (0, b"\x1f\x8b", "it is compressed with gzip: unpack it first"),
    (4, b"ORTM", "it is an ONNX Runtime .ort file: the .onnx file that it was made from is needed"),
    (4, b"TFL3", "it is a TensorFlow Lite model"),
)
"""Position and content of bytes that give a file away."""
_TEXT = frozenset(range(0x20, 0x7F)) | {0x09, 0x0A, 0x0D}


def describe_head(head: bytes) -> str:
    """Return what a file that is no ONNX model may be, given its first bytes."""
    for position, magic, kind in _KINDS:
        if head.startswith(magic, position):
            return kind
    if head and _TEXT.issuperset(head):
        return "it is a text file: ONNX text and JSON are not supported, the binary form is needed"
    return "it may be truncated, damaged or of another format"
