"""The contract between the core and a framework plugin."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Mapping, Sequence
from enum import Enum, IntEnum
from pathlib import Path
from typing import Any, ClassVar

from twinquant.config.quant_config import LayerConfig
from twinquant.errors import ArgumentError, CapabilityError
from twinquant.outputs.artifact import Flavor
from twinquant.plan import LayerInfo, QuantPlan
from twinquant.records import RecordSet
from twinquant.registry.float_model import Array, LayerWeight, ModelInput, RunBatch, Tap
from twinquant.verification.report import VerifyReport

__all__ = ["Capability", "Framework", "Match"]


class Match(IntEnum):
    """How strongly a framework claims a graph; the strongest claim wins, a tie is an error."""

    NO = 0
    NAME = 1
    """The file name looks right."""
    CONTENT = 2
    """The file's content looks right."""
    TYPE = 3
    """The object is of the framework's own type."""


class Capability(str, Enum):
    """What a framework may offer beyond save_model: the name of a method. Declared, never guessed."""

    CALIBRATE = "activations"
    """`activations` runs a float model; `model_inputs`, `fuse`, `weight`, `balance` and `write_float` belong to it."""
    VERIFY = "verify"
    """`verify` compares two written twins."""
    CHECK = "check"
    """`check` holds a written deploy twin against the rules of the device compiler."""
    INSPECT = "inspect"
    """`inspect` tells about a model file."""
    DEMO = "demo"
    """`demo` runs the framework's shipped example."""


