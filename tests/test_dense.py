"""The linear layer whose large products oneDNN computes."""

import copy
import platform

import pytest
import torch
from torch import nn
from torch.autograd import forward_ad
from torch.func import functional_call, jvp, vmap

from vae_lab import dense, onednn
from vae_lab.dense import Dense

pytestmark = pytest.mark.skipif(
    not torch.backends.mkldnn.is_available() or platform.machine() not in ("x86_64", "AMD64"),
    reason="torch was built without oneDNN for this CPU",
)


@pytest.fixture(autouse=True)
def slow_mkl(monkeypatch):
    """As if this were such a CPU, and every product large."""
    monkeypatch.setattr(onednn, "MKL_IS_SLOW", True)
    monkeypatch.setattr(dense, "LEAST", 1)


@pytest.fixture
def products(monkeypatch):
    """The shapes that oneDNN was given."""
    shapes, plain = [], onednn.product

    def product(x, weight, bias):
        shapes.append((*x.shape, len(weight)))
        return plain(x, weight, bias)

    monkeypatch.setattr(onednn, "product", product)
    return shapes


def pair(bias=True):
    """Two layers with the same weights: torch's, and ours."""
    torch.manual_seed(0)
    theirs = nn.Linear(30, 20, bias)
    ours = Dense(30, 20, bias)
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours


INPUTS = {
    "matrix": lambda: torch.randn(16, 30),
    "vector": lambda: torch.randn(30),
    "stack": lambda: torch.randn(3, 4, 30),
    "transposed": lambda: torch.randn(30, 16).t(),
    "expanded": lambda: torch.randn(1, 30).expand(16, 30),
    "every other": lambda: torch.randn(16, 60)[:, ::2],
    "no data": lambda: torch.randn(0, 30),
}


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kind", INPUTS)
def test_it_is_the_linear_layer(kind, bias, products):
    found = []
    for layer in pair(bias):
        torch.manual_seed(1)
        x = INPUTS[kind]().requires_grad_()
        y = layer(x)
        by_x, *by_weights = torch.autograd.grad(y.sin().sum(), [x, *layer.parameters()])
        found.append((y, by_x, *by_weights))
    assert bool(products) == (kind != "no data")
    for theirs, ours in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_it_is_differentiated_twice(products):
    found = []
    for layer in pair():
        torch.manual_seed(1)
        x = torch.randn(16, 30, requires_grad=True)
        (slope,) = torch.autograd.grad(layer(x).sin().sum(), x, create_graph=True)
        found.append(torch.autograd.grad(slope.square().sum(), [x, *layer.parameters()]))
    assert len(products) > 3  # the layer, its derivative, and that one's
    for theirs, ours in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_what_needs_no_gradient_is_not_multiplied_for_it(products):
    _, ours = pair()
    ours(torch.randn(16, 30)).sum().backward()
    assert products == [(16, 30, 20), (20, 16, 30)]


class Odd(torch.Tensor):
    """A tensor that somebody has made their own."""


LEFT_ALONE = {
    "float64": lambda layer, x: layer.double()(x.double()),
    "bfloat16": lambda layer, x: layer.bfloat16()(x.bfloat16()),
    "of another class": lambda layer, x: layer(x.as_subclass(Odd)),
    "mapped": lambda layer, x: vmap(layer)(x),
    "forward mode": lambda layer, x: jvp(layer, (x,), (x,)),
    "forward mode, without torch.func": lambda layer, x: _forward_mode(layer, x),
    "symbols": lambda layer, x: torch.fx.symbolic_trace(nn.Sequential(layer))(x),
    "sparse": lambda layer, x: layer(x.relu().to_sparse()),
    "a bias of every other number": lambda layer, x: functional_call(
        layer, {"bias": torch.linspace(-1, 1, 40)[::2]}, (x,)
    ),
    "a bias of one number": lambda layer, x: functional_call(
        layer, {"bias": torch.ones(1).expand(20)}, (x,)
    ),
    "a bias for each datum": lambda layer, x: functional_call(
        layer, {"bias": torch.linspace(-1, 1, 320).view(16, 20)}, (x,)
    ),
    "called with other weights": lambda layer, x: vmap(
        lambda w: functional_call(layer, {"weight": w}, (x,))
    )(torch.linspace(-1, 1, 1200).view(2, 20, 30)),
    "recorded": lambda layer, x: torch.jit.trace(layer, x, check_trace=False),
    "exported": lambda layer, x: _exported(layer, x)(x),
    "without oneDNN": lambda layer, x: _without_onednn(layer, x),
    "autocast": lambda layer, x: _autocast(layer, x),
}


