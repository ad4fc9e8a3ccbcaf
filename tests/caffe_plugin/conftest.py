"""What the tests of several parts of the Caffe plugin share."""

import pytest


@pytest.fixture
def run_prototxt():
    """Run a written pair in OpenCV, nothing fused: `run(files, feeds, layer)` gives what the layer writes."""
    cv2 = pytest.importorskip("cv2")

    def run(files, feeds, *layers):
        net = cv2.dnn.readNetFromCaffe(str(files[0]), str(files[1]))
        net.enableFusion(False)
        net.enableWinograd(False)
        for name, array in feeds.items():
            net.setInput(array, name)
        found = net.forward(list(layers))
        return found[0] if len(layers) == 1 else found

    return run
