"""THE CONFORMANCE KIT: a test class that every framework plugin inherits and passes unchanged.

Needs pytest (`pip install "twinquant-core[testing]"`). See `FrameworkContract` for how to use it.
"""

import pytest

# Before the modules are imported: pytest then explains their failed assertions value by value.
for _module in ("calibrating", "lowering", "recognition", "saving"):
    pytest.register_assert_rewrite(f"twinquant.testing.{_module}")

from twinquant.testing.contract import FrameworkContract  # noqa: E402  after the registration
from twinquant.testing.factors import records_for  # noqa: E402  after the registration

__all__ = ["FrameworkContract", "records_for"]
