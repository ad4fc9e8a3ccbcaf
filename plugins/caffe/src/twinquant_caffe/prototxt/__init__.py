"""Prototxt files as generic trees: read, edited and written without a schema, so that nothing is lost."""

from twinquant_caffe.prototxt.format import format_message
from twinquant_caffe.prototxt.parse import parse_prototxt
from twinquant_caffe.prototxt.tree import Field, Identifier, Message, Scalar, make

__all__ = ["Field", "Identifier", "Message", "Scalar", "format_message", "make", "parse_prototxt"]
