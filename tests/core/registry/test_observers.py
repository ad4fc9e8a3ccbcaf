"""Plugins hear of finished saves, and cannot spoil them."""

import json
import sys

from twinquant.registry import notify_saved

OBSERVER = """
seen = []

@hookimpl
def twinquant_saved({arguments}):
    {body}
"""


def add_observer(site, name, arguments="framework, plan, output", body="seen.append((framework, plan, output))"):
    module = site.add(name, site.plugin(name) + OBSERVER.format(arguments=arguments, body=body))
    return lambda: sys.modules[module].seen


def test_every_observer_hears_of_a_save(site):
    heard = [add_observer(site, name) for name in ("ant", "bee")]
    notify_saved("ant", "the plan", "the output", registry=site.registry())
    assert [seen() for seen in heard] == [[("ant", "the plan", "the output")]] * 2


def test_an_observer_may_take_some_of_the_arguments(site):
    heard = add_observer(site, "ant", "output", "seen.append(output)")
    notify_saved("ant", "the plan", "the output", registry=site.registry())
    assert heard() == ["the output"]


def test_an_observer_that_raises_is_logged_and_the_others_still_hear(site, caplog):
    add_observer(site, "ant", body="raise RuntimeError('stumbled')")
    heard = [add_observer(site, "aardvark"), add_observer(site, "bee")]
    notify_saved("ant", "the plan", "the output", registry=site.registry())
    assert [len(seen()) for seen in heard] == [1, 1]
    assert "ant plugin failed" in caplog.text
    assert "stumbled" in caplog.text


def test_a_real_save_is_observed(site, tmp_path):
    body = "import pathlib; pathlib.Path(output.deploy.model.parent, 'heard').write_text(framework + str(len(plan)))"
    add_observer(site, "ant", body=body)
    model = {"layers": [{"name": "fc", "weight": [[0.5]], "bias": [0.25]}]}
    (tmp_path / "net.toy.json").write_text(json.dumps(model))
    (tmp_path / "record.txt").write_text(
        'record { key: "fc" value { scale_d: 0.5 offset_d: 0 scale_w: 0.25 offset_w: 0 } }'
    )
    site.run(
        "import twinquant\n"
        f"twinquant.save_model({str(tmp_path / 'net.toy.json')!r}, {str(tmp_path / 'record.txt')!r}, "
        f"{str(tmp_path / 'out' / 'net')!r})\n"
        "print('null')"
    )
    assert (tmp_path / "out" / "heard").read_text() == "toy1"
