"""WHERE CALIBRATION DATA COMES FROM: folders, files, arrays and iterables, all as batches by number."""

from twinquant.data.iterables import length_of
from twinquant.data.open import open_data
from twinquant.data.options import DataOptions
from twinquant.data.source import DataSource, Feeds

__all__ = ["DataOptions", "DataSource", "Feeds", "length_of", "open_data"]
