"""Caffe for TwinQuant."""

__all__: list[str] = []
