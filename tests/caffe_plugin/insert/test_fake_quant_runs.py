"""The fake-quant pair in OpenCV computes exactly what plain loops over integers compute."""

import numpy as np
import pytest
from twin_nets import FACTORS, quantized_input, rounded, rounded_bias, save, varied_blobs, varied_net


def convolve(x, weight, *, stride=1, pad=(0, 0), dilation=1, group=1):
    """A convolution by the definition, on integers."""
    batch, _, height, width = x.shape
    outputs, each, kernel_h, kernel_w = weight.shape
    padded = np.zeros((batch, x.shape[1], height + 2 * pad[0], width + 2 * pad[1]), np.int64)
    padded[:, :, pad[0] : pad[0] + height, pad[1] : pad[1] + width] = x
    rows = (padded.shape[2] - dilation * (kernel_h - 1) - 1) // stride + 1
    columns = (padded.shape[3] - dilation * (kernel_w - 1) - 1) // stride + 1
    result = np.zeros((batch, outputs, rows, columns), np.int64)
    for out in range(outputs):
        first = out // (outputs // group) * each
        for row in range(rows):
            for column in range(columns):
                top, left = row * stride, column * stride
                patch = padded[:, first : first + each, top:, left:][:, :, ::dilation, ::dilation]
                window = patch[:, :, :kernel_h, :kernel_w]
                result[:, out, row, column] = (window * weight[out].astype(np.int64)).sum((1, 2, 3))
    return result


def deconvolve(x, weight, *, stride, pad, group):
    """A transposed convolution by the definition: every input adds the kernel, times itself, to the output."""
    batch, channels, height, width = x.shape
    _, each, kernel, _ = weight.shape
    full = np.zeros((batch, each * group, stride * (height - 1) + kernel, stride * (width - 1) + kernel), np.int64)
    for channel in range(channels):
        first = channel // (channels // group) * each
        for row in range(height):
            for column in range(width):
                made = x[:, channel, row, column].astype(np.int64)[:, None, None, None] * weight[channel].astype(
                    np.int64
                )
                top, left = row * stride, column * stride
                full[:, first : first + each, top : top + kernel, left : left + kernel] += made
    return full[:, :, pad:-pad, pad:-pad]


@pytest.fixture(scope="module")
def taps(tmp_path_factory):
    """Tensors around every quantized layer, as OpenCV computes them."""
    cv2 = pytest.importorskip("cv2")
    folder = tmp_path_factory.mktemp("varied")
    output = save(varied_net(folder / "in"), folder / "out")
    net = cv2.dnn.readNetFromCaffe(*map(str, output.fake_quant.files[:2]))
    net.enableFusion(False)
    net.enableWinograd(False)
    net.setInput((np.random.default_rng(2).standard_normal((2, 4, 8, 8)) * 2).astype(np.float32), "data")
    names = [name for layer in FACTORS for name in (layer, f"{layer}_dequant_layer")]
    names += [f"{layer}_0_quant_layer/take_offset" for layer in FACTORS if layer != "right"]
    # OpenCV calls some layers by their tops.
    known = set(net.getLayerNames())
    found = net.forward([name if name in known else f"{name}/int32" for name in names])
    return dict(zip(names, found, strict=True))


def integers(name):
    """Weight and bias of a layer, rounded here."""
    scale_d, _, scale_w = FACTORS[name]
    weight, *bias = varied_blobs()[name]
    if name == "up":
        scale = np.array(scale_w, np.float32).reshape(2, 1, 2).repeat(3, axis=1).reshape(6, 2, 1, 1)
    else:
        scale = np.array(scale_w, np.float32).reshape(-1, *[1] * (weight.ndim - 1))
    return rounded(weight, scale), rounded_bias(bias[0], scale_d, scale_w) if bias else np.int64(0)


LAYERS = {
    "left": ("left", lambda x, weight: convolve(x, weight, pad=(1, 1), group=2)),
    "right": ("left", lambda x, weight: convolve(x, weight, pad=(0, 1))),
    "deep": ("deep", lambda x, weight: convolve(x, weight, stride=2, pad=(2, 2), dilation=2, group=6)),
    "up": ("up", lambda x, weight: deconvolve(x, weight, stride=2, pad=1, group=2)),
    "fc": ("fc", lambda x, weight: x.reshape(2, -1) @ weight.astype(np.int64).T),
}


@pytest.mark.parametrize("name", LAYERS)
def test_the_accumulator_is_the_sum_of_products_of_integers(taps, name):
    owner, compute = LAYERS[name]
    x = taps[f"{owner}_0_quant_layer/take_offset"]
    assert np.array_equal(x, np.rint(x))
    weight, bias = integers(name)
    spread = bias if np.ndim(bias) == 0 or name == "fc" else bias.reshape(-1, 1, 1)
    assert np.array_equal(taps[name], compute(x.astype(np.int64), weight) + spread)


@pytest.mark.parametrize("name", FACTORS)
def test_the_dequantized_output_is_the_accumulator_times_both_scales(taps, name):
    scale_d, _, scale_w = FACTORS[name]
    product = np.float32(scale_d) * np.array(scale_w or [1], np.float32)
    shape = (1, -1) if name == "fc" else (1, -1, 1, 1)
    assert np.array_equal(taps[f"{name}_dequant_layer"], taps[name] * product.reshape(shape))


def test_a_pooling_averages_integers_with_its_padding(taps):
    x = taps["pool_0_quant_layer/take_offset"].astype(np.float64)
    padded = np.zeros((*x.shape[:2], x.shape[2] + 3, x.shape[3] + 3))
    padded[:, :, 1:-2, 1:-2] = x
    for row in range(5):
        for column in range(5):
            window = padded[:, :, 2 * row : 2 * row + 3, 2 * column : 2 * column + 3]
            # The last window reaches beyond the padding, which does not count.
            area = (3 if row < 4 else 2) * (3 if column < 4 else 2)
            assert np.allclose(taps["pool"][:, :, row, column], window.sum((2, 3)) / area, rtol=1e-6, atol=1e-5)


def test_the_offset_is_that_of_the_record(taps):
    scale_d, offset_d, _ = FACTORS["left"]
    x = (np.random.default_rng(2).standard_normal((2, 4, 8, 8)) * 2).astype(np.float32)
    assert np.array_equal(taps["left_0_quant_layer/take_offset"], quantized_input(x, scale_d, offset_d))
