"""Every layer type that OpenCV claims to know, with unusual parameters, computes what Caffe's formulas say.

Each formula is NumPy of its own, after Caffe's sources; where pycaffe is installed, it is held against Caffe itself.
"""

import math
from contextlib import suppress

import numpy as np
import pytest
from nets import small_net

from twinquant.errors import UnsupportedModelError
from twinquant_caffe.load import load_net
from twinquant_caffe.net import BlobVersion
from twinquant_caffe.run import open_net

pytest.importorskip("cv2")

SHAPE = (2, 6, 7, 5)
RNG = np.random.default_rng(11)
X = (RNG.standard_normal(SHAPE) * 2).astype(np.float32)


def some(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


def single(kind, parameters=""):
    return f'layer {{ name: "it" type: "{kind}" bottom: "data" top: "it" {parameters} }}\n'


def lrn_across(x, size, alpha, beta, k):
    squares = np.pad(x.astype(np.float64) ** 2, ((0, 0), (size // 2, size // 2), (0, 0), (0, 0)))
    sums = sum(squares[:, i : i + x.shape[1]] for i in range(size))
    return x * (k + alpha / size * sums) ** -beta


def lrn_within(x, size, alpha, beta):
    pad = size // 2
    squares = np.pad(x.astype(np.float64) ** 2, ((0, 0), (0, 0), (pad, pad), (pad, pad)))
    rows, columns = x.shape[2:]
    sums = sum(squares[:, :, i : i + rows, j : j + columns] for i in range(size) for j in range(size))
    return x * (1 + alpha / size**2 * sums) ** -beta


def pooled(x, kernel, stride, pad, method, up=True):
    """Follow PoolingLayer: windows begin in the padding, are cut behind it, and padding counts in a mean."""
    lengths = []
    for length, k, s, p in zip(x.shape[2:], kernel, stride, pad, strict=True):
        count = int((math.ceil if up else math.floor)((length + 2 * p - k) / s)) + 1
        lengths.append(count - (any(pad) and (count - 1) * s >= length + p))
    out = np.empty((*x.shape[:2], *lengths))
    for i, j in np.ndindex(*lengths):
        starts = [place * s - p for place, s, p in zip((i, j), stride, pad, strict=True)]
        ends = [min(a + k, n + p) for a, k, n, p in zip(starts, kernel, x.shape[2:], pad, strict=True)]
        rows, columns = (slice(max(a, 0), min(b, n)) for a, b, n in zip(starts, ends, x.shape[2:], strict=True))
        patch = x[:, :, rows, columns].astype(np.float64)
        area = (ends[0] - starts[0]) * (ends[1] - starts[1])
        out[:, :, i, j] = patch.max((2, 3)) if method == "MAX" else patch.sum((2, 3)) / area
    return out


def convolved(x, weight, bias, stride=(1, 1), pad=(0, 0), dilation=(1, 1), group=1):
    x = np.pad(x, ((0, 0), (0, 0), (pad[0],) * 2, (pad[1],) * 2)).astype(np.float64)
    kh, kw = weight.shape[2:]
    lengths = [
        (n - d * (k - 1) - 1) // s + 1 for n, k, s, d in zip(x.shape[2:], (kh, kw), stride, dilation, strict=True)
    ]
    out = np.zeros((x.shape[0], weight.shape[0], *lengths))
    each = weight.shape[0] // group
    for g in range(group):
        part = x[:, g * weight.shape[1] : (g + 1) * weight.shape[1]]
        for i, j in np.ndindex(kh, kw):
            rows = slice(i * dilation[0], i * dilation[0] + (lengths[0] - 1) * stride[0] + 1, stride[0])
            columns = slice(j * dilation[1], j * dilation[1] + (lengths[1] - 1) * stride[1] + 1, stride[1])
            mine = slice(g * each, (g + 1) * each)
            out[:, mine] += np.einsum("nchw,oc->nohw", part[:, :, rows, columns], weight[mine, :, i, j])
    return out + bias.reshape(1, -1, 1, 1)


def deconvolved(x, weight, bias, stride, pad, group=1):
    kernel = weight.shape[2:]
    full = [(n - 1) * s + k for n, s, k in zip(x.shape[2:], stride, kernel, strict=True)]
    each = weight.shape[1]
    out = np.zeros((x.shape[0], each * group, *full))
    width = x.shape[1] // group
    for g in range(group):
        mine = slice(g * width, (g + 1) * width)
        for i, j in np.ndindex(*kernel):
            part = np.einsum("nchw,co->nohw", x[:, mine].astype(np.float64), weight[mine, :, i, j])
            rows = slice(i, i + (x.shape[2] - 1) * stride[0] + 1, stride[0])
            columns = slice(j, j + (x.shape[3] - 1) * stride[1] + 1, stride[1])
            out[:, g * each : (g + 1) * each, rows, columns] += part
    cut = out[:, :, pad[0] : full[0] - pad[0], pad[1] : full[1] - pad[1]]
    return cut + bias.reshape(1, -1, 1, 1)


def along(values, axis):
    return values.reshape(*[1] * axis, *values.shape, *[1] * (4 - axis - values.ndim))


def normalized(x, axes):
    centered = x - x.mean(axes, keepdims=True, dtype=np.float64)
    return centered / (centered**2).mean(axes, keepdims=True) ** 0.5


def softmax(x, axis):
    e = np.exp(x.astype(np.float64) - x.max(axis, keepdims=True))
    return e / e.sum(axis, keepdims=True)


MATRIX, TRANSPOSED, BIAS = some(4, 210), some(210, 4), some(4)
ROWS = some(3, 35)
KERNEL, GROUPED, UP = some(4, 6, 3, 2), some(4, 3, 2, 2), some(6, 2, 2, 3)
C6, HW, SLOPES, SCALAR = some(6), some(7, 5), some(6), some(1).reshape(())
MEAN, VARIANCE = some(6), np.abs(some(6)) + np.float32(0.5)

# name: (text of the net behind its input, blobs of `it`, what `it` computes)
CASES = {
    "InnerProduct transpose": (
        single("InnerProduct", "inner_product_param { num_output: 4 transpose: true }"),
        [TRANSPOSED, BIAS],
        lambda x: x.reshape(2, -1) @ TRANSPOSED + BIAS,
    ),
    "InnerProduct transpose of axis 2, no bias": (
        single("InnerProduct", "inner_product_param { num_output: 3 transpose: true axis: 2 bias_term: false }"),
        [ROWS.T.copy()],
        lambda x: x.reshape(2, 6, -1) @ ROWS.T,
    ),
    "InnerProduct axis": (
        single("InnerProduct", "inner_product_param { num_output: 3 axis: -2 bias_term: false }"),
        [ROWS],
        lambda x: x.reshape(2, 6, -1) @ ROWS.T,
    ),
    "LRN": (single("LRN"), [], lambda x: lrn_across(x, 5, 1, 0.75, 1)),
    "LRN k": (
        single("LRN", "lrn_param { local_size: 3 alpha: 0.5 beta: 0.6 k: 4 }"),
        [],
        lambda x: lrn_across(x, 3, 0.5, 0.6, 4),
    ),
    "LRN within": (
        single("LRN", "lrn_param { local_size: 3 norm_region: WITHIN_CHANNEL k: 3 }"),
        [],
        lambda x: lrn_within(x, 3, 1, 0.75),
    ),
    "Log": (
        single("Log", "log_param { base: 2 scale: 0.5 shift: 20 }"),
        [],
        lambda x: np.log2(20 + 0.5 * x.astype(np.float64)),
    ),
    "Log shift": (single("Log", "log_param { shift: 20 }"), [], lambda x: np.log(20 + x.astype(np.float64))),
    "Exp": (
        single("Exp", "exp_param { base: 3 scale: -0.5 shift: 1 }"),
        [],
        lambda x: 3.0 ** (1 - 0.5 * x.astype(np.float64)),
    ),
    "Power": (single("Power", "power_param { power: 3 scale: 0.5 shift: 1 }"), [], lambda x: (1 + 0.5 * x) ** 3),
    "Power 0": (single("Power", "power_param { power: 0 }"), [], np.ones_like),
    "Threshold": (single("Threshold", "threshold_param { threshold: 0.5 }"), [], lambda x: x > 0.5),
    "ReLU": (single("ReLU", "relu_param { negative_slope: -1.5 }"), [], lambda x: np.where(x > 0, x, -1.5 * x)),
    "ELU": (single("ELU", "elu_param { alpha: 0.3 }"), [], lambda x: np.where(x > 0, x, 0.3 * np.expm1(x))),
    "PReLU": (single("PReLU"), [SLOPES], lambda x: np.where(x > 0, x, x * along(SLOPES, 1))),
    "PReLU shared": (
        single("PReLU", "prelu_param { channel_shared: true }"),
        [SCALAR],
        lambda x: np.where(x > 0, x, x * SCALAR),
    ),
    "Sigmoid": (single("Sigmoid"), [], lambda x: 1 / (1 + np.exp(-x.astype(np.float64)))),
    "TanH": (single("TanH"), [], np.tanh),
    "AbsVal": (single("AbsVal"), [], np.abs),
    "BNLL": (single("BNLL"), [], lambda x: np.log1p(np.exp(x.astype(np.float64)))),
    "Softmax": (single("Softmax", "softmax_param { axis: -2 }"), [], lambda x: softmax(x, 2)),
    "Dropout": (single("Dropout", "dropout_param { dropout_ratio: 0.9 }"), [], lambda x: x),
    "MVN": (single("MVN"), [], lambda x: normalized(x, (2, 3))),
    "MVN across": (single("MVN", "mvn_param { across_channels: true }"), [], lambda x: normalized(x, (1, 2, 3))),
    "MVN mean": (
        single("MVN", "mvn_param { normalize_variance: false eps: 1 }"),
        [],
        lambda x: x - x.mean((2, 3), keepdims=True),
    ),
    "BatchNorm": (
        single("BatchNorm", "batch_norm_param { eps: 0.1 }"),
        [MEAN, VARIANCE, np.array([2.5], np.float32)],
        lambda x: (x - along(MEAN / 2.5, 1)) / np.sqrt(along(VARIANCE / 2.5, 1) + 0.1),
    ),
    "Scale": (
        single("Scale", "scale_param { axis: -2 num_axes: 2 bias_term: true }"),
        [HW, HW[::-1].copy()],
        lambda x: x * HW + HW[::-1],
    ),
    "Scale all": (
        single("Scale", "scale_param { axis: 0 num_axes: 0 bias_term: true }"),
        [SCALAR, SCALAR],
        lambda x: x * SCALAR + SCALAR,
    ),
    "Scale by a bottom, and a bias": (
        'layer { name: "p" type: "Pooling" bottom: "data" top: "p" pooling_param { pool: AVE global_pooling: true } }\n'
        'layer { name: "r" type: "Flatten" bottom: "p" top: "r" }\n'
        'layer { name: "it" type: "Scale" bottom: "data" bottom: "r" top: "it"\n'
        "  scale_param { axis: 0 bias_term: true } }",
        [some(2, 6)],
        lambda x: x * x.mean((2, 3), keepdims=True) + CASES["Scale by a bottom, and a bias"][1][0].reshape(2, 6, 1, 1),
    ),
    "Bias": (single("Bias"), [C6], lambda x: x + along(C6, 1)),
    "Bias axis": (single("Bias", "bias_param { axis: -2 num_axes: -1 }"), [HW], lambda x: x + HW),
    "Bias all": (single("Bias", "bias_param { axis: 0 num_axes: 0 }"), [SCALAR], lambda x: x + SCALAR),
    "Bias of a bottom": (
        'layer { name: "it" type: "Bias" bottom: "data" bottom: "data" top: "it" bias_param { axis: 0 } }',
        [],
        lambda x: x + x,
    ),
    "Tile": (single("Tile", "tile_param { axis: 2 tiles: 3 }"), [], lambda x: np.tile(x, (1, 1, 3, 1))),
    "Tile once": (single("Tile", "tile_param { axis: -1 tiles: 1 }"), [], lambda x: x),
    "Concat": (
        'layer { name: "it" type: "Concat" bottom: "data" bottom: "data" top: "it" concat_param { concat_dim: 2 } }',
        [],
        lambda x: np.concatenate([x, x], 2),
    ),
    "Slice": (
        'layer { name: "it" type: "Slice" bottom: "data" top: "a" top: "it"\n'
        "  slice_param { slice_dim: 2 slice_point: 3 } }",
        [],
        lambda x: x[:, :, 3:],
    ),
    "Slice axis": (
        'layer { name: "it" type: "Slice" bottom: "data" top: "it" top: "b" slice_param { axis: -3 slice_point: 2 } }',
        [],
        lambda x: x[:, :2],
    ),
    "Crop": (
        'layer { name: "p" type: "Pooling" bottom: "data" top: "p" pooling_param { kernel_size: 3 stride: 2 } }\n'
        'layer { name: "it" type: "Crop" bottom: "data" bottom: "p" top: "it"\n'
        "  crop_param { axis: -2 offset: 3 offset: 1 } }",
        [],
        lambda x: x[:, :, 3:6, 1:3],
    ),
    "Eltwise": (
        'layer { name: "p" type: "AbsVal" bottom: "data" top: "p" }\n'
        'layer { name: "it" type: "Eltwise" bottom: "data" bottom: "p" bottom: "data" top: "it"\n'
        "  eltwise_param { coeff: 2 coeff: -1 coeff: 0.5 } }",
        [],
        lambda x: 2.5 * x - np.abs(x),
    ),
    "Eltwise product": (
        'layer { name: "it" type: "Eltwise" bottom: "data" bottom: "data" bottom: "data" top: "it"\n'
        "  eltwise_param { operation: PROD } }",
        [],
        lambda x: x**3,
    ),
    "Flatten": (single("Flatten", "flatten_param { axis: -3 end_axis: -2 }"), [], lambda x: x.reshape(2, 42, 5)),
    "Reshape": (
        single("Reshape", "reshape_param { shape { dim: -1 dim: 5 } axis: -2 }"),
        [],
        lambda x: x.reshape(2, 6, 7, 1, 5),
    ),
    "Reshape a middle": (
        single("Reshape", "reshape_param { shape { dim: 3 dim: -1 } axis: 1 num_axes: 1 }"),
        [],
        lambda x: x.reshape(2, 3, 2, 7, 5),
    ),
    "Reshape an axis from behind": (
        single("Reshape", "reshape_param { shape { dim: 7 dim: -1 } axis: -3 num_axes: 1 }"),
        [],
        lambda x: x.reshape(2, 6, 7, 1, 5),
    ),
    "Reshape adds axes": (
        single("Reshape", "reshape_param { shape { dim: 1 dim: 1 } axis: -1 num_axes: 0 }"),
        [],
        lambda x: x[..., None, None],
    ),
    "Permute": (
        single("Permute", "permute_param { order: 0 order: 2 order: 3 order: 1 }"),
        [],
        lambda x: x.transpose(0, 2, 3, 1),
    ),
    "Pooling": (
        single("Pooling", "pooling_param { pool: AVE kernel_h: 3 kernel_w: 2 stride: 2 pad_h: 2 pad_w: 1 }"),
        [],
        lambda x: pooled(x, (3, 2), (2, 2), (2, 1), "AVE"),
    ),
    "Pooling cut by the padding of the other axis": (
        single(
            "Pooling", "pooling_param { pool: AVE kernel_h: 1 kernel_w: 3 stride_h: 4 stride_w: 2 pad_h: 0 pad_w: 1 }"
        ),
        [],
        lambda x: pooled(x, (1, 3), (4, 2), (0, 1), "AVE"),
    ),
    "Pooling cut in its width": (
        single("Pooling", "pooling_param { kernel_h: 3 kernel_w: 1 stride_h: 2 stride_w: 3 pad_h: 1 pad_w: 0 }"),
        [],
        lambda x: pooled(x, (3, 1), (2, 3), (1, 0), "MAX"),
    ),
    "Pooling down": (
        single("Pooling", "pooling_param { kernel_size: 2 stride: 2 round_mode: FLOOR }"),
        [],
        lambda x: pooled(x, (2, 2), (2, 2), (0, 0), "MAX", up=False),
    ),
    "Pooling global": (
        single("Pooling", "pooling_param { pool: MAX global_pooling: true }"),
        [],
        lambda x: x.max((2, 3), keepdims=True),
    ),
    "Convolution": (
        single(
            "Convolution",
            "convolution_param { num_output: 4 kernel_size: [3, 2] stride: [2, 1] pad: [1, 0] dilation: [1, 2] "
            "axis: -3 }",
        ),
        [KERNEL, BIAS],
        lambda x: convolved(x, KERNEL, BIAS, (2, 1), (1, 0), (1, 2)),
    ),
    "Convolution of groups": (
        single("Convolution", "convolution_param { num_output: 4 kernel_size: 2 group: 2 pad_w: 1 }"),
        [GROUPED, BIAS],
        lambda x: convolved(x, GROUPED, BIAS, pad=(0, 1), group=2),
    ),
    "Deconvolution": (
        single(
            "Deconvolution",
            "convolution_param { num_output: 4 kernel_h: 2 kernel_w: 3 stride_h: 2 stride_w: 1 pad_h: 0 pad_w: 1 "
            "group: 2 }",
        ),
        [UP, BIAS],
        lambda x: deconvolved(x, UP, BIAS, (2, 1), (0, 1), group=2),
    ),
}

FORKS = {
    "Swish": (
        single("Swish", "swish_param { beta: 0.5 }"),
        [],
        lambda x: x / (1 + np.exp(-0.5 * x.astype(np.float64))),
    ),
    "Swish 0": (single("Swish", "swish_param { beta: 0 }"), [], lambda x: x / 2),
}
"""Types that Caffe 1.0 lacks."""

REFUSED = {
    "Deconvolution": ("convolution_param { num_output: 2 kernel_size: 3 dilation: 2 }", [some(6, 2, 3, 3), some(2)]),
    "Convolution": ("convolution_param { num_output: 2 kernel_size: 3 axis: 2 }", [some(2, 7, 3), some(2)]),
    "MVN": ("mvn_param { eps: 0.01 }", []),
    "BatchNorm": ("batch_norm_param { use_global_stats: false }", [MEAN, VARIANCE, np.ones(1, np.float32)]),
    "LRN": ("lrn_param { k: 0 }", []),
    "Log": ("log_param { base: 1 }", []),
    "Pooling beyond the input": ("pooling_param { kernel_size: 1 stride: 4 }", []),
    "Pooling of a larger window": ("pooling_param { pool: AVE kernel_size: 9 stride: 8 }", []),
}


def write(folder, case):
    text, blobs, _ = case
    head = f'input: "data" input_shape {{ {" ".join(f"dim: {length}" for length in SHAPE)} }}\n'
    return small_net(folder, head + text, {"it": blobs} if blobs else None)


def assert_alike(found, wanted):
    assert found.shape == wanted.shape
    np.testing.assert_allclose(found, wanted, rtol=2e-5, atol=2e-5 * float(np.abs(wanted).max()))


@pytest.mark.parametrize("name", [*CASES, *FORKS])
def test_opencv_computes_what_the_formula_says(tmp_path, name):
    case = {**CASES, **FORKS}[name]
    tensor = BlobVersion("it", 0)
    assert_alike(open_net(load_net(write(tmp_path, case)), [tensor])({"data": X})[tensor], case[2](X))


@pytest.mark.filterwarnings("ignore")  # pycaffe's own
@pytest.mark.parametrize("name", CASES)
def test_caffe_computes_what_the_formula_says(tmp_path, name):
    caffe = pytest.importorskip("caffe")
    if name.split()[0] not in caffe.layer_type_list():
        pytest.skip("this Caffe has no such layer")
    if "round_mode" in CASES[name][0]:
        pytest.skip("only newer versions of Caffe have round_mode")
    net = caffe.Net(*map(str, write(tmp_path, CASES[name])), caffe.TEST)
    net.blobs["data"].data[...] = X
    net.forward()
    assert_alike(net.blobs["it"].data, CASES[name][2](X))


@pytest.mark.parametrize("name", REFUSED)
def test_what_opencv_computes_otherwise_is_refused_with_what_to_do(tmp_path, name):
    kind, (parameters, blobs) = name.split()[0], REFUSED[name]
    net = load_net(write(tmp_path, (single(kind, parameters), blobs, None)))
    message = (
        rf"OpenCV cannot run the {kind} layer 'it' as Caffe does: .*; run the net in Caffe instead: .*quantize_model"
    )
    with pytest.raises(UnsupportedModelError, match=message):
        open_net(net, [BlobVersion("it", 0)])({"data": X})


@pytest.mark.parametrize("kind", ["ArgMax", "Reduction", "SPP", "Im2col", "Embed", "Filter"])
def test_a_type_that_opencv_lacks_is_an_error_that_says_what_to_do(tmp_path, kind):
    net = load_net(write(tmp_path, (single(kind), [some(1, 1)] if kind == "Embed" else [], None)))
    with pytest.raises(UnsupportedModelError, match=rf"'{kind}'.*dnn_registerLayer.*, or run the net in Caffe"):
        open_net(net, [BlobVersion("it", 0)])({"data": X})


def test_a_python_layer_is_asked_for_one_class_for_all_of_its_type(tmp_path):
    net = load_net(write(tmp_path, (single("Python", 'python_param { module: "m" layer: "L" }'), [], None)))
    with pytest.raises(UnsupportedModelError, match="Register one class for all of them"):
        open_net(net, [BlobVersion("it", 0)])({"data": X})


def test_a_result_of_another_shape_than_caffes_is_refused(tmp_path):
    """By InnerProductLayer::Reshape, what is written has `axis` axes of the input and one more: here one."""
    text = single("InnerProduct", "inner_product_param { num_output: 4 axis: 0 bias_term: false }")
    net = load_net(write(tmp_path, (text, [some(4, math.prod(SHAPE))], None)))
    with pytest.raises(
        UnsupportedModelError, match=r"InnerProduct layer 'it' writes has the shape \[4, 1\] in OpenCV, and \[4\]"
    ):
        open_net(net, [BlobVersion("it", 0)])({"data": X})


@pytest.mark.parametrize("kind", ["Pooling", "MVN", "Tile", "Slice", "Flatten", "Reshape"])
@pytest.mark.parametrize("bottoms", ["", 'bottom: "data" bottom: "data"'])
def test_a_layer_of_a_wrong_number_of_bottoms_gives_no_error_but_ours(tmp_path, kind, bottoms):
    parameters = {
        "Pooling": "pooling_param { kernel_size: 2 }",
        "Reshape": "reshape_param { shape { dim: 0 } axis: -1 }",
    }
    text = f'layer {{ name: "it" type: "{kind}" {bottoms} top: "it" {parameters.get(kind, "")} }}\n'
    net = load_net(write(tmp_path, (text, [], None)))
    with suppress(UnsupportedModelError):  # OpenCV takes some
        open_net(net, [BlobVersion("it", 0)])({"data": X})
