"""A toy framework for TwinQuant: dense layers in a JSON file."""
