"""What a user provides to the search for float layers: how accurate a model is, and how layers are compared."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from twinquant.errors import ArgumentError

__all__ = ["ModelEvaluator", "Similarity", "choose_similarity", "cosine_similarity"]

Similarity = Callable[[npt.NDArray[Any], npt.NDArray[Any]], float]
"""Compares a layer's float output with its quantized one; the less, the more sensitive is the layer."""


class ModelEvaluator(ABC):
    """How a model is calibrated and how accurate it is: the user's part of the search."""

    @abstractmethod
    def calibration(self, modified_model_file: str) -> None:
        """Run a modified model on the batches of the calibration, at least `batch_num` of them."""

    @abstractmethod
    def evaluate(self, model_file: str) -> Any:
        """Run a model on the test data and return its accuracy, as any object."""

    @abstractmethod
    def metric_eval(self, original_metric: Any, new_metric: Any) -> tuple[bool, float]:
        """Return whether the accuracy of a quantized model is good enough, and what it loses against the original."""


def cosine_similarity(first: npt.NDArray[Any], second: npt.NDArray[Any]) -> float:
    """Return the cosine of the angle between two arrays; 1 where both are zero, 0 where one is.

    Args:
        first: any real type and shape.
        second: the same shape.

    Raises:
        ArgumentError: the shapes differ.
    """
    if first.shape != second.shape:
        raise ArgumentError(f"arrays of the shapes {first.shape} and {second.shape} cannot be compared")
    left, right = first.astype(np.float64).ravel(), second.astype(np.float64).ravel()
    norms = float(np.linalg.norm(left) * np.linalg.norm(right))
    if norms == 0.0:
        return float(not left.any() and not right.any())
    return float(left @ right) / norms


_SIMILARITIES: dict[str, Similarity] = {"CosineSimilarity": cosine_similarity}


def choose_similarity(sensitivity: Any) -> Similarity:
    """Return the similarity that a user means.

    Args:
        sensitivity: a name, a function, or an object with the vendor's method `compare(original, quantized)`.

    Returns:
        The similarity; one that returns no number is an ArgumentError when it is called.

    Raises:
        ArgumentError: it is nothing of this.
    """
    if isinstance(sensitivity, str):
        if sensitivity in _SIMILARITIES:
            return _SIMILARITIES[sensitivity]
    elif not isinstance(sensitivity, type) and callable(getattr(sensitivity, "compare", sensitivity)):
        return _checked(getattr(sensitivity, "compare", sensitivity))
    raise ArgumentError(
        f"sensitivity: must be {' or '.join(map(repr, _SIMILARITIES))}, a function, or an object with the method "
        f"compare, got {sensitivity!r}"
    )


def _checked(compare: Callable[[npt.NDArray[Any], npt.NDArray[Any]], Any]) -> Similarity:
    """Return a user's function whose results are numbers; arrays of one element are numbers, too."""

    def similarity(first: npt.NDArray[Any], second: npt.NDArray[Any]) -> float:
        found = compare(first, second)
        try:
            return float(np.asarray(found).astype(np.float64, casting="same_kind").item())
        except (TypeError, ValueError) as error:
            raise ArgumentError(
                "sensitivity: must return a number for two arrays, the smaller the more a layer suffers, "
                f"got {found!r:.80}"
            ) from error

    return similarity
