"""Without OpenCV nets are saved and checked; verifying says what to install."""

import subprocess
import sys

import pytest
from twin_nets import records, varied_net

import twinquant
from twinquant.errors import CapabilityError
from twinquant.records import write_record_file

WITHOUT = """
import sys
sys.modules["cv2"] = None  # as if it were not installed
from twinquant.cli import main
sys.exit(main(sys.argv[1:]))
"""


def test_saving_and_checking_work_and_verifying_says_what_to_install(tmp_path):
    source = varied_net(tmp_path / "in")
    write_record_file(records(), tmp_path / "record.txt")

    def run(*arguments):
        command = [sys.executable, "-c", WITHOUT, *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    prefix = tmp_path / "out" / "net"
    saved = run("save", ",".join(map(str, source)), tmp_path / "record.txt", prefix)
    assert saved.returncode == 0, saved.stderr
    assert run("check", prefix).returncode == 0
    verified = run("verify", f"{prefix}_fake_quant_model.prototxt", f"{prefix}_deploy_model.prototxt")
    assert verified.returncode == 1
    assert 'pip install "twinquant-caffe[opencv]"' in verified.stderr


def test_an_opencv_that_reads_no_caffe_nets_is_refused(tmp_path, monkeypatch):
    class Dnn:
        """What version 5 offers of it."""

    fifth = type(sys)("cv2")
    fifth.dnn, fifth.__version__ = Dnn, "5.0.0"
    monkeypatch.setitem(sys.modules, "cv2", fifth)
    output = twinquant.save_model(varied_net(tmp_path / "in"), records(), tmp_path / "out" / "net")
    with pytest.raises(CapabilityError, match=r"OpenCV 5\.0\.0 reads no Caffe nets"):
        twinquant.verify(output.fake_quant.model, output.deploy.model)
