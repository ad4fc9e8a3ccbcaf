"""The fast reader reads what protobuf's parser reads, and leaves to it whatever is not in the ordinary layout."""

import numpy as np
import pytest
from google.protobuf import text_format
from hypothesis import given, settings
from hypothesis import strategies as st

from twinquant.errors import RecordSyntaxError
from twinquant.records import numbers, parse_record_text, parser
from twinquant.records.decimals import parse_plain_decimals
from twinquant.records.ordinary_reader import read_ordinary
from twinquant.records.schema import KV_CACHE_FIELDS, LAYER_FIELDS, Kind, record_file_message

ORDINARY = """record {
  key: "conv1"
  value {
    scale_d: 0.028930493
    offset_d: -12
    scale_w: 0.0013812194
    scale_w: 9.5e-05
    scale_w: 1
    offset_w: 0
    offset_w: 0
    offset_w: 0
    skip_fusion: true
    act_type: "INT8"
  }
}
"""


def fields_of(message, specs):
    fields = {}
    for spec in specs:
        if spec.repeated:
            fields[spec.name] = list(getattr(message, spec.name))
        elif message.HasField(spec.name):
            fields[spec.name] = getattr(message, spec.name)
    return {name: value for name, value in fields.items() if value != []}


def plain(fields):
    return {name: value.tolist() if isinstance(value, np.ndarray) else value for name, value in fields.items()}


def assert_read_like_protobuf(text):
    expected = text_format.Merge(text, record_file_message()())
    entries = read_ordinary(text.encode())
    assert entries is not None
    assert len(entries) == len(expected.record)
    for entry, record in zip(entries, expected.record, strict=True):
        assert entry.key == (record.key if record.HasField("key") else None)
        assert (entry.value is not None) == record.HasField("value")
        assert (entry.kv_cache is not None) == record.HasField("kv_cache_value")
        # repr() tells -0.0 from 0.0 and 1 from True.
        assert repr(plain(entry.value or {}).items()) == repr(
            order_like(entry.value, fields_of(record.value, LAYER_FIELDS))
        )
        assert plain(entry.kv_cache or {}) == fields_of(record.kv_cache_value, KV_CACHE_FIELDS)


def order_like(found, fields):
    assert set(found or {}) == set(fields)
    return {name: fields[name] for name in found or {}}.items()


FLOATS = st.one_of(
    st.floats(width=32, allow_nan=False, allow_infinity=False).map(repr),
    st.floats(-1e38, 1e38).map(repr),
    st.decimals(0, 10**8, places=6).map(str),
    st.floats(2**-20, 1.0, width=32).map(lambda value: np.format_float_positional(np.float32(value), trim="0")),
    st.sampled_from(
        ["0", "1", "-0", "0.", "1.", "12345678", "99999999.9999999", "0.12345678901234", "16777217", "1e-46"]
    ),
)
TEXTS = {
    Kind.FLOAT: FLOATS,
    Kind.INT32: st.integers(-(2**31), 2**31 - 1).map(str) | st.just("0"),
    Kind.UINT32: st.integers(0, 2**32 - 1).map(str) | st.just("0"),
    Kind.BOOL: st.sampled_from(["true", "false"]),
    Kind.STRING: st.text(st.characters(exclude_characters='"\\\n\0', exclude_categories=["Cs"])).map('"{}"'.format),
}


@st.composite
def ordinary_texts(draw):
    indent = draw(st.sampled_from(["", "  ", "    ", "\t"]))
    colon = draw(st.sampled_from([": ", ":", " :  "]))
    lines = []

    def statements(specs):
        for spec in draw(st.lists(st.sampled_from(specs), max_size=6)):
            values = draw(st.lists(TEXTS[spec.kind], min_size=1, max_size=8 if spec.repeated else 2))
            repeats = draw(st.sampled_from([1, 1, 40])) if spec.repeated else 1
            lines.extend([f"{indent * 2}{spec.name}{colon}{value}" for value in values] * repeats)

    for _ in range(draw(st.integers(0, 3))):
        lines.append(draw(st.sampled_from(["record {", "record{", "record: {", "# comment {", ""])))
        if not lines[-1].startswith("record"):
            continue
        lines.append(f"{indent}key{colon}{draw(TEXTS[Kind.STRING])}")
        for name, specs in draw(
            st.lists(st.sampled_from([("value", LAYER_FIELDS), ("kv_cache_value", KV_CACHE_FIELDS)]))
        ):
            lines.append(f"{indent}{name} {{")
            statements(specs)
            lines.append(f"{indent}}}")
        lines.append("}")
    line_end = draw(st.sampled_from(["\n", "\r\n"]))
    return line_end.join(lines) + draw(st.sampled_from(["", line_end]))