class Framework(ABC):
    """One framework, as the core uses it. Stateless: no method keeps anything, and none modifies its input.

    `source` is what the user passed as the graph: a path, a tuple of paths or an object. `graph` is whatever `load`
    returned; the core only hands it back.
    """

    name: ClassVar[str]
    """The framework's name: equal to the entry point's, to the extra's and to the plugin's folder."""
    capabilities: ClassVar[frozenset[Capability]] = frozenset()
    """Which of the optional methods work."""
    weight_algorithms: ClassVar[frozenset[str]] = frozenset({"arq_quantize"})
    """How the scales and the integers of weights may be found; `ada_quantize` is what `round_weights` does."""
    companion_endings: ClassVar[tuple[str, ...]] = ()
    """How files end that `write` puts beside a model; a later save deletes those of them that it makes obsolete."""

    @abstractmethod
    def recognize(self, source: Any) -> Match:
        """Say how strongly this framework claims the source. Cheap: no import of the framework, no whole file read.

        A path that does not exist may be claimed by its name. Must not raise for sources of other frameworks.
        """

    @abstractmethod
    def load(self, source: Any) -> Any:
        """Read the source into the framework's graph. Big weights stay on disk.

        Raises:
            ModelError: the source is missing, damaged or unsupported.
        """

    def prepare(self, graph: Any, records: RecordSet) -> Any:
        """Return the graph that the records are about: for most frameworks the loaded one.

        A framework whose users give the model as it was before calibration folds normalizations into layers here.

        Args:
            graph: what `load` returned.
            records: what calibration measured, about the prepared graph.

        Raises:
            RecordLayerError: a record names a layer that the preparation removes.
        """
        del records
        return graph

    @abstractmethod
    def layers(self, graph: Any) -> Sequence[LayerInfo]:
        """Describe every node of the main graph, in graph order; see `LayerInfo`."""

    @abstractmethod
    def insert(self, graph: Any, plan: QuantPlan, flavor: Flavor) -> Any:
        """Return a new graph with the plan lowered to the framework's operators for one twin.

        Big weights are shared with `graph` or quantized lazily, when they are written.

        Raises:
            ModelContentError: a bias or a weight cannot be quantized.
        """

    @abstractmethod
    def write(self, graph: Any, folder: Path, prefix: str, flavor: Flavor) -> Sequence[Path]:
        """Write one twin into an existing folder and return its files, the model file first.

        File names start with `prefix` and an underscore; with an empty prefix there is no underscore.

        Raises:
            ModelContentError: a weight that was quantized lazily holds NaN or infinity.
        """

    def sidecars(self, graph: Any, plan: QuantPlan, folder: Path, prefix: str) -> Sequence[Path]:
        """Write files that belong to both twins, such as quant.json, and return them. Most frameworks have none."""
        del graph, plan, folder, prefix
        return ()

    def with_options(self, options: Mapping[str, Any]) -> Framework:
        """Return this framework with settings that only it knows, such as the style of its fake-quant twin.

        Args:
            options: values by name: keyword arguments of `save_model` and its siblings that the core does not know.

        Raises:
            ArgumentError: the framework has no option of this name, or the value is wrong.
        """
        if options:
            raise ArgumentError(f"{', '.join(sorted(options))}: the {self.name} framework has no such option")
        return self

    def inputs(self, source: Any, graph: Any) -> Sequence[Path]:
        """List the files that a graph was loaded from: no output may replace one of them."""
        del graph
        return (Path(source),) if isinstance(source, (str, os.PathLike)) else ()

    def companions(self, model: Path) -> Sequence[str]:
        """List the names of the files beside a written model file that belong to it, such as external data.

        Called for model files of any origin in a target folder; a file that is not this framework's has none.
        """
        del model
        return ()

    def activations(self, graph: Any, taps: Sequence[Tap], *, threads: int | None = None) -> RunBatch:
        """Make a float model ready to run on calibration data (`Capability.CALIBRATE`).

        Only what the taps need is computed. Activations never go to disk, and none outlives its batch. The same batch
        gives the same bits, in any process.

        Args:
            graph: what `load`, `fuse` or `balance` returned.
            taps: where to look: quantizable layers.
            threads: how many threads the framework's runtime may use; None: its own choice.

        Raises:
            UnsupportedModelError: the framework's runtime cannot run the model. Raised by each run, too.
        """
        raise self._lacks(Capability.CALIBRATE)

    def model_inputs(self, graph: Any) -> Sequence[ModelInput]:
        """Describe the inputs that data is given for, in order (with `Capability.CALIBRATE`)."""
        raise self._lacks(Capability.CALIBRATE)

    def prepare_data(self, graph: Any, data: Any) -> Any:
        """Return calibration data in a form that the core takes; most frameworks' data is in one already.

        Args:
            graph: what `load` returned.
            data: what the user gave: see `twinquant.calibrate`. Nothing may be taken from it before it is asked for.
        """
        del graph
        return data

    def fuse(self, graph: Any, skip: Collection[str]) -> tuple[Any, Sequence[str]]:
        """Fold what normalizes a layer's output into the layer (with `Capability.CALIBRATE`).

        Args:
            graph: the graph.
            skip: names of layers into which nothing is folded.

        Returns:
            a new graph, and the names of the layers into which something was folded; they keep their names.
        """
        raise self._lacks(Capability.CALIBRATE)

    def weight(self, graph: Any, layer: str, *, recurrence: bool = False) -> LayerWeight:
        """Return a layer's weight, or the recurrence weight of an RNN (with `Capability.CALIBRATE`)."""
        raise self._lacks(Capability.CALIBRATE)

    def balance(self, graph: Any, factors: Mapping[str, Array]) -> Any:
        """Return a new graph with the weights of some layers multiplied (with `Capability.CALIBRATE`).

        Args:
            graph: the graph.
            factors: by layer, one factor per input channel: float32 `(Cin,)`, > 0.
        """
        raise self._lacks(Capability.CALIBRATE)

    def round_weights(
        self,
        graph: Any,
        settings: Mapping[str, LayerConfig],
        records: RecordSet,
        batches: Iterable[Mapping[str, Array]],
    ) -> Any:
        """Return a new graph whose weights are on the grids of their scales (with `ada_quantize`).

        Args:
            graph: what the records are for.
            settings: of the layers whose weights are rounded by training.
            records: the factors of all quantized layers.
            batches: arrays by input name; can be gone through again and again.
        """
        raise self._lacks(Capability.CALIBRATE)

    def write_float(self, graph: Any, folder: Path, name: str) -> Sequence[Path]:
        """Write a float graph into an existing folder (with `Capability.CALIBRATE`).

        Args:
            graph: what `load`, `fuse` or `balance` returned.
            folder: where the files go.
            name: the name of the model file.

        Returns:
            the files, the model file first.
        """
        raise self._lacks(Capability.CALIBRATE)

    def verify(self, fake_quant: Path, deploy: Path, data: Mapping[str, Any] | None) -> VerifyReport:
        """Prove that two written twins agree (`Capability.VERIFY`).

        Args:
            fake_quant: the fake-quant model file.
            deploy: the deploy model file.
            data: arrays by input name; None means seeded random input.

        Raises:
            VerificationError: the two cannot be compared at all.
        """
        raise self._lacks(Capability.VERIFY)

    def check(self, deploy: Path) -> Sequence[str]:
        """Hold a written deploy twin against the rules of the device compiler (`Capability.CHECK`).

        Args:
            deploy: its model file; further files are found beside it.

        Returns:
            what the compiler would refuse, one sentence each; none: the twin is accepted.

        Raises:
            ModelFileError: a file is missing or unreadable.
        """
        raise self._lacks(Capability.CHECK)

    def inspect(self, source: Path) -> Sequence[tuple[str, str]]:
        """Tell what a model file holds, as (fact, value) rows (`Capability.INSPECT`)."""
        raise self._lacks(Capability.INSPECT)

    def demo(self, folder: Path) -> Sequence[Sequence[str]]:
        """Run the shipped example in a folder; return the rows of one table, header first (`Capability.DEMO`)."""
        raise self._lacks(Capability.DEMO)

    def _lacks(self, capability: Capability) -> CapabilityError:
        return CapabilityError(f"the {self.name} plugin does not offer {capability.value!r} (in this version)")
