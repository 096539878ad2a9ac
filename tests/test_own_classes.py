"""Classes of one's own in a release, and models that were changed and get none."""

import pytest
import torch
from test_pretrained import Thin, small_vae
from torch import nn
from torch.nn.utils import prune
from torch.nn.utils.parametrizations import weight_norm
from torch.nn.utils.parametrize import remove_parametrizations

from vae_lab import VAE, likelihoods, register
from vae_lab.description import CLASSES, check_described
from vae_lab.latents import Bernoulli
from vae_lab.networks import MLP


class Doubled(Thin):
    """Keeps another number than it was given."""

    def __init__(self, width):
        self.width = 2 * width


class Secret(Thin):
    def __init__(self, size):
        super().__init__(size)


class Loose(Thin):
    def __init__(self, **settings):
        super().__init__(**settings)


class Sized(Thin):
    """Its argument is no plain type."""

    def __init__(self, width):
        super().__init__(width)
        self.width = torch.tensor(width)

    def encoder(self, shape):
        return MLP((4,)).encoder(shape)


class Offset(likelihoods.Gaussian):
    def mean(self, params):
        return params + 1


class Bits(Bernoulli):
    pass


@pytest.mark.parametrize(
    "cls, parts",
    [
        (Thin, {"network": Thin(5)}),
        (Offset, {"likelihood": Offset(0.2)}),
        (Bits, {"latent": Bits(3)}),
    ],
)
def test_an_own_class_is_released_once_it_is_register(cls, parts, tmp_path):
    vae, x = small_vae(**parts), torch.rand(2, 1, 4, 4).round()
    for refused in (lambda: vae.save_pretrained(tmp_path), lambda: check_described(vae)):
        with pytest.raises(ValueError, match=f"the .* {cls.__name__} could .*@vae_lab.register$"):
            refused()
    assert not [*tmp_path.iterdir()]
    assert register(cls) is cls and register(cls) is cls
    loaded = VAE.from_pretrained(vae.save_pretrained(tmp_path))
    assert torch.equal(loaded.reconstruct(x), vae.reconstruct(x))
    del CLASSES[next(iter(parts))][cls.__name__]  # another process, which did not import it
    with pytest.raises(ValueError, match=f"unknown .* '{cls.__name__}' .*; import the module that"):
        VAE.from_pretrained(tmp_path)


def test_a_class_that_is_defined_anew_takes_the_place_of_the_old():
    first, second = (type("Cell", (Thin,), {}) for _ in range(2))
    register(first)
    vae = small_vae(network=first(4))
    register(second)
    assert CLASSES["network"]["Cell"] is second
    check_described(vae)


class Spaced(Thin):
    """Its constructor reads a value, which a tensor on `meta` does not have."""

    def __init__(self, width):
        super().__init__(width)
        self.rates = [rate.item() for rate in torch.linspace(0, 1, width)]


def test_a_constructor_may_read_a_tensor(tmp_path):
    vae = small_vae(network=register(Spaced)(4))
    before = torch.get_rng_state()
    assert VAE.from_pretrained(vae.save_pretrained(tmp_path)).network.rates == vae.network.rates
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    "cls, message",
    [
        (len, "@vae_lab.register decorates a class, got <built-in function len>"),
        (
            int,
            "int must be a Latent, a Likelihood, a Prior, a Condition, or a network with "
            "encoder and decoder",
        ),
        (Loose, r"Loose must list its arguments by name, it has \*\*settings"),
    ],
)
def test_what_cannot_be_registered_is_said(cls, message):
    with pytest.raises(ValueError, match=message):
        register(cls)


@pytest.mark.parametrize(
    "network, message",
    [
        (Secret(4), "Secret must keep its argument size as self.size, for a release"),
        (Doubled(4), r"as given, got .*'width': 8} and keeps .*'width': 16}"),
        (Sized(4), "the arguments of the parts must be plain: .*Tensor is not JSON"),
    ],
)
def test_an_own_class_that_keeps_no_arguments_is_not_released(network, message, tmp_path):
    register(type(network))
    with pytest.raises(ValueError, match=message):
        small_vae(network=network).save_pretrained(tmp_path / "x")
    assert not [*tmp_path.iterdir()]


CHANGES = {
    "weight_norm": (lambda v: weight_norm(v.encoder[1]), "in encoder.1, encoder.1.param"),
    "pruning": (
        lambda v: prune.l1_unstructured(v.head, "weight", 0.5),
        "in head, head.weight_orig",
    ),
    "twice": (lambda v: setattr(v, "trunk", v.encoder), "in trunk, trunk.0, trunk.1"),
    "more": (lambda v: v.encoder.append(nn.Identity()), "in encoder.3,"),
    "activation": (lambda v: v.encoder.__setitem__(2, nn.Tanh()), "in encoder.2,"),
    "its setting": (lambda v: v.decoder.__setitem__(1, nn.ReLU(True)), "in decoder.1,"),
    "size": (
        lambda v: v.decoder.__setitem__(0, nn.Linear(4, 6, False)),
        "in decoder.0, decoder",
    ),
    "compiled": (lambda v: setattr(v, "head", torch.compile(v.head)), "in head, head._orig_mod"),
    "buffer": (lambda v: v.register_buffer("x", torch.ones(1)), "in x,"),
    "integers": (lambda v: v.head.__setattr__("bias", whole(v.head.bias)), "in head.bias,"),
    "tied": (lambda v: v.encoder[1].__setattr__("bias", v.decoder[0].bias), "decoder.0.bias,"),
    "method": (lambda v: setattr(v, "decode", lambda z: 0 * z), "come back with .* own decode,"),
    "forward": (lambda v: setattr(v.head, "forward", lambda x: 0 * x), "in head,"),
    "hook": (lambda v: v.head.register_forward_hook(lambda m, x, y: 0 * y), "in head,"),
    "class": (
        lambda v: setattr(v, "__class__", OwnVAE),
        "own decode, features, .* OwnVAE",
    ),
}


class OwnVAE(VAE):
    def decode(self, z):
        return -super().decode(z)

    def features(self, x):
        return -super().features(x)

    def more(self):
        """Which does no harm."""


def whole(parameter):
    return nn.Parameter(parameter.detach().int(), requires_grad=False)


@pytest.mark.parametrize("change, message", CHANGES.values(), ids=CHANGES)
def test_a_model_that_was_changed_is_not_released(change, message, tmp_path):
    vae = small_vae()
    check_described(vae)
    change(vae)
    with pytest.raises(ValueError, match=message) as caught:
        vae.save_pretrained(tmp_path / "x")
    assert "\n" not in str(caught.value) and not [*tmp_path.iterdir()]


def test_what_is_undone_is_released(tmp_path):
    vae, x = small_vae(), torch.rand(2, 1, 4, 4).round()
    weight_norm(vae.encoder[1])
    prune.l1_unstructured(vae.head, "weight", 0.5)
    expected = vae.reconstruct(x)
    remove_parametrizations(vae.encoder[1], "weight")
    prune.remove(vae.head, "weight")
    loaded = VAE.from_pretrained(vae.save_pretrained(tmp_path))
    torch.testing.assert_close(loaded.reconstruct(x), expected)


def test_whole_numbers_are_not_halved(tmp_path):
    @register
    class Counting(MLP):
        def encoder(self, shape):
            made = super().encoder(shape)
            made.register_buffer("seen", torch.tensor(2**20 + 1))
            return made

    vae = small_vae(network=Counting((6,)))
    loaded = VAE.from_pretrained(vae.save_pretrained(tmp_path, torch.float16))
    assert loaded.encoder.seen == 2**20 + 1