@settings(derandomize=True, deadline=None, max_examples=120)
@given(ordinary_texts(), st.booleans())
def test_ordinary_texts_read_like_protobuf_reads_them(text, in_small_pieces):
    with pytest.MonkeyPatch.context() as patch:
        if in_small_pieces:
            patch.setattr(numbers, "_PIECE_BYTES", 100)
            patch.setattr(numbers, "_ARRAY_BYTES", 20)
        assert_read_like_protobuf(text)


def test_long_runs_read_like_protobuf_reads_them():
    generator = np.random.default_rng(7)
    scales = generator.integers(1, 2**31 - 2**24, 10_000).astype(np.uint32).view(np.float32)
    lines = [
        f"    scale_w: {text}" for text in (*map(str, scales), *(f"{scale:.7f}" for scale in generator.random(10_000)))
    ]
    text = ORDINARY.replace("    scale_w: 1\n", "\n".join(lines) + "\n")

    assert_read_like_protobuf(text)


@pytest.fixture
def without_protobuf(monkeypatch):
    def refuse(text, source):
        pytest.fail("the layout is ordinary, but protobuf's parser was asked")

    monkeypatch.setattr(parser, "read_with_protobuf", refuse)


@pytest.mark.parametrize(
    "text",
    [
        ORDINARY,
        ORDINARY * 3,
        ORDINARY.replace("\n", "\r\n"),
        ORDINARY.replace("  ", "\t"),
        ORDINARY.replace("  ", ""),
        ORDINARY.replace("value {", "value: {"),
        ORDINARY.rstrip("\n"),
        "# written by a tool\n\n" + ORDINARY,
        ORDINARY.replace("conv1", "层 {} # :"),
        "prune_record {\n  x: 1\n}\n" + ORDINARY,
    ],
)
def test_the_ordinary_layout_does_not_need_protobuf(text, without_protobuf):
    assert len(parse_record_text(text)) == 1


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("scale_w: 1\n", "scale_w: [1]\n"),
        ("scale_w: 1\n", "scale_w: 1 # one\n"),
        ("scale_w: 1\n", "scale_w: 1,\n"),
        ("scale_w: 1\n", "scale_w: 1;\n"),
        ("scale_w: 1\n", "scale_w: 1f\n"),
        ("scale_w: 1\n", "scale_w: inf\n"),
        ("scale_w: 1\n", "scale_w: nan\n"),
        ("scale_w: 1\n", "scale_w: 1e39\n"),
        ("scale_w: 1\n", "scale_w: 3.4028235e38\n    scale_w: 3.4028236e38\n"),
        ("scale_w: 1\n", "scale_w:\n 1\n"),
        ("scale_w: 1\n", "scale_w: 1    scale_w: 2\n"),
        ("scale_w: 1\n", "scale_w: 1 offset_w: 2\n"),
        ("scale_d: 0.028930493", "scale_d: 1e39"),
        ("offset_w: 0\n", "offset_w: 0x10\n"),
        ("offset_d: -12", "offset_d: 010"),
        ("offset_d: -12", "offset_d: 0x10"),
        ("skip_fusion: true", "skip_fusion: True"),
        ("skip_fusion: true", "skip_fusion: 1"),
        ('"INT8"', "'INT8'"),
        ('"INT8"', '"INT" "8"'),
        ('"INT8"', '"INT\\070"'),
        ("value {\n", "value { "),
        ("value {\n", "value\n{\n"),
        ("value {", "value <"),
    ],
)
def test_other_layouts_are_left_to_protobuf(old, new):
    text = ORDINARY.replace(old, new).replace("  }", "  >" if "<" in new else "  }")
    expected = text_format.Merge(text, record_file_message()()).record[0]

    assert read_ordinary(text.encode()) is None
    (record,) = parse_record_text(text)
    found = {spec.name: getattr(record, spec.name) for spec in LAYER_FIELDS}
    for name, value in fields_of(expected.value, LAYER_FIELDS).items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)


