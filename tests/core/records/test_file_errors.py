"""Every way in which a file can be no record file has its own error, which names the file."""

import os
import re

import pytest

from twinquant.errors import ArgumentError, RecordFileError, RecordSyntaxError, RecordValueError
from twinquant.records import parse_record_file, parse_record_text

CONV = 'record {\n  key: "conv1"\n  value {\n    scale_d: 0.5\n  }\n}\n'


@pytest.fixture
def written(tmp_path):
    def write(content):
        path = tmp_path / "record.txt"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


def error_of(path, kind):
    with pytest.raises(kind, match=re.escape(repr(str(path)))) as caught:
        parse_record_file(path)
    return caught.value


def test_a_missing_file(tmp_path):
    assert "does not exist" in str(error_of(tmp_path / "none.txt", RecordFileError))


def test_a_folder(tmp_path):
    assert "folder" in str(error_of(tmp_path, RecordFileError))


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="the superuser may read every file")
def test_an_unreadable_file_of_an_ordinary_user(written):
    path = written(CONV)
    path.chmod(0)

    assert "permission" in str(error_of(path, RecordFileError))


@pytest.mark.parametrize(
    ("raised", "words"), [(PermissionError(13, "no"), "permission"), (OSError(5, "disk broken"), "disk broken")]
)
def test_a_file_that_cannot_be_read(written, monkeypatch, raised, words):
    path = written(CONV)

    def refuse(self):
        raise raised

    monkeypatch.setattr(type(path), "read_bytes", refuse)

    assert words in str(error_of(path, RecordFileError))


def test_a_name_that_no_file_can_have():
    with pytest.raises(RecordFileError, match="cannot be read"):
        parse_record_file("a\0b")


def test_a_binary_file(written):
    assert "not text" in str(error_of(written(b"\x08\x01\x12\x00"), RecordFileError))


def test_a_file_in_another_encoding(written):
    assert "UTF-8" in str(error_of(written(CONV.replace("conv1", "é").encode("latin-1")), RecordFileError))


def test_a_text_that_is_no_unicode():
    with pytest.raises(RecordFileError, match="not text"):
        parse_record_text("\ud800")


@pytest.mark.parametrize("content", ["", " \n\t\n", "# a comment\n", "prune_record {\n  x: 1\n}\n"])
def test_a_file_without_any_record_says_that_calibration_has_not_finished(written, content):
    message = str(error_of(written(content), RecordFileError))

    assert "calibration has not finished" in message
    assert "batch_num" in message


def test_a_syntax_error_has_line_and_column_and_names_the_record(written):
    error = error_of(written(CONV + CONV.replace("conv1", "fc").replace(": 0.5", " 0.5")), RecordSyntaxError)

    assert (error.line, error.column, error.key) == (10, 13, "fc")
    assert "line 10, column 13" in str(error)
    assert "'fc'" in str(error)


def test_a_missing_brace_at_the_end(written):
    error = error_of(written(CONV[:-2]), RecordSyntaxError)

    assert 'Expected "}"' in str(error)


def test_a_missing_brace_in_the_middle_is_guessed(written):
    error = error_of(written(CONV.removesuffix("}\n") + CONV), RecordSyntaxError)

    assert (error.line, error.key, error.field) == (6, "conv1", "record")
    assert "brace" in str(error)


def test_an_unclosed_prune_record(written):
    error = error_of(written(CONV + "prune_record {\n"), RecordSyntaxError)

    assert (error.line, error.column) == (7, 1)


def test_an_unknown_field_names_field_line_and_key_and_suggests_close_names(written):
    error = error_of(written(CONV + CONV.replace("conv1", "fc").replace("scale_d", "scale_x")), RecordSyntaxError)

    assert (error.field, error.line, error.column, error.key) == ("scale_x", 10, 5, "fc")
    for part in ("'scale_x'", "line 10", "'fc'", "'scale_d'"):
        assert part in str(error)


def test_an_unknown_field_unlike_any_other_lists_the_known_ones(written):
    error = error_of(written(CONV.replace("scale_d", "zzz")), RecordSyntaxError)

    assert "tensor_balance_factor" in str(error)


def test_a_field_in_the_wrong_block_says_where_it_belongs(written):
    error = error_of(written('record {\n  scale_d: 1\n  key: "conv1"\n}\n'), RecordSyntaxError)

    assert (error.key, error.field) == ("conv1", "scale_d")
    assert "in a 'value' block" in str(error)


def test_an_unknown_field_outside_of_all_records(written):
    error = error_of(written(CONV + "layer { }\n"), RecordSyntaxError)

    assert (error.key, error.field) == (None, "layer")


def test_an_unknown_field_of_a_record_without_key_names_its_line(written):
    assert "the record on line 2" in str(
        error_of(written("\nrecord {\n  value {\n    foo: 1\n  }\n}\n"), RecordSyntaxError)
    )


@pytest.mark.parametrize(
    "statement",
    [
        "offset_d: 2147483648",
        "offset_d: 1.5",
        "scale_d: zero",
        "shift_bit: -1",
        "skip_fusion: 2",
        "act_type: INT8",
        "act_type: 'INT8",
    ],
)
def test_a_value_of_the_wrong_type_is_a_syntax_error(written, statement):
    assert error_of(written(CONV.replace("scale_d: 0.5", statement)), RecordSyntaxError).line == 4


def test_an_endless_line_is_not_repeated_in_the_message(written):
    assert len(str(error_of(written("x " * 100_000), RecordSyntaxError))) < 1000
    assert len(str(error_of(written("record : " + "x " * 100_000), RecordSyntaxError))) < 1000


def test_a_record_without_key(written):
    error = error_of(written(CONV + "record {\n  value {\n  }\n}\n"), RecordValueError)

    assert error.field == "key"
    assert "line 7" in str(error)


def test_a_record_with_an_empty_key(written):
    error = error_of(written(CONV.replace("conv1", "")), RecordValueError)

    assert error.field == "key"
    assert "empty" in str(error)


def test_a_record_without_value_block(written):
    error = error_of(written('record {\n  key: "conv1"\n}\n'), RecordValueError)

    assert (error.key, error.field) == ("conv1", "value")
    assert "line 1" in str(error)


@pytest.mark.parametrize("path", [None, 3, b"record.txt", "", ["record.txt"]], ids=repr)
def test_what_is_no_path_is_refused_as_an_argument(path):
    with pytest.raises(ArgumentError, match=f"record_file: must be the path.*got {re.escape(repr(path))}"):
        parse_record_file(path)
