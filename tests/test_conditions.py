"""Conditional models: one class is none, all states are enumerated, every door takes y."""

import numpy as np
import pytest
import torch
from tiny import GRID_SHAPE, SHAPE, SMALL_GRID, binary_images, randomize

from vae_lab import VAE
from vae_lab.conditions import Attributes, InferredLabels, Labels
from vae_lab.distributions import support
from vae_lab.estimators import Exact, Reparameterization
from vae_lab.evaluation import evaluate
from vae_lab.evaluation.evidence import enumerated, importance_weighted
from vae_lab.latents import Bernoulli, Categorical, Gaussian, Poisson
from vae_lab.likelihoods import Bernoulli as Pixels
from vae_lab.networks import MLP
from vae_lab.objectives import ELBO, IWAE, MonteCarloELBO

Y = torch.tensor([2, 0, 1])
ATTRIBUTES = torch.tensor([[0.5, -1.0], [2.0, 0.0], [-0.3, 1.0]], dtype=torch.float64)
KNOWN = {  # a condition, and the y of three data
    "labels": (lambda prior: Labels(3, prior), Y),
    "attributes": (lambda prior: Attributes(2, ["a", "b"], prior), ATTRIBUTES),
    "inferred": (lambda prior: InferredLabels(3, prior), Y),
}
LATENTS = [Gaussian(2), Bernoulli(2), Categorical(2, 3), Poisson(2)]


def conditional(latent, condition, grid=False, scale=0.8):
    shape, network = (GRID_SHAPE, SMALL_GRID) if grid else (SHAPE, MLP((3,), "tanh"))
    return randomize(VAE(shape, network, latent, Pixels(), None, condition).double(), scale)


@pytest.fixture(params=KNOWN)
def known(request):
    return KNOWN[request.param]


@pytest.fixture(params=[False, True], ids=["flat", "grid"])
def grid(request):
    return request.param


def data(grid):
    return binary_images(3, GRID_SHAPE if grid else SHAPE)


# What it is


@pytest.mark.parametrize("prior", [False, True])
def test_one_class_is_no_condition_with_biases_more(prior):
    plain = conditional(Gaussian(2), None)
    one = conditional(Gaussian(2), Labels(1, prior))
    state = plain.state_dict()
    with torch.no_grad():
        for name, value in one.state_dict().items():
            old = state.get(name)
            if old is None or old.shape == value.shape:  # the map to the prior starts at zero
                value.copy_(torch.zeros_like(value) if old is None else old)
            else:
                value.copy_(torch.cat([old, torch.zeros_like(old[:, :1])], 1))
    x, estimator = binary_images(), Reparameterization()
    for objective in (ELBO(), MonteCarloELBO(), IWAE()):
        torch.manual_seed(1)
        wanted = objective(plain, estimator, x)
        torch.manual_seed(1)
        found = objective(one, estimator, x, [0, 0, 0])
        torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("kind", [Labels, InferredLabels])
def test_a_class_may_be_given_by_its_name(kind):
    vae = conditional(Gaussian(2), kind(3, names=["a", "b", True]))
    assert kind(2, names=[0, 1]).names is None
    x = binary_images(3)
    named = (["True", "a", "b"], ("True", "a", "b"), np.array(["True", "a", "b"]))
    for y in named:
        assert torch.equal(vae.given(y).encode(x).mean, vae.given(Y).encode(x).mean)
    assert torch.equal(vae.given("b").encode(x).mean, vae.given(1).encode(x).mean)
    for y in ("c", ["a", "c"]):
        with pytest.raises(ValueError, match=r"y must be .*0 to 2 \(a, b, True\).*, got 'c'"):
            vae.given(y)
    with pytest.raises(ValueError, match="y must be whole numbers, 0 to 1"):
        conditional(Gaussian(2), kind(2)).given("a")
    with pytest.raises(ValueError, match=r"names must be 3, another for each class, got \['a',"):
        kind(3, names=["a", "a", "b"])


def test_a_release_keeps_the_names(tmp_path):
    vae = conditional(Gaussian(2), Labels(3, names=["a", "b", 7]))
    vae.save_pretrained(tmp_path)
    assert VAE.from_pretrained(tmp_path).condition.names == ["a", "b", 7]


@pytest.mark.parametrize("latent", LATENTS, ids=lambda latent: type(latent).__name__)
def test_a_map_to_the_prior_that_is_zero_is_the_latents_own_prior(latent):
    vae = VAE(SHAPE, MLP((3,)), latent, Pixels(), None, Labels(3, prior=True)).double()
    given = vae.given(Y)
    q = given.encode(binary_images())
    torch.testing.assert_close(given.kl(q), vae.latent.kl(q).reshape(3, -1))


