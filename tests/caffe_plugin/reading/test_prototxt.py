"""A prototxt is read as a tree that loses nothing, and written as it was."""

from pathlib import Path

import nets
import pytest
from google.protobuf import text_format

from twinquant.errors import ModelFileError
from twinquant_caffe.prototxt import Identifier, Message, format_message, make, parse_prototxt

NET = """# a net
name: "net"  # trailing
# before the layer
layer { # opening
  name: 'conv'
  type: "Convolution"   # odd   spacing
  fork_param < alpha: .5, mode: FAST; [my.extension]: 3 >
  convolution_param { kernel_size: [3, 3] num_output: 4 }
  # last
}
# end
"""


def test_a_text_is_written_as_it_was_read():
    assert format_message(parse_prototxt(NET)) == NET.replace("<", "{").replace(">", "}").replace(
        "fork_param { alpha: .5, mode: FAST; [my.extension]: 3 }",
        "fork_param < alpha: .5, mode: FAST; [my.extension]: 3 >",
    )


def test_only_the_block_that_changed_is_written_anew():
    tree = parse_prototxt("a { x: 1   y: 2 }\nb { x: 1   y: 2 }\n")
    changed = tree.replaced("a", tree.message("a").replaced("x", 3))
    assert format_message(changed) == "a {\n  x: 3\n  y: 2\n}\nb { x: 1   y: 2 }\n"


def test_comments_of_a_changed_block_stay():
    tree = parse_prototxt("layer { # opening\n  # one\n  a: 1 # two\n  # three\n  b: 2\n  # four\n}\n")
    layer = tree.message("layer").replaced("b", 5)
    assert format_message(tree.replaced("layer", layer)) == (
        "layer {\n  # opening\n  # one\n  a: 1  # two\n  # three\n  b: 5\n  # four\n}\n"
    )


def test_a_list_is_one_field_for_each_value():
    tree = parse_prototxt("dim: [1, 3,\n # inside\n 224]  # behind\nempty: []\nshape: [{ dim: 1 }, { dim: 2 }]\n")
    assert tree.integers("dim") == (1, 3, 224)
    assert not tree.has("empty")
    assert [shape.integers("dim") for shape in tree.messages("shape")] == [(1,), (2,)]
    assert "# inside" in format_message(tree)
    assert "# behind" in format_message(tree)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        *(("1e-5", 1e-5), (".5", 0.5), ("5.", 5.0), ("1.5f", 1.5), ("-3", -3.0), ("- 3", -3.0), ("0x10", 16.0)),
        *(("inf", float("inf")), ("-inf", float("-inf")), ("Infinity", float("inf"))),
    ],
)
def test_numbers_are_read_as_protobuf_writes_them(text, value):
    assert parse_prototxt(f"x: {text}").number("x", 0) == value


def test_nan_is_a_number():
    assert parse_prototxt("x: nan").number("x", 0) != 0


@pytest.mark.parametrize(("text", "value"), [("12", 12), ("-7", -7), ("0x1F", 31), ("010", 8), ("0", 0)])
def test_whole_numbers_are_read_in_every_base(text, value):
    assert parse_prototxt(f"x: {text}").integer("x", 0) == value


@pytest.mark.parametrize(("text", "value"), [("true", True), ("t", True), ("1", True), ("false", False), ("0", False)])
def test_flags_are_read_in_every_spelling(text, value):
    assert parse_prototxt(f"x: {text}").flag("x", not value) is value


def test_an_enumeration_may_be_written_by_its_number():
    assert parse_prototxt("pool: 1").choice("pool", ("MAX", "AVE")) == "AVE"
    assert parse_prototxt("pool: AVE").choice("pool", ("MAX", "AVE")) == "AVE"
    assert Message().choice("pool", ("MAX", "AVE")) == "MAX"


def test_the_last_of_several_values_counts():
    tree = parse_prototxt('name: "a" name: "b" n: 1 n: 2')
    assert tree.text("name") == "b"
    assert tree.integer("n", 0) == 2


def test_several_blocks_of_one_field_are_merged():
    assert parse_prototxt("p { a: 1 b: 1 } p { b: 2 }").message("p").integer("a", 0) == 1
    assert parse_prototxt("p { a: 1 b: 1 } p { b: 2 }").message("p").integer("b", 0) == 2


@pytest.mark.parametrize(
    ("literal", "content"),
    [
        (r'"a\"b"', b'a"b'),
        (r"'it\'s'", b"it's"),
        (r'"\200\x41\n\\"', b"\x80A\n\\"),
        ('"one" \'two\'\n "three"', b"onetwothree"),
        (r'"é\u00e9"', "éé".encode()),
        ('"# no comment"', b"# no comment"),
    ],
)
def test_literals_are_read_with_their_escapes(literal, content):
    assert parse_prototxt(f"x: {literal}").raw("x") == content


def test_every_byte_that_protobuf_writes_is_read(tmp_path):
    message = nets.CLASSES["QuantParameter"](offset=bytes(range(256)))
    assert parse_prototxt(text_format.MessageToString(message)).raw("offset") == bytes(range(256))


def test_every_byte_that_is_written_is_read_by_protobuf():
    text = format_message(make(scale=0.1, offset=bytes(range(256))))
    read = text_format.Parse(text, nets.CLASSES["QuantParameter"]())
    assert read.offset == bytes(range(256))


