"""Whatever tree is written is read again; whatever text comes in is read or refused."""

import nets
import pytest
from google.protobuf import text_format
from hypothesis import given, settings
from hypothesis import strategies as st

from twinquant.errors import ModelFileError
from twinquant_caffe.prototxt import Field, Identifier, Message, Scalar, format_message, make, parse_prototxt

names = st.from_regex(r"[a-z_][a-zA-Z0-9_]{0,8}", fullmatch=True)
identifiers = st.from_regex(r"[A-Z_][A-Z0-9_]{0,8}", fullmatch=True).map(Identifier)
texts = st.text(st.characters(blacklist_categories=["Cs"]), max_size=12)
values = st.one_of(
    st.integers(-(2**63), 2**63 - 1), st.booleans(), st.floats(width=32), texts, st.binary(max_size=12), identifiers
)
comments = st.lists(st.from_regex(r"#[ -~]{0,10}[!-~]", fullmatch=True), max_size=2).map(tuple)


def scalar(value):
    return make(x=value).fields[0].value


fields = st.deferred(
    lambda: st.builds(
        Field,
        names,
        values.map(scalar) | messages,
        comments,
        st.just("") | st.just("# behind"),
    )
)
messages = st.deferred(lambda: st.builds(Message, st.lists(fields, max_size=4).map(tuple), comments))


def sources_removed(message):
    """Return a message that is written by its fields, not as it was read."""
    return Message(
        tuple(
            Field(item.name, sources_removed(item.value), item.comments, item.trailing)
            if isinstance(item.value, Message)
            else item
            for item in message
        ),
        message.comments,
    )


@settings(max_examples=150, deadline=None)
@given(messages)
def test_a_tree_survives_writing_and_reading(tree):
    text = format_message(tree)
    read = parse_prototxt(text)
    assert read == tree
    assert format_message(read) == text
    assert format_message(sources_removed(read)) == text


@settings(max_examples=150, deadline=None)
@given(st.text("ab:{}<>[],;\"'\\#1.-\n \x80", max_size=30))
def test_any_text_is_read_or_refused_with_its_place(text):
    try:
        tree = parse_prototxt(text)
    except ModelFileError as error:
        assert ", column " in str(error)
    else:
        assert parse_prototxt(format_message(tree)) == tree


@settings(max_examples=150, deadline=None)
@given(texts, st.binary(max_size=20), st.floats(width=32, allow_nan=False))
def test_protobuf_reads_the_values_that_were_written(text, data, number):
    layer = text_format.Parse(
        format_message(make(name=text, quant_param=make(scale=number, offset=data))), nets.CLASSES["LayerParameter"]()
    )
    assert (layer.name, layer.quant_param.offset, layer.quant_param.scale) == (text, data, number)


@settings(max_examples=150, deadline=None)
@given(texts, st.binary(max_size=20), st.floats(width=32, allow_nan=False))
def test_values_that_protobuf_wrote_are_read(text, data, number):
    layer = nets.CLASSES["LayerParameter"](name=text)
    layer.quant_param.offset = data
    layer.quant_param.scale = number
    tree = parse_prototxt(text_format.MessageToString(layer))
    assert (tree.text("name"), tree.message("quant_param").raw("offset")) == (text, data)
    assert tree.message("quant_param").number("scale", 0) == pytest.approx(number, rel=1e-7)


def test_a_scalar_keeps_its_text():
    assert parse_prototxt("x: 1.50e+3").fields[0].value == Scalar("1.50e+3")
