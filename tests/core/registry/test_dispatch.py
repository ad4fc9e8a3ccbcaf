"""The strongest claim wins, a tie is an error, and nobody's graph is explained."""

import pytest

from twinquant.errors import (
    AmbiguousFrameworkError,
    ArgumentError,
    BrokenPluginError,
    IncompatiblePluginError,
    ModelFileError,
    NoFrameworkError,
)
from twinquant.registry import Framework, Match, Registry, select_framework


def framework(name, answer):
    """Return a framework that gives one answer to every source; an exception is raised."""

    class Fake(Framework):
        def recognize(self, source):
            if isinstance(answer, Exception):
                raise answer
            return answer

        def load(self, source):
            return source

        def layers(self, graph):
            return ()

        def insert(self, graph, plan, flavor):
            return graph

        def write(self, graph, folder, prefix, flavor):
            return ()

    Fake.name = name
    return Fake()


def registry_of(**answers):
    registry = Registry()
    for name, answer in answers.items():
        registry.register(framework(name, answer))
    return registry


@pytest.mark.parametrize("order", [("weak", "strong"), ("strong", "weak")])
@pytest.mark.parametrize(("weak", "strong"), [(Match.NAME, Match.CONTENT), (Match.CONTENT, Match.TYPE)])
def test_the_strongest_claim_wins_in_any_order(order, weak, strong):
    answers = {"weak": weak, "strong": strong}
    registry = registry_of(**{name: answers[name] for name in order})
    assert select_framework("net", registry=registry).name == "strong"


def test_equal_claims_are_an_error_that_names_both():
    registry = registry_of(zeta=Match.CONTENT, alpha=Match.CONTENT, weak=Match.NAME)
    with pytest.raises(AmbiguousFrameworkError) as caught:
        select_framework("net", registry=registry)
    message = str(caught.value)
    assert "alpha" in message
    assert "zeta" in message
    assert "weak" not in message
    assert "framework='alpha' or framework='zeta'" in message


def test_equal_claims_of_installed_plugins_name_their_distributions(site):
    site.add("alpha", site.plugin("alpha"), version="1.1")
    site.add("beta", site.plugin("beta"), version="2.2")
    with pytest.raises(AmbiguousFrameworkError, match=r"twinquant-alpha 1\.1.*twinquant-beta 2\.2"):
        select_framework("net.fake", registry=site.registry())


def test_a_named_framework_wins_without_being_asked():
    registry = registry_of(strong=Match.TYPE, named=RuntimeError("must not be asked"))
    assert select_framework("net", "named", registry=registry).name == "named"


def test_an_unknown_name_is_an_error_with_close_and_all_names():
    with pytest.raises(ArgumentError, match=r"'onxx'.*did you mean 'onnx'\?.*caffe, mine, onnx, torch"):
        select_framework("net", "onxx", registry=registry_of(mine=Match.TYPE))


def test_a_name_like_no_other_lists_the_known_ones():
    with pytest.raises(ArgumentError, match="known are: caffe, onnx, torch"):
        select_framework("net", "qqqqqq", registry=Registry())


@pytest.mark.parametrize("name", ["caffe", "onnx", "torch"])
def test_a_named_framework_that_is_absent_says_what_to_install(name):
    with pytest.raises(NoFrameworkError) as caught:
        select_framework("net", name, registry=Registry())
    assert f'pip install "twinquant[{name}]"' in str(caught.value)


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("net.onnx", "onnx"),
        ("NET.ONNX", "onnx"),
        ("deploy.prototxt", "caffe"),
        ("a.prototxt,b.caffemodel", "caffe"),
        (("a.prototxt", "b.caffemodel"), "caffe"),
        ("net.pt", "torch"),
        ("net.pth", "torch"),
        ("net.pt2", "torch"),
    ],
)
def test_a_file_of_an_absent_plugin_says_what_to_install(source, name):
    with pytest.raises(NoFrameworkError) as caught:
        select_framework(source, registry=Registry())
    assert f'pip install "twinquant[{name}]"' in str(caught.value)
    assert "absent" in str(caught.value)


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("onnx.onnx_ml_pb2", "onnx"),
        ("onnx_ir._core", "onnx"),
        ("torch.nn.modules.module", "torch"),
        ("caffe._caffe", "caffe"),
    ],
)
def test_an_object_of_an_absent_plugin_is_told_by_the_modules_of_its_bases(module, name):
    base = type("Base", (), {"__module__": module})
    mine = type("Mine", (base,), {"__module__": "user_code"})
    with pytest.raises(NoFrameworkError) as caught:
        select_framework(mine(), registry=Registry())
    assert "user_code.Mine" in str(caught.value)
    assert f'pip install "twinquant[{name}]"' in str(caught.value)


