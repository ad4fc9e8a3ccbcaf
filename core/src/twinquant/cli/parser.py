"""The arguments of every command. Imports none of the commands, so that `--help` and `--version` answer at once."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import twinquant

__all__ = ["COMMANDS", "build_parser"]


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the whole command line; the chosen command is in `command`, None where there is none."""
    shared = argparse.ArgumentParser(add_help=False, argument_default=argparse.SUPPRESS)
    shared.add_argument("--debug", action="store_true", help="show the traceback of an error")
    shared.add_argument("-v", "--verbose", action="count", help="tell what is being done; twice: in detail")

    parser = argparse.ArgumentParser(
        prog="twinquant",
        description="A model and its record become two twins: one to run in float, one for the device compiler.",
        epilog="Exit codes: 0 done; 1 something is wrong with the input, or the twins disagree; 2 wrong usage.",
        parents=[shared],
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {twinquant.__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", dest="command")
    for name, (sentence, declare) in COMMANDS.items():
        description = f"{sentence[0].upper()}{sentence[1:]}."
        declare(commands.add_parser(name, help=sentence, description=description, parents=[shared]))
    return parser


def _save(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="the float model")
    parser.add_argument("record", metavar="RECORD", help="the record file: what calibration measured")
    parser.add_argument("save_path", metavar="SAVE_PATH", help="folder/prefix of the files, or a folder/")
    _save_type(parser)
    _framework(parser)
    _options(parser)


def _quantize(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="the float model")
    parser.add_argument("--save-path", required=True, metavar="PATH", help="folder/prefix of the files, or a folder/")
    _save_type(parser)
    _calibration(parser)


def _save_type(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--save-type", choices=("Both", "Fakequant", "Deploy"), default="Both", type=str.capitalize, help="which twins"
    )


def _calibrate(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="the float model")
    parser.add_argument("record", metavar="RECORD", help="the record file to write")
    parser.add_argument(
        "--prepared-model", metavar="FILE", help="where to write the fused model that the record is for"
    )
    _calibration(parser)


def _calibration(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--data", required=True, metavar="PATH", help="a folder of images, .npy or .npz files; or one such file")
    add("--config", metavar="FILE", help="the configuration, JSON or .cfg (default: all layers, ifmr)")
    add("--batches", type=_count, metavar="N", help="how many batches (default: what the configuration says, or 32)")
    add("--batch-size", type=_count, metavar="B", help="samples in a batch, where the model leaves that open")
    add("--mean", type=_numbers, default=(0.0,), metavar="A,B,C", help="images: subtracted from the pixels, 0 to 255")
    add("--std", type=_numbers, default=(1.0,), metavar="A,B,C", help="images: what the difference is divided by")
    add("--layout", choices=("NCHW", "NHWC"), help="images: order of the axes (default: from the model's input)")
    add(
        "--channel-order", choices=("RGB", "BGR"), default="RGB", help="images: most Caffe nets take BGR (default: RGB)"
    )
    add("--size", type=_size, metavar="HxW", help="images: what they are resized to (default: from the model's input)")
    add("--skip-broken", action="store_true", help="images: leave out those that cannot be decoded")
    add("--workers", type=_count, default=1, metavar="N", help="how many processes run batches (default: 1)")
    add("--allow-constant", action="store_true", help="go on where every value of an activation is the same")
    add("--no-resume", action="store_true", help="neither keep nor use the state of a calibration that was cut off")
    _framework(parser)
    _options(parser)


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number above 0, got {text!r}")
    return int(text)


def _numbers(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"must be numbers with commas between them, got {text!r}") from error


def _size(text: str) -> tuple[int, int]:
    height, cross, width = text.lower().partition("x")
    if not cross:
        raise argparse.ArgumentTypeError(f"must be HEIGHTxWIDTH, such as 224x224, got {text!r}")
    return _count(height), _count(width)


def _plan(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="the float model")
    parser.add_argument(
        "record", metavar="RECORD", nargs="?", help="the record file; without it: which layers could be quantized"
    )
    _framework(parser)


def _inspect(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", metavar="RECORD_OR_MODEL", help="a record file, or a model that a plugin recognizes")
    _framework(parser)


def _verify(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("fake_quant", metavar="FAKE_QUANT", help="the fake-quant model")
    parser.add_argument("deploy", metavar="DEPLOY", help="the deploy model")
    parser.add_argument("--data", metavar="FILE.npz", help="input arrays by input name (default: seeded random arrays)")
    _framework(parser)


def _check(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "deploy", metavar="DEPLOY_PREFIX", help="folder/prefix that the twins were saved to, or the deploy model's file"
    )
    _framework(parser)


def _plugins(parser: argparse.ArgumentParser) -> None:
    del parser  # it has no arguments of its own


def _demo(parser: argparse.ArgumentParser) -> None:
    folder = Path("twinquant_demo")
    parser.add_argument("--folder", type=Path, metavar="DIR", default=folder, help="where the files go (%(default)s)")
    _framework(parser)


def _framework(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--framework", metavar="NAME", help="which plugin reads the model (default: the best claim)")


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--option",
        action="append",
        default=[],
        type=_option,
        metavar="NAME=VALUE",
        help="a setting of the model's framework, such as fake_quant_style=python for Caffe; may be repeated",
    )


def _option(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or not name.isidentifier():
        raise argparse.ArgumentTypeError(f"must be NAME=VALUE, got {text!r}")
    return name, value


COMMANDS: dict[str, tuple[str, Callable[[argparse.ArgumentParser], None]]] = {
    "quantize": ("turn a float model and data into a fake-quant twin and a deploy twin", _quantize),
    "calibrate": ("measure a float model on data and write its record", _calibrate),
    "save": ("turn a model and its record into a fake-quant twin and a deploy twin", _save),
    "plan": ("list every node: quantized or not, with which factors, and why not", _plan),
    "inspect": ("tell what a record file or a model holds", _inspect),
    "verify": ("prove that a fake-quant twin and a deploy twin hold the same integers and compute the same", _verify),
    "check": ("hold a deploy twin against the rules of the device compiler", _check),
    "plugins": ("list the framework plugins: ok, broken and why, or absent and how to install them", _plugins),
    "demo": ("quantize a shipped network that reads handwritten digits, and compare its accuracies", _demo),
}
"""What each command is for and which arguments it has; the module of the same name runs it."""