@pytest.mark.parametrize(
    "wrong",
    [
        "scale_w: 1 2",
        "scale_w: 1.2.3",
        "scale_w: 1 scale_w: \n    scale_w: 2 3",
        "scale_w: ",
        "scale_w: -",
        "scale_w: 1e",
        "scale_w: 1\r2\n    scale_w: ",
        "scale_w: \n    scale_w: 1\r2",
        "scale_w: 0x1p3",
        'scale_w: "1"',
        "scale_w 1",
        "scale_w",
        "scale_x: 1",
        "value {",
        "}",
        "record {",
        "act_type: INT8",
        "skip_fusion: 2",
        "offset_w: 1.0",
        "offset_w: 9e3",
        "offset_w: 2147483648",
        "offset_w: -2147483649",
        "offset_d: 2147483648",
        "shift_bit: -1",
        "shift_bit: 4294967296",
    ],
)
@pytest.mark.parametrize("array_bytes", [1, 8192])
def test_wrong_texts_are_left_to_protobuf_to_refuse(wrong, array_bytes, monkeypatch):
    monkeypatch.setattr(numbers, "_ARRAY_BYTES", array_bytes)

    text = ORDINARY.replace("scale_w: 1\n", wrong + "\n")

    assert read_ordinary(text.encode()) is None
    with pytest.raises(RecordSyntaxError):
        parse_record_text(text)


def test_a_text_that_ends_within_a_block_is_left_to_protobuf():
    assert read_ordinary(ORDINARY[:-2].encode()) is None


LAYOUTS = {
    "ordinary": 'record {\n  key: "a"\n  value {\n  }\n}\n\n# record {\nrecord {\n  key: "b"\n  value {\n  }\n}\n',
    "compact": 'record { key: "a" value {} }\n\n\n\n\n\n\nrecord: { key: "b" value {} }',
    "list": 'record: [{ key: "a" value {} },\n # }\n\n\n\n\n\n { key: "b" value {} }]',
    "angle brackets": 'record < key: "a" value {} >\n\n\n\n\n\n\nrecord\n\n< key: "b" value {} >',
    "braces in strings": "record { key: 'a' value { act_type: '}' \"record {\" } }"
    + "\n" * 7
    + "record { key: 'b' value {} }",
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_line_of_each_record_is_known_in_every_layout(layout):
    records = parse_record_text(LAYOUTS[layout])

    assert {record.key: record.line for record in records} == {"a": 1, "b": 8}
    assert (read_ordinary(LAYOUTS[layout].encode()) is not None) == (layout == "ordinary")


DECIMALS = st.from_regex(r"(0|[1-9][0-9]{0,9})(\.[0-9]{0,18})?", fullmatch=True)


@settings(derandomize=True, deadline=None, max_examples=200)
@given(st.lists(DECIMALS | st.text("0123456789.-e\r", max_size=9), min_size=1))
def test_plain_decimals_are_what_float_reads(texts):
    lines = "".join(f"scale: {text}\n" for text in texts).encode()

    found = parse_plain_decimals(lines, 7)

    odd = [lines[start:stop].decode() for start, stop in zip(found.odd_starts, found.odd_stops, strict=True)]
    assert odd == [texts[index] for index in found.odd]
    for index in set(range(len(texts))) - set(found.odd.tolist()):
        assert found.values[index] == float(texts[index])


def test_ordinary_scales_are_plain_decimals():
    found = parse_plain_decimals(b"scale_w: 0.0013812194\nscale_w: 12.5\nscale_w: 1\nscale_w: 0.\n", 9)

    assert found.odd.tolist() == []
    assert found.values.tolist() == [0.0013812194, 12.5, 1.0, 0.0]
