"""Configuration files as text."""

from __future__ import annotations

from pathlib import Path

from twinquant.errors import ConfigError, OutputWriteError
from twinquant.replacing import replace_file

__all__ = ["read_text", "write_text"]


def read_text(path: Path) -> str:
    """Read a file in UTF-8.

    Raises:
        ConfigError: the file is missing, a folder, unreadable or no text.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise ConfigError(f"there is no configuration file {str(path)!r}") from error
    except IsADirectoryError as error:
        raise ConfigError(f"{str(path)!r} is a folder; a configuration file is expected") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{str(path)!r} is no configuration: it is not text in UTF-8") from error
    except (OSError, ValueError) as error:
        raise ConfigError(f"configuration file {str(path)!r} cannot be read: {error}") from error


def write_text(path: Path, text: str) -> None:
    """Replace a file in one step, or leave what is there untouched.

    Raises:
        OutputWriteError: the folder is missing or not writable, the disk is full, or the target is a folder.
    """
    try:
        replace_file(path, text.encode())
    except OSError as error:
        raise OutputWriteError(
            f"configuration file {str(path)!r} cannot be written: {error.strerror or error}; "
            "its folder has to exist, be writable and have space left"
        ) from error
