"""`twinquant check` finds the deploy model that a save_path means and tells what its framework would refuse."""

import pytest

from twinquant.registry import Capability


@pytest.fixture
def saved(tmp_path):
    """A deploy model and what may lie beside it."""
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "net_deploy_model.paper").write_text("{}")
    (tmp_path / "out" / "net_deploy_model.extra").write_text("nobody's")
    return tmp_path / "out" / "net"


def test_a_prefix_means_the_deploy_model_of_that_save(run, registry, saved):
    code, out, _ = run("check", saved)
    assert (code, out) == (0, f"{saved}_deploy_model.paper: accepted\n")


@pytest.mark.parametrize("given", ["net", "net_deploy", "net_deploy_model"])
def test_a_prefix_means_no_model_of_a_longer_prefix(run, registry, saved, given):
    longer = f"{given}_deploy_model_deploy_model.paper"
    (saved.parent / longer).write_text("nameless")
    code, out, _ = run("check", saved)
    assert (code, out) == (0, f"{saved}_deploy_model.paper: accepted\n")


def test_a_longer_prefix_that_has_no_deploy_model_is_an_error(run, registry, saved):
    (saved.parent / "net_deploy_model.extra").unlink()
    (saved.parent / "net_deploy_model.paper").rename(saved.parent / "net_deploy_model_deploy_model.paper")
    code, _, err = run("check", saved)
    assert code == 1
    assert "net_deploy_model' with any ending" in err


def test_a_folder_means_the_deploy_model_without_a_prefix(run, registry, saved):
    (saved.parent / "deploy_model.paper").write_text("{}")
    code, out, _ = run("check", saved.parent)
    assert (code, out) == (0, f"{saved.parent / 'deploy_model.paper'}: accepted\n")


def test_the_file_itself_may_be_given(run, registry, saved):
    code, out, _ = run("check", f"{saved}_deploy_model.paper")
    assert (code, out) == (0, f"{saved}_deploy_model.paper: accepted\n")


def test_what_would_be_refused_is_listed_and_returns_1(run, registry, saved):
    (saved.parent / "net_deploy_model.paper").write_text("nameless")
    code, out, _ = run("check", saved)
    assert code == 1
    assert out.splitlines() == ["layer 'first' has no name", "", f"{saved}_deploy_model.paper: REFUSED, 1 problem"]


def test_a_prefix_without_a_deploy_model_is_an_error_that_names_it(run, registry, tmp_path):
    code, _, err = run("check", tmp_path / "absent" / "net")
    assert code == 1
    assert "absent/net_deploy" in err


def test_a_framework_that_cannot_check_says_so(run, registry, saved, monkeypatch):
    kind = type(registry.frameworks["paper"])
    monkeypatch.setattr(kind, "capabilities", kind.capabilities - {Capability.CHECK})
    code, _, err = run("check", f"{saved}_deploy_model.paper")
    assert (code, "the paper plugin cannot check deploy models" in err) == (1, True)
    code, _, err = run("check", saved)
    assert (code, "no installed plugin can check" in err) == (1, True)
