from pathlib import PurePosixPath, PureWindowsPath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from twinquant_onnx.filenames import name_key, safe_file_name

ENDING = "_deploy.external"

names = st.text(max_size=300) | st.text(alphabet="./\\%:2FfCcOoNn -é", max_size=12) | st.just("x" * 400)


@pytest.mark.parametrize("name", ["conv1.weight", "onnx::MatMul_39", "weight_é_重み", "a%2Fb", ".hidden", "x" * 184])
def test_a_safe_name_is_kept(name):
    assert safe_file_name(name, ENDING, set()) == name + ENDING


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("layer/weight", "layer%2Fweight"),
        ("/etc/passwd", "%2Fetc%2Fpasswd"),
        ("..", "%2E%2E"),
        (".", "%2E"),
        ("../up", "%2E%2E%2Fup"),
        ("a..b", "a%2E%2Eb"),
        ("...", "%2E%2E%2E"),
        ("back\\slash", "back%5Cslash"),
        ("C:drive", "C%3Adrive"),
        ("nul\0byte", "nul%00byte"),
        ("line\nfeed", "line%0Afeed"),
        ("aux", "%61%75%78"),
        ("LPT1.weight", "%4C%50%54%31.weight"),
        ("ends with a dot.", "ends with a dot%2E"),
        ("ends with a space ", "ends with a space%20"),
        ("", "%"),
    ],
)
def test_an_unsafe_name_is_percent_encoded(name, expected):
    assert safe_file_name(name, ENDING, set()) == expected + ENDING


def test_a_long_name_is_cut_between_characters_and_stays_different_from_its_neighbours():
    one, other = (safe_file_name("é" * 150 + last, ENDING, set()) for last in "ab")
    assert one != other
    assert max(len(one.encode()), len(other.encode())) <= 200
    assert one.startswith("é" * 80)


def test_names_that_differ_only_in_case_get_different_files():
    taken = {name_key("Weight" + ENDING)}
    assert safe_file_name("weight", ENDING, taken) == "weight-2" + ENDING


def test_a_name_that_looks_like_the_encoding_of_another_gets_its_own_file():
    encoded = safe_file_name("a/b", ENDING, set())
    assert safe_file_name("a%2Fb", ENDING, {name_key(encoded)}) == "a%2Fb-2" + ENDING


def test_the_same_name_again_and_again_gets_a_number():
    taken = {name_key(name + ENDING) for name in ("w", "w-2", "w-3")}
    assert safe_file_name("w", ENDING, taken) == "w-4" + ENDING


@given(st.lists(names, max_size=8))
def test_whatever_the_names_are_the_files_differ_and_lie_in_the_folder(tensor_names):
    taken = set()
    for tensor_name in tensor_names:
        name = safe_file_name(tensor_name, ENDING, taken)
        taken.add(name_key(name))
        assert PurePosixPath(name).parts == (name,)
        assert PureWindowsPath(name).name == name
        assert name.endswith(ENDING)
        assert len(name.encode()) <= 200
    assert len(taken) == len(tensor_names)
