"""What torch's exporters say of a model that they cannot export, in the words that help its author."""

from __future__ import annotations

import re
from collections.abc import Iterable

__all__ = ["advice_for", "shortened"]

_LONGEST_REASON = 400

_NOISE = re.compile(
    r"\x1b\[[0-9;]*m"
    r"|For more information, run with TORCH_LOGS=\S*"
    r"|If you're using mark_dynamic,.*?Dim\.AUTO\."
    r"|The error above occurred when calling torch\.export\.export\..*"
    r"|Please feel free to request support or submit a pull request[^.]*GitHub:"
    r"|Please report a bug to PyTorch\.?"
    r"|\[?Caused by.*"
    r"|\(?https?://[^\s)]*\)?",
    re.DOTALL,
)
"""Colors, pages and internals that torch adds to its reasons."""

_ADVICE = (
    (
        r"No ONNX function|ONNX export of operator|Exporting the operator|UnsupportedOperator",
        "ONNX has no counterpart of this operator: replace it by others in forward",
    ),
    (
        r"[Dd]ata.dependent|boolean value of Tensor|Converting a tensor|unbacked|GuardOnDataDependent",
        "forward must not branch on values of tensors: move such code out of the model",
    ),
    (
        r"specialized it to be a constant|Constraints violated",
        "forward fixes the length of an axis: leave that axis out of dynamic_axes",
    ),
    (
        r"Only tuples, lists and Variables|[Oo]utputs? .*(must be|of type)|Unsupported output type|Only tensors",
        "forward must return tensors only: move the rest out of the model",
    ),
)
"""Words of the exporters, and what to do about it."""


def shortened(text: str) -> str:
    """Return a reason in one line, without colors, pages and internals."""
    line = " ".join(_NOISE.sub(" ", text).split()).rstrip(".")
    return line if len(line) <= _LONGEST_REASON else f"{line[:_LONGEST_REASON]}..."


def advice_for(reasons: Iterable[str]) -> str:
    """Return what to do about the reasons why a model cannot be exported."""
    text = "\n".join(reasons)
    advice = [words for pattern, words in _ADVICE if re.search(pattern, text)]
    if not advice:
        advice = ["export parts of the model to find the layer, and replace it"]
    found = "; ".join(advice)
    return f"{found[0].upper()}{found[1:]}" if not found.startswith("forward") else found
