"""OpenCV, which runs Caffe nets on machines without Caffe; imported when it is needed."""

from __future__ import annotations

from typing import Any

from twinquant.errors import CapabilityError

__all__ = ["import_opencv"]


def import_opencv() -> Any:
    """Return the module cv2.

    Raises:
        CapabilityError: it is not installed, or it is a version that reads no Caffe nets.
    """
    try:
        import cv2
    except ImportError as error:
        raise CapabilityError(
            f"Caffe nets are run with OpenCV, which cannot be imported ({error}); run: "
            'pip install "twinquant-caffe[opencv]"'
        ) from error
    if not hasattr(cv2.dnn, "readNetFromCaffe"):
        raise CapabilityError(
            f"OpenCV {cv2.__version__} reads no Caffe nets any more; run: pip install "
            '"twinquant-caffe[opencv]", which takes a version that does (below 5)'
        )
    return cv2
