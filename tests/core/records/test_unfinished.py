"""A record file of a calibration that is under way says so, and is not taken for a complete one."""

import numpy as np
import pytest

from twinquant.errors import RecordFileError
from twinquant.records import (
    LayerRecord,
    RecordSet,
    parse_record_file,
    read_begun_records,
    write_record_file,
    write_unfinished_record,
)

BEGUN = RecordSet({"fc": LayerRecord("fc", tensor_balance_factor=np.array([0.5, 2.0], np.float32))})


@pytest.mark.parametrize("records", [RecordSet({}), BEGUN], ids=["empty", "with balance factors"])
def test_reading_it_as_a_complete_one_says_how_far_it_is(tmp_path, records):
    path = tmp_path / "record.txt"
    write_unfinished_record(records, path, "2 of 8 batches seen")
    with pytest.raises(RecordFileError, match=r"record.txt'.*calibration has not finished: 2 of 8 batches seen; run"):
        parse_record_file(path)


def test_what_is_known_already_can_be_read(tmp_path):
    path = tmp_path / "record.txt"
    write_unfinished_record(BEGUN, path, "0 of 8 batches seen")
    np.testing.assert_array_equal(read_begun_records(path).records["fc"].tensor_balance_factor, [0.5, 2.0])


def test_a_reason_of_several_lines_stays_a_comment(tmp_path):
    path = tmp_path / "record.txt"
    write_unfinished_record(RecordSet({}), path, "it failed:\nrecord { }")
    with pytest.raises(RecordFileError, match=r"it failed: record \{ \}"):
        parse_record_file(path)
    assert not read_begun_records(path).records


def test_a_complete_a_missing_and_an_empty_file_can_be_read_as_begun_ones(tmp_path):
    path = tmp_path / "record.txt"
    assert not read_begun_records(path).records
    path.write_text("")
    assert not read_begun_records(path).records
    write_record_file(BEGUN, path)
    assert list(read_begun_records(path).records) == ["fc"]
