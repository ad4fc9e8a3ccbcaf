"""The files of a twin: prototxt and caffemodel, and the module of Python layers where it needs one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from twinquant.errors import UnsupportedModelError
from twinquant.outputs import Flavor
from twinquant_caffe import python_layers
from twinquant_caffe.check import check_deploy
from twinquant_caffe.insert.python_style import MODULE_NAME, needs_module
from twinquant_caffe.net import CaffeNet
from twinquant_caffe.write import write_net

__all__ = ["MODULE_FILE", "write_twin"]

MODULE_FILE = f"{MODULE_NAME}.py"
"""Called alike for all nets: one path entry and one registration serve all nets of a folder."""

_SHOWN_PROBLEMS = 10


def write_twin(net: CaffeNet, folder: Path, prefix: str, flavor: Flavor) -> Sequence[Path]:
    """Write a twin and return its files, the prototxt first. A deploy twin is checked before it is returned.

    Raises:
        ModelContentError: a weight holds NaN or infinity.
        UnsupportedModelError: the device compiler would refuse the deploy twin, or the caffemodel would be too large.
    """
    start = f"{prefix}_{flavor.value}" if prefix else flavor.value
    files = write_net(net, folder, f"{start}_model.prototxt", f"{start}_weights.caffemodel")
    if flavor is Flavor.DEPLOY:
        _require_acceptance(*files)
    if not needs_module(net):
        return files
    module = folder / MODULE_FILE
    module.write_bytes(Path(python_layers.__file__).read_bytes())
    return *files, module


def _require_acceptance(prototxt: Path, caffemodel: Path) -> None:
    problems = check_deploy(prototxt, caffemodel, quantized=False)
    if problems:
        shown = "\n".join(f"  {problem}" for problem in problems[:_SHOWN_PROBLEMS])
        more = f"\n  and {len(problems) - _SHOWN_PROBLEMS} more" if len(problems) > _SHOWN_PROBLEMS else ""
        raise UnsupportedModelError(
            f"the device compiler would refuse the deploy net, nothing is written:\n{shown}{more}"
        )
