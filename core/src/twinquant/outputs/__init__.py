"""THE DUAL-OUTPUT CONTRACT: both twins land together or not at all, in files of known names and modes."""

from twinquant.outputs.artifact import Artifact, DualOutput, Flavor
from twinquant.outputs.commit import commit
from twinquant.outputs.staging import recover, staging_folder
from twinquant.outputs.target import Target, parse_save_path

__all__ = [
    "Artifact",
    "DualOutput",
    "Flavor",
    "Target",
    "commit",
    "parse_save_path",
    "recover",
    "staging_folder",
]