def test_a_graph_of_a_broken_plugin_is_an_error_with_the_plugins_own_as_cause(site):
    site.add("onnx", "import a_module_that_is_not_there")
    with pytest.raises(BrokenPluginError, match="No module named 'a_module_that_is_not_there'") as caught:
        select_framework("net.onnx", registry=site.registry())
    assert isinstance(caught.value.__cause__, ModuleNotFoundError)


def test_a_graph_of_an_incompatible_plugin_says_what_to_upgrade(site):
    site.add("onnx", "PLUGIN_API = 2")
    with pytest.raises(IncompatiblePluginError, match="pip install --upgrade twinquant-core"):
        select_framework("net.onnx", registry=site.registry())


def test_a_graph_of_a_blocked_plugin_names_the_variable(site):
    site.add("onnx")
    with pytest.raises(NoFrameworkError, match="blocked: TWINQUANT_DISABLE_PLUGINS"):
        select_framework("net.onnx", registry=site.registry(disabled={"onnx"}))


def test_a_graph_of_a_plugin_that_two_distributions_bring_names_both(site):
    site.add("onnx", distribution="alpha-q")
    site.add("onnx", distribution="beta-q")
    with pytest.raises(AmbiguousFrameworkError, match=r"alpha-q 1\.0 and beta-q 1\.0.*uninstall one"):
        select_framework("net.onnx", registry=site.registry())


def test_a_claim_counts_even_where_the_catalog_expects_an_absent_plugin():
    registry = registry_of(mine=Match.NAME)
    assert select_framework("net.onnx", registry=registry).name == "mine"


def test_a_plugin_that_fails_to_look_does_not_disturb_the_one_that_claims(caplog):
    registry = registry_of(clumsy=RuntimeError("stumbled"), good=Match.NAME)
    assert select_framework("net", registry=registry).name == "good"
    assert "clumsy" in caplog.text


@pytest.mark.parametrize("answer", [RuntimeError("stumbled"), None, 9, "TYPE"])
def test_a_plugin_that_fails_to_look_is_broken_where_nobody_claims(answer):
    registry = registry_of(clumsy=answer, modest=Match.NO)
    with pytest.raises(BrokenPluginError, match="clumsy") as caught:
        select_framework(object(), registry=registry)
    assert isinstance(caught.value.__cause__, Exception)


def test_a_path_that_does_not_exist_and_nobody_claims_is_a_missing_file(tmp_path):
    path = tmp_path / "net.xyz"
    with pytest.raises(ModelFileError) as caught:
        select_framework(path, registry=registry_of(modest=Match.NO))
    assert f"{str(path)!r} does not exist" in str(caught.value)


@pytest.mark.parametrize("path", ["\0", "x" * 5000, ""])
def test_a_path_that_cannot_exist_is_a_missing_file(path):
    with pytest.raises(ModelFileError, match="does not exist"):
        select_framework(path, registry=Registry())


def test_an_unknown_file_says_what_the_installed_plugins_read(tmp_path):
    path = tmp_path / "net.xyz"
    path.write_text("?")
    with pytest.raises(NoFrameworkError) as caught:
        select_framework(path, registry=registry_of(onnx=Match.NO, modest=Match.NO))
    assert "net.xyz" in str(caught.value)
    assert "installed: modest, onnx (.onnx)" in str(caught.value)


def test_a_folder_is_called_a_folder(tmp_path):
    with pytest.raises(NoFrameworkError, match="a folder"):
        select_framework(tmp_path, registry=Registry())


def test_an_unknown_object_says_its_type():
    with pytest.raises(NoFrameworkError, match=r"an object of type builtins\.dict"):
        select_framework({}, registry=Registry())


def test_an_unknown_graph_lists_the_plugins_that_do_not_work(site, tmp_path):
    site.add("fake", "import a_module_that_is_not_there")
    path = tmp_path / "net.xyz"
    path.write_text("?")
    with pytest.raises(NoFrameworkError, match=r"not usable: fake \(broken: ModuleNotFoundError"):
        select_framework(path, registry=site.registry())
