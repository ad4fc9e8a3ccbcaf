"""Running batches and showing their values to the stations."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from twinquant.calibration.digests import digest_batch
from twinquant.calibration.station import Station
from twinquant.data import DataSource, Feeds
from twinquant.errors import CalibrationError, DataError
from twinquant.registry.float_model import RunBatch, Tap

__all__ = ["Batches", "errors_about", "observe_batch", "taps_of", "too_few"]


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
    for station, (_, values) in zip(stations, run(feeds), strict=True):
        with errors_about(f"{station.watch.label}, batch {number + 1}"):
            for array in values:
                station.observe(array)
    return digest_batch(feeds)


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