@pytest.mark.parametrize("prior", [False, True])
def test_the_elbo_and_the_evidence_are_those_of_all_states(known, grid, prior):
    make, y = known
    vae, x = conditional(Bernoulli(1), make(prior), grid), data(grid)
    given = vae.given(y, x)  # labels that are known
    q, p = given.encode(x), given.p_z()
    z = support(q)
    log_px_z, log_pz, log_qz = given.log_px_z(x, z), p.log_prob(z), q.log_prob(z)
    evidence = (log_px_z + log_pz).logsumexp(0)
    elbo = (log_qz.exp() * (log_px_z + log_pz - log_qz)).sum(0)
    found = ELBO()(given, Exact(), x)
    torch.testing.assert_close(found.elbo, elbo)
    torch.testing.assert_close(MonteCarloELBO()(given, Exact(), x).elbo, elbo)
    torch.testing.assert_close(enumerated(given, x).double(), evidence)
    assert (importance_weighted(given, x, 20_000).bound <= evidence + 0.3).all()


def test_y_reaches_the_posterior_the_decoder_and_the_prior_where_it_should(known, grid):
    make, y = known
    others = y.flip(0)
    for prior in (False, True):
        vae, x = conditional(Gaussian(2), make(prior), grid), data(grid)
        z = torch.zeros(3, *vae.latent.event_shape)
        assert not torch.equal(vae.encode(x, y).mean, vae.encode(x, others).mean)
        assert not torch.equal(vae.decode(z, y), vae.decode(z, others))
        moved = [vae.p_z(y).mean.expand(z.shape), vae.p_z(others).mean.expand(z.shape)]
        assert torch.equal(*moved) != prior


@pytest.mark.parametrize("latent", LATENTS[:3], ids=lambda latent: type(latent).__name__)
@pytest.mark.parametrize("prior", [False, True])
def test_data_do_not_see_each_others_y(known, grid, latent, prior):
    make, y = known
    vae, x = conditional(type(latent)(2), make(prior), grid), data(grid)
    together = vae.encode(x, y)
    for n in range(3):
        alone = vae.encode(x[n : n + 1], y[n : n + 1])
        torch.testing.assert_close(alone.mean[0], together.mean[n])
        torch.testing.assert_close(vae.given(y[n]).kl(alone)[0], vae.given(y).kl(together)[n])
    given = vae.given(y).rows(slice(1, 3))
    torch.testing.assert_close(given.encode(x[1:]).mean, together.mean[1:])


# Every door


DOORS = {
    "encode": lambda vae, x, y: vae.encode(x, y=y).mean,
    "elbo": lambda vae, x, y: vae.elbo(x, y=y).elbo,
    "log_likelihood": lambda vae, x, y: vae.log_likelihood(x, 5, y=y),
    "log_px_z": lambda vae, x, y: vae.log_px_z(x, zeros(vae), y=y),
    "sample": lambda vae, x, y: vae.sample(3, y=y),
    "reconstruct": lambda vae, x, y: vae.reconstruct(x, y=y),
    "interpolate": lambda vae, x, y: vae.interpolate(x, x.flip(0), 4, y=y),
    "decode": lambda vae, x, y: vae.decode(zeros(vae), y=y),
    "forward": lambda vae, x, y: vae(x, y=y).elbo,
}


def zeros(vae):
    return torch.zeros(3, *vae.latent.event_shape)


def pair(value):
    """The same twice, from the same noise."""
    torch.manual_seed(3)
    return value()


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("latent", LATENTS[:3], ids=lambda latent: type(latent).__name__)
def test_every_door_takes_y_or_is_of_a_model_that_was_given_it(door, latent, known, grid):
    make, y = known
    vae, x = conditional(type(latent)(2), make(True), grid), data(grid)
    found = pair(lambda: DOORS[door](vae, x, y))
    assert found.isfinite().all()
    torch.testing.assert_close(found, pair(lambda: DOORS[door](vae.given(y), x, None)))
    torch.testing.assert_close(found, pair(lambda: DOORS[door](vae, x, y.numpy())))
    torch.testing.assert_close(found, pair(lambda: DOORS[door](vae, x, y.tolist())))
    if door == "sample":
        return  # torch draws codes of several distributions in another order
    one = y[1].item() if y.ndim == 1 else y[1]
    alike = torch.stack([y[1]] * 3)
    single = pair(lambda: DOORS[door](vae, x, one))
    torch.testing.assert_close(single, pair(lambda: DOORS[door](vae, x, alike)))


@pytest.mark.parametrize("door", DOORS)
def test_every_door_says_what_is_wrong_with_y(door):
    vae, x = conditional(Gaussian(2), Labels(3)), data(False)
    wrong = {
        "y must be whole numbers, 0 to 2, got 3": [0, 1, 3],
        "y must be whole numbers, 0 to 2, got -1: -1 says that there is no label, which": [
            0,
            -1,
            1,
        ],
        "y must be whole numbers, 0 to 2, got torch.float32 of shape": [0.5, 1.0, 2.0],
        "y must be whole numbers, 0 to 2, got 'three'": "three",
        "the model is conditional, it needs y, whole numbers, 0 to 2: type y=": None,
        "y must be one, or one for each datum, got": [0, 1],
    }
    for message, y in wrong.items():
        with pytest.raises(ValueError, match=message.replace("(", r"\(")):
            DOORS[door](vae, x, y)
    with pytest.raises(ValueError, match="the model is not conditional: leave out y"):
        DOORS[door](conditional(Gaussian(2), None), x, 0)


