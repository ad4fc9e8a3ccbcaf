"""Running batches and showing their values to the stations."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from twinquant.calibration.digests import digest_batch
from twinquant.calibration.station import Station
from twinquant.data import DataSource, Feeds
from twinquant.errors import CalibrationError, DataError
from twinquant.registry.float_model import Array, RunBatch, Tap

__all__ = ["Batches", "ObservingRun", "errors_about", "observe_batch", "observe_values", "taps_of", "too_few"]


class ObservingRun(ABC):
    """A `RunBatch` that can show stations what a batch holds itself, without handing the values out.

    What `Framework.activations` returns may be one: where values lie on an accelerator, or are gone when the model goes
    on, it is cheaper to look at them there and then.
    """

    @abstractmethod
    def __call__(self, feeds: Mapping[str, Array]) -> Iterator[tuple[Tap, Sequence[Array]]]:
        """Run one batch and yield the values of the taps, as every `RunBatch` does."""

    @abstractmethod
    def observe(self, feeds: Mapping[str, Array], stations: Sequence[Station], number: int) -> None:
        """Run one batch and let stations observe it, or add to them what was accumulated elsewhere.

        Args:
            feeds: the batch, arrays by input name.
            stations: those of all taps, in their order.
            number: which batch, from 0, for messages.

        Raises:
            CalibrationError: values are NaN or infinite; the stations are of no further use.
        """


def taps_of(stations: Sequence[Station]) -> list[Tap]:
    """Return where these stations look."""
    return [station.watch.tap for station in stations]


def observe_batch(run: RunBatch, source: DataSource, number: int, batch_num: int, stations: Sequence[Station]) -> str:
    """Run one batch and let the stations observe it.

    Args:
        run: runs the model; its taps are those of the stations, in their order.
        source: the data.
        number: which batch, from 0.
        batch_num: how many there should be.
        stations: what observes.

    Returns:
        the batch's fingerprint.

    Raises:
        DataError: the data ends before this batch, or it cannot be read.
        CalibrationError: values are NaN or infinite.
    """
    feeds = source.batch(number)
    if feeds is None:
        raise too_few(source, number, batch_num)
    if isinstance(run, ObservingRun):
        run.observe(feeds, stations, number)
    else:
        observe_values(run, feeds, stations, number)
    return digest_batch(feeds)


def observe_values(run: RunBatch, feeds: Mapping[str, Array], stations: Sequence[Station], number: int) -> None:
    """Run one batch and let stations observe the values of their taps, one after the other.

    Raises:
        CalibrationError: values are NaN or infinite.
    """
    for station, (_, values) in zip(stations, run(feeds), strict=True):
        with errors_about(f"{station.watch.label}, batch {number + 1}"):
            for array in values:
                station.observe(array)


@dataclass(frozen=True, slots=True, eq=False)
class Batches:
    """The batches of a calibration, to be gone through any number of times.

    Attributes:
        source: the data; it gives batches more than once.
        count: how many there are.
    """

    source: DataSource
    count: int

    def __iter__(self) -> Iterator[Feeds]:
        for number in range(self.count):
            feeds = self.source.batch(number)
            if feeds is None:
                raise too_few(self.source, number, self.count)
            yield feeds


@contextmanager
def errors_about(what: str) -> Iterator[None]:
    """Make calibration errors of the body begin with what they are about."""
    try:
        yield
    except CalibrationError as error:
        raise CalibrationError(f"{what}: {error}") from error


def too_few(source: DataSource, seen: int, wanted: int) -> DataError:
    """Return the error about data that ends early."""
    batches = "batch" if seen == 1 else "batches"
    rest = f", and {source.rest}" if source.rest else ""
    return DataError(
        f"{source.name}: only {seen} {batches}, but calibration wants {wanted} (batch_num){rest}; "
        + (f"give more data, or set batch_num to {seen}" if seen else "give data, or check where it comes from")
    )