def _exported(layer, x):
    batch = torch.export.Dim("batch", min=1, max=10**6)
    return torch.export.export(layer, (x,), dynamic_shapes=({0: batch},)).module()


def _forward_mode(layer, x):
    with forward_ad.dual_level():
        return forward_ad.unpack_dual(layer(forward_ad.make_dual(x, x))).tangent


def _without_onednn(layer, x):
    with torch.backends.mkldnn.flags(enabled=False):
        return layer(x)


def _autocast(layer, x):
    with torch.autocast("cpu", torch.bfloat16):
        return layer(x)


@pytest.mark.parametrize("kind", LEFT_ALONE)
@pytest.mark.filterwarnings("ignore:.torch.jit:FutureWarning", "ignore:TF32:UserWarning")
def test_the_rest_is_left_to_torch(kind, products):
    theirs, ours = pair()
    x = torch.randn(16, 30)
    found, wanted = (LEFT_ALONE[kind](copy.deepcopy(layer), x) for layer in (ours, theirs))
    assert not products
    if not isinstance(found, nn.Module):
        torch.testing.assert_close(found, wanted)


def test_weights_of_another_size_may_be_given(products):
    x, weights = torch.randn(16, 12), {"weight": torch.randn(7, 12), "bias": torch.randn(7)}
    theirs, ours = pair()
    torch.testing.assert_close(
        functional_call(ours, weights, (x,)), functional_call(theirs, weights, (x,))
    )
    assert products == [(16, 12, 7)]


def test_gradients_that_are_given_are_mapped_over(products):
    def slopes(layer):
        torch.manual_seed(1)
        x, by_y = torch.randn(16, 30, requires_grad=True), torch.randn(3, 16, 20)
        y, leaves = layer(x), [x, *layer.parameters()]
        return vmap(lambda v: torch.autograd.grad(y, leaves, v, retain_graph=True))(by_y)

    theirs, ours = map(slopes, pair())
    assert products == [(16, 30, 20)]
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_small_products_are_left_to_torch(products, monkeypatch):
    monkeypatch.setattr(dense, "LEAST", 16 * 30 * 20 + 1)
    _, ours = pair()
    ours(torch.randn(16, 30))
    assert not products
    ours(torch.randn(17, 30))
    assert products == [(17, 30, 20)]


def test_what_does_not_fit_is_refused_in_torchs_words():
    theirs, ours = pair()
    with pytest.raises(RuntimeError) as found:
        ours(torch.randn(16, 29))
    with pytest.raises(RuntimeError) as wanted:
        theirs(torch.randn(16, 29))
    assert str(found.value) == str(wanted.value)


@pytest.mark.slow
def test_compiled_it_is_the_same():
    theirs, ours = pair()
    found = []
    for layer in (theirs, torch.compile(ours, fullgraph=True)):
        torch.manual_seed(1)
        x = torch.randn(16, 30, requires_grad=True)
        y = layer(x).relu()
        found.append((y, *torch.autograd.grad(y.sin().sum(), [x, *layer.parameters()])))
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


CPUS = {
    "vendor_id\t: AuthenticAMD\nflags : avx512f\nvendor_id\t: AuthenticAMD\n": "AuthenticAMD",
    "processor : 0\nvendor_id\t: GenuineIntel\n": "GenuineIntel",
    "CPU implementer : 0x41\n": "",  # ARM names none
}


@pytest.mark.parametrize(("text", "vendor"), CPUS.items())
def test_the_maker_of_the_cpu(text, vendor, tmp_path):
    (tmp_path / "cpuinfo").write_text(text)
    assert onednn.vendor(tmp_path / "cpuinfo") == vendor


def test_the_maker_of_the_cpu_where_there_is_no_such_file(tmp_path, monkeypatch):
    monkeypatch.setattr(platform, "processor", lambda: "AMD64 Family 25 Model 33, AuthenticAMD")
    assert onednn.vendor(tmp_path / "cpuinfo") == "AuthenticAMD"
    monkeypatch.setattr(platform, "processor", lambda: "arm")
    assert onednn.vendor(tmp_path / "cpuinfo") == ""
