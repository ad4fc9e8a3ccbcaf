"""THE DIGITS OF THE DEMO: real handwritten digits, and how much of them each algorithm's models read.

A plugin ships a network that was trained on these digits and says how its models are run; what is compared is the same
for all. `examples/digits` of the repository holds the scripts that made the files and says where the digits come from.
"""

from __future__ import annotations

from twinquant.digits.comparison import compare_algorithms

__all__ = ["compare_algorithms"]
