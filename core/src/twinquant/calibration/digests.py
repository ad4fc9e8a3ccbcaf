"""Fingerprints of data, files and settings (SHA-256)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["digest_batch", "digest_batches", "digest_file", "digest_json"]

_BLOCK = 1 << 20


def digest_batch(feeds: Mapping[str, npt.NDArray[Any]]) -> str:
    """Return the fingerprint of one batch: its names, element types, shapes and values."""
    digest = hashlib.sha256()
    for name, array in sorted(feeds.items()):
        digest.update(json.dumps([name, array.dtype.name, array.shape]).encode())
        digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def digest_batches(digests: Iterable[str]) -> str:
    """Return the fingerprint of batches in their order."""
    return hashlib.sha256("".join(digests).encode()).hexdigest()


def digest_file(path: Path) -> str:
    """Return the fingerprint of a file's content."""
    digest = hashlib.sha256()
    with path.open("rb", buffering=0) as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def digest_json(content: Any) -> str:
    """Return the fingerprint of what JSON can express, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()
