"""Every error that TwinQuant raises on purpose.

TwinQuantError
├── ArgumentError             a call's or command's arguments contradict each other (also a ValueError)
├── RecordError               something about a record; `.key` and `.field` say where
│   ├── RecordFileError       the file is missing, unreadable, binary or holds no record at all
│   ├── RecordSyntaxError     the text is not a record file; `.line` and `.column` say where
│   ├── RecordValueError      a factor is absent, out of range, of the wrong length or of an unknown type
│   └── RecordLayerError      the record and the graph disagree: no such layer, an ambiguous or an unsupported one
├── ConfigError               a quantization configuration is wrong; `.path` says where
├── ModelError                something about the user's model
│   ├── ModelFileError        the file is missing, truncated, not of its format, or its external data is unsafe
│   ├── ModelContentError     a weight or a bias cannot be quantized (NaN, infinity, overflow)
│   └── UnsupportedModelError the model is valid, but this framework or version cannot handle it
├── DataError                 calibration data are missing, broken, too few, or do not fit the model's inputs
├── CalibrationError          the values that calibration saw give no factors: none at all, NaN, infinite, or too large
├── OutputError               something about where the results go
│   ├── OutputPathError       the target is no folder, not writable, or is one of the inputs
│   ├── OutputConflictError   a file in the target folder belongs to another model
│   └── OutputWriteError      writing failed: no space left, a permission, a broken disk
├── PluginError               something about a framework plugin
│   ├── NoFrameworkError      nobody recognizes the graph; says what to install when that is known
│   ├── AmbiguousFrameworkError  two plugins claim the graph equally
│   ├── BrokenPluginError     the plugin that is needed fails to import or to register; its exception is the cause
│   ├── IncompatiblePluginError  the plugin was built for another version of the plugin interface
│   └── CapabilityError       the plugin works, but does not offer what was asked for
└── VerificationError         two models cannot be compared: they are no twins, or do not run
"""

from __future__ import annotations

__all__ = [
    "AmbiguousFrameworkError",
    "ArgumentError",
    "BrokenPluginError",
    "CalibrationError",
    "CapabilityError",
    "ConfigError",
    "DataError",
    "IncompatiblePluginError",
    "ModelContentError",
    "ModelError",
    "ModelFileError",
    "NoFrameworkError",
    "OutputConflictError",
    "OutputError",
    "OutputPathError",
    "OutputWriteError",
    "PluginError",
    "RecordError",
    "RecordFileError",
    "RecordLayerError",
    "RecordSyntaxError",
    "RecordValueError",
    "TwinQuantError",
    "UnsupportedModelError",
    "VerificationError",
]


class TwinQuantError(Exception):
    """The base of every error that TwinQuant raises on purpose; its text is written for the user."""


class ArgumentError(TwinQuantError, ValueError):
    """The arguments of a call or of a command contradict each other or name something unknown."""


class RecordError(TwinQuantError):
    """A record is wrong; `key` names the layer and `field` the factor, where known."""

    def __init__(self, message: str, *, key: str | None = None, field: str | None = None) -> None:
        super().__init__(message)
        self.key = key
        self.field = field


class RecordFileError(RecordError):
    """The record file is missing, unreadable, binary, or holds no record at all."""


class RecordSyntaxError(RecordError):
    """The record file is not protobuf text of a known record schema; `line` and `column` count from 1."""

    def __init__(self, message: str, *, line: int | None = None, column: int | None = None) -> None:
        super().__init__(message)
        self.line = line
        self.column = column


class RecordValueError(RecordError):
    """A factor is absent, out of range, of the wrong length or of an unknown type."""


class RecordLayerError(RecordError):
    """The record and the graph disagree about a layer: unknown, ambiguous, or not quantizable."""


class ConfigError(TwinQuantError):
    """A quantization configuration is wrong; `path` names the setting, as `$.conv1.quant_enable`, where known."""

    def __init__(self, message: str, *, path: str | None = None) -> None:
        super().__init__(message)
        self.path = path


class ModelError(TwinQuantError):
    """Something is wrong with the user's model."""


class ModelFileError(ModelError):
    """A model file is missing, truncated, not of its format, or refers to data it may not or cannot read."""


class ModelContentError(ModelError):
    """A weight or a bias holds values that cannot be quantized."""


class UnsupportedModelError(ModelError):
    """The model is valid, but what it asks for is outside what this framework or version handles."""


class DataError(TwinQuantError):
    """The calibration data are missing, broken, too few, or do not fit the inputs of the model."""


class CalibrationError(TwinQuantError):
    """The values that calibration saw give no factors: there were none, or they are NaN, infinite or too large."""


class OutputError(TwinQuantError):
    """The results cannot be put where they were asked for."""


class OutputPathError(OutputError):
    """The target is no folder, cannot be created, or would overwrite an input."""


class OutputConflictError(OutputError):
    """A file of the target folder belongs to another model and would be destroyed."""


class OutputWriteError(OutputError):
    """Writing failed: no space left, no permission, or an input/output error."""


class PluginError(TwinQuantError):
    """A framework plugin is missing, broken, incompatible or cannot do what was asked."""


class NoFrameworkError(PluginError):
    """No installed plugin recognizes the graph."""


class AmbiguousFrameworkError(PluginError):
    """Two plugins recognize the graph equally well."""


class BrokenPluginError(PluginError):
    """A plugin that is needed fails to import or to register; its own exception is the cause."""


class IncompatiblePluginError(PluginError):
    """A plugin that is needed was built for another version of the plugin interface."""


class CapabilityError(PluginError):
    """The plugin works, but does not offer the capability that was asked for."""


class VerificationError(TwinQuantError):
    """Two models cannot be compared as twins."""