def test_a_byte_is_written_in_octal_and_a_float_in_its_shortest_form():
    text = format_message(make(offset=b"\x80", scale=0.1, big=12582912.0, small=1e-5, on=True, pool=Identifier("AVE")))
    assert text == 'offset: "\\200"\nscale: 0.1\nbig: 12582912.0\nsmall: 1.0e-05\non: true\npool: AVE\n'


def test_makers_return_new_messages():
    tree = parse_prototxt("a: 1 b: 2 a: 3")
    assert format_message(tree.replaced("a", 7, 8)) == "a: 7\na: 8\nb: 2\n"
    assert format_message(tree.replaced("c", "x")) == 'a: 1\nb: 2\na: 3\nc: "x"\n'
    assert format_message(tree.replaced("a")) == "b: 2\n"
    assert format_message(tree.without("a")) == "b: 2\n"
    assert format_message(tree.plus("b", make(dim=[1, 2]))) == "a: 1\nb: 2\na: 3\nb {\n  dim: 1\n  dim: 2\n}\n"
    assert tree.integers("a") == (1, 3)


@pytest.mark.parametrize(
    ("text", "line", "column", "problem"),
    [
        ('layer {\n  name: "a"\n', 3, 1, "opened in line 1"),
        ('layer {\n  name "a"\n}', 2, 8, "expected ':' or '{' behind 'name'"),
        ("a: 1\n}\n", 2, 1, "expected the name of a field, got '}'"),
        ('a: "open\nb: 1', 1, 4, "not closed"),
        ('a: "open\\"\nb: 1', 1, 4, "not closed"),
        ("a: [1 2]", 1, 7, "expected ',' or ']'"),
        ("a: [1", 1, 6, "got 'the end'"),
        ("a:\n", 2, 1, "expected a value of 'a', got 'the end'"),
        ("a: 1\n  b: ]", 2, 6, "expected a value of 'b', got ']'"),
        ("[my.extension: 1 {", 1, 18, "expected ']'"),
        ("a { b < c: 1 } >", 1, 14, "expected the name of a field"),
        ("a: 1 @", 1, 6, "got '@'"),
    ],
)
def test_a_syntax_error_names_line_and_column(text, line, column, problem):
    with pytest.raises(ModelFileError) as caught:
        parse_prototxt(text)
    assert f"line {line}, column {column}: " in str(caught.value)
    assert problem in str(caught.value)


def test_a_syntax_error_names_the_file(tmp_path):
    path = tmp_path / "net.prototxt"
    path.write_text("layer {")
    with pytest.raises(ModelFileError, match=r"net\.prototxt', line 1, column 8: "):
        parse_prototxt(path)


def test_blocks_without_end_are_refused():
    with pytest.raises(ModelFileError, match="100 blocks in one another"):
        parse_prototxt("a {" * 5000)


@pytest.mark.parametrize(
    ("text", "read", "expected"),
    [
        ("\nx: 1.5", lambda tree: tree.integer("x", 0), "a whole number, got 1.5"),
        ("\nx: MAX", lambda tree: tree.number("x", 0), "a number, got MAX"),
        ('\nx: "1"', lambda tree: tree.number("x", 0), 'a number, got "1"'),
        ("\nx: yes", lambda tree: tree.flag("x", True), "true or false, got yes"),
        ("\nx: 1", lambda tree: tree.message("x"), "a block in braces, got 1"),
        ("\nx { }", lambda tree: tree.text("x"), "a text, got { ... }"),
        ("\nx: ABC", lambda tree: tree.raw("x"), "a text in quotes, got ABC"),
    ],
)
def test_a_value_of_a_wrong_kind_names_line_field_and_what_was_expected(text, read, expected):
    with pytest.raises(ModelFileError) as caught:
        read(parse_prototxt(text))
    assert str(caught.value) == f"line 2 of the prototxt: the field 'x' has to be {expected}"


def test_windows_line_ends_and_a_byte_order_mark_are_read(tmp_path):
    path = tmp_path / "net.prototxt"
    path.write_bytes(b'\xef\xbb\xbfname: "n" # c\r\nlayer {\r\n  name: "a"\r\n}\r\n')
    tree = parse_prototxt(path)
    assert tree.text("name") == "n"
    assert format_message(tree) == 'name: "n"  # c\nlayer {\n  name: "a"\n}\n'


def test_comments_that_are_not_utf_8_survive(tmp_path):
    path = tmp_path / "net.prototxt"
    path.write_bytes(b'# \xd6\xd0\xce\xc4\nname: "\xd6"\n')
    tree = parse_prototxt(path)
    assert format_message(tree).encode("utf-8", "surrogateescape") == path.read_bytes()
    assert tree.raw("name") == b"\xd6"


@pytest.mark.parametrize("content", [b"a: 1\0", "name: 1".encode("utf-16")])
def test_binary_files_are_refused(tmp_path, content):
    path = tmp_path / "net.prototxt"
    path.write_bytes(content)
    with pytest.raises(ModelFileError, match=r"not text.*is this the caffemodel"):
        parse_prototxt(path)


def test_a_missing_file_and_a_folder_are_refused(tmp_path):
    with pytest.raises(ModelFileError, match="does not exist"):
        parse_prototxt(tmp_path / "none.prototxt")
    with pytest.raises(ModelFileError, match="cannot be read"):
        parse_prototxt(Path(tmp_path))