def test_attributes_say_what_is_wrong_with_them():
    vae, x = conditional(Gaussian(2), Attributes(2, ["size", "weight"])), data(False)
    for y in (0, [1, 2, 3], torch.full((3, 2), torch.nan)):
        with pytest.raises(ValueError, match="y must be"):
            vae.encode(x, y=y)


def test_a_label_on_the_way_to_another_is_between_them():
    vae, x = conditional(Gaussian(2), Labels(3)), data(False)
    path = vae.interpolate(x, x, 3, y=0, y1=2)
    torch.testing.assert_close(path[0], vae.reconstruct(x, y=0))
    torch.testing.assert_close(path[-1], vae.reconstruct(x, y=2))
    assert not torch.equal(path[1], path[0])


def test_one_z_can_be_shown_with_every_label():
    vae = conditional(Gaussian(2), Labels(3))
    z = torch.randn(2).double()
    images = vae.decode(z, y=[0, 1, 2])
    torch.testing.assert_close(images[2], vae.decode(z, y=2))


# Units, releases, measures


def test_attributes_are_standardised_by_the_training_data():
    condition = Attributes(3).double()
    y = torch.randn(500, 3).double() * torch.tensor([1.0, 100.0, 0.0]) + 5
    condition.start(y)
    found = condition(y)
    torch.testing.assert_close(found.mean(0), torch.zeros(3).double(), atol=1e-9, rtol=0)
    wanted = torch.tensor([1.0, 1.0, 0.0]).double()
    torch.testing.assert_close(found.std(0, correction=0), wanted)


def test_a_release_has_the_condition_and_its_units(tmp_path, known):
    make, y = known
    vae, x = conditional(Gaussian(2), make(True)).float(), data(False).float()
    vae.initialize(x, y)
    folder = vae.save_pretrained(tmp_path / "release")
    again = VAE.from_pretrained(folder)
    assert repr(again.condition) == repr(vae.condition)
    torch.testing.assert_close(again.decode(zeros(vae), y=y), vae.decode(zeros(vae), y=y))


def test_an_optimizer_reaches_the_map_to_the_prior(known):
    make, y = known
    vae = conditional(Gaussian(2), make(True))
    gradient = torch.autograd.grad(
        vae(data(False), y=y).objective.sum(), vae.condition.to_prior.weight
    )
    assert gradient[0].abs().sum() > 0


@pytest.mark.parametrize("prior", [False, True])
def test_all_that_is_measured_of_a_conditional_model_is_finite(known, prior):
    make, y = known
    vae = conditional(Gaussian(2), make(prior)).float()
    x = binary_images(60).float()
    found = evaluate(vae, [(x, y.repeat(*[20] + [1] * (y.ndim - 1)))], samples=10, ais_images=3)
    assert {"elbo", "log_likelihood", "mse", "fid", "mutual_information"} <= found.metrics.keys()
    assert ("marginal_kl" in found.metrics) != prior
    assert all(np.isfinite(metric.value) for metric in found.metrics.values())
    if not isinstance(vae.condition, InferredLabels):
        torch.manual_seed(0)
        elbo = vae.elbo(x, 100, y=y.repeat(*[20] + [1] * (y.ndim - 1))).elbo.mean().item()
        assert found.metrics["elbo"].value == pytest.approx(elbo, abs=0.4)


def test_a_compiled_objective_does_not_compile_again_for_other_labels():
    vae, objective = conditional(Gaussian(2), Labels(3)), ELBO()
    x, estimator = data(False), Reparameterization()
    wanted = [pair(lambda y=y: objective(vae, estimator, x, y).elbo) for y in (Y, Y.flip(0))]
    torch._dynamo.reset()
    objective.compile(backend="eager", fullgraph=True)
    with torch._dynamo.config.patch(error_on_recompile=True):
        found = [pair(lambda y=y: objective(vae, estimator, x, y).elbo) for y in (Y, Y.flip(0))]
    torch.testing.assert_close(found, wanted)


def test_gradients_are_those_of_enumeration_given_y(known):
    make, y = known
    vae, x = conditional(Bernoulli(2), make(True)), data(False)
    given = vae.given(y, x)
    q, p = given.encode(x), given.p_z()
    z = support(q)
    log_w = given.log_px_z(x, z) + p.log_prob(z) - q.log_prob(z)
    exact = (q.log_prob(z).exp() * log_w).sum(0).mean()
    parameters = [p for p in vae.parameters() if p.requires_grad]
    wanted = torch.autograd.grad(exact, parameters, allow_unused=True)
    used = [p for p, g in zip(parameters, wanted, strict=True) if g is not None]
    value = ELBO()(given, Exact(), x).objective.mean()
    for found, g in zip(torch.autograd.grad(value, used), filter(is_tensor, wanted), strict=True):
        torch.testing.assert_close(found, g)


def is_tensor(g):
    return g is not None
