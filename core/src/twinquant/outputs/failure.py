"""What a user reads when the system refuses to write."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from twinquant.errors import OutputError, OutputPathError, OutputWriteError

__all__ = ["output_errors"]

_FREE_SPACE = "free some space, or choose a save_path on another disk"
_PERMISSION = "choose a save_path that you may write to, or change the permissions"
_ADVICE = {
    errno.ENOSPC: _FREE_SPACE,
    errno.EDQUOT: _FREE_SPACE,
    errno.EFBIG: "raise the limit on file sizes (ulimit -f), or choose a save_path on another file system",
    errno.EACCES: _PERMISSION,
    errno.EPERM: _PERMISSION,
    errno.EROFS: _PERMISSION,
    errno.ENOLCK: "choose a save_path on a file system that supports file locks",
    errno.ENOSYS: "choose a save_path on a file system that supports file locks",
}
_BAD_PATH = {
    errno.ENOTDIR: "a part of the path is a file; choose another save_path",
    errno.EEXIST: "it exists and is no folder; choose another save_path",
    errno.ENAMETOOLONG: "choose a shorter save_path",
    errno.ELOOP: "a symbolic link leads in a circle or stands in the way; choose another save_path",
}


@contextmanager
def output_errors(folder: Path) -> Iterator[None]:
    """Turn what the system says about writing to a folder into an error for the user.

    Raises:
        OutputPathError: the path cannot be a folder.
        OutputWriteError: anything else that the system refuses: no space, no permission, a limit, a broken disk.
    """
    try:
        yield
    except OSError as error:
        raise _explained(error, folder) from error


def _explained(error: OSError, folder: Path) -> OutputError:
    code = error.errno or 0
    reason = error.strerror or str(error)
    place = f" ({os.fsdecode(error.filename)})" if isinstance(error.filename, (str, bytes)) else ""
    where = f"cannot write to the folder {str(folder)!r}: {reason}{place}"
    if code in _BAD_PATH:
        return OutputPathError(f"{where}; {_BAD_PATH[code]}")
    advice = _ADVICE.get(code, "check the folder and its disk, or choose another save_path")
    return OutputWriteError(f"{where}; earlier outputs are unchanged; {advice}")
