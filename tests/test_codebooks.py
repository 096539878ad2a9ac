"""Codebooks: the nearest code, and the gradients that train it."""

import functools
import math

import pytest
import torch
from hydra.utils import instantiate
from oracles import bumpy
from test_precision import ESTIMATORS
from tiny import SHAPE, binary_images, discrete_vae, exact_elbo, grid_vae

from vae_lab.distributions import base, support
from vae_lab.estimators import VectorQuantization, catalog
from vae_lab.estimators.vector_quantization import rotated
from vae_lab.latents import FSQ, LFQ, Codebook, ResidualCodebook
from vae_lab.objectives import ELBO, IWAE, MonteCarloELBO
from vae_lab.quantized import QuantizedCategory
from vae_lab.schedules import Linear

pytestmark = pytest.mark.usefixtures("float64")


BOOKS = [
    pytest.param({}, id="a book each"),
    pytest.param({"shared": True}, id="shared"),
    pytest.param({"cosine": True}, id="cosine"),
]


def vq(categories=5, dim=3, latents=2, temperature=0.0, **settings):
    latent = Codebook(latents, categories, dim, temperature, **{"decay": None} | settings).double()
    with torch.no_grad():
        latent.book.codes.normal_()
    return latent


def vectors(latent, rows=7):
    return torch.randn(rows, latent.parameter_size, dtype=torch.float64, requires_grad=True)


def brute_force(latent, parameters):
    """The squared distance from each h to each code, [N, L, K], pair by pair."""
    h, codes = latent.vectors(parameters), latent.codebook()
    codes = codes.expand(latent.latents, -1, -1)
    return (h.unsqueeze(-2) - codes).square().sum(-1)


# Distances


@pytest.mark.parametrize("settings", BOOKS)
def test_the_nearest_code_is_that_of_brute_force(settings):
    latent = vq(**settings)
    parameters = vectors(latent, 200)
    q = latent.distribution(parameters)
    index = brute_force(latent, parameters).argmin(-1)
    assert torch.equal(latent.numbers(latent.mode(q)), index)
    codes = latent.codebook().expand(2, -1, -1)
    expected = codes[torch.arange(2), index].flatten(1)  # [N, L * D]
    torch.testing.assert_close(latent.embed(latent.mode(q)), expected)
    assert len(index.unique()) == 5


def test_far_from_zero_the_nearest_code_is_still_the_nearest():
    latent = vq(categories=50, latents=1).float()
    with torch.no_grad():
        latent.book.codes += 1000.0
    parameters = vectors(latent, 500).float() + 1000.0
    found = latent.numbers(latent.mode(latent.distribution(parameters))).squeeze(-1)
    distance = brute_force(latent, parameters).squeeze(1)
    chosen = distance.gather(1, found.unsqueeze(1)).squeeze(1)
    torch.testing.assert_close(chosen, distance.amin(1), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("settings", BOOKS)
def test_probabilities_are_those_of_distances(settings):
    latent = vq(temperature=0.7, **settings)
    parameters = vectors(latent)
    expected = (-brute_force(latent, parameters) / 0.7).softmax(-1)
    torch.testing.assert_close(latent.codes(latent.distribution(parameters)), expected)


def test_a_learned_temperature_and_one_that_changes():
    latent = vq(temperature=2.0, learn_temperature=True)
    parameters = vectors(latent).detach()
    q = latent.distribution(parameters)
    torch.testing.assert_close(base(q).logits.exp(), latent.codes(q))
    latent.kl(q).sum().backward()
    assert latent.log_factor.grad != 0
    changing = vq(temperature=Linear(2.0, 1.0, 10))
    changing.temperature.set_step(5)
    assert changing.present_temperature == 1.5


def test_what_a_relaxed_z_embeds_is_the_mixture():
    latent = vq()
    z = torch.rand(4, 2, 5)
    expected = sum(z[..., k : k + 1] * latent.codebook()[:, k] for k in range(5))
    torch.testing.assert_close(latent.embed(z), expected.flatten(1))


def test_codes_that_are_all_the_same_are_a_constant():
    latent = vq()
    with torch.no_grad():
        latent.book.codes.copy_(torch.arange(3.0))
    z = latent.mode(latent.distribution(vectors(latent)))
    assert torch.equal(latent.embed(z), torch.arange(3.0).repeat(7, 2))


# van den Oord's gradient


def loss_of(embedded):
    """A loss that is not linear in what the decoder sees, [*, L * D] -> [*]."""
    with torch.autocast("cpu", enabled=False):
        return bumpy(embedded)


def as_in_the_paper(latent, parameters, commitment=0.25, turn=None):
    """VQ-VAE as it is written: gathered codes, and sg in three places. Its loss, [N]."""
    h = latent.vectors(parameters)
    codes = latent.codebook().expand(latent.latents, -1, -1)
    index = brute_force(latent, parameters).argmin(-1)
    e = codes[torch.arange(latent.latents), index]
    seen = (h + (e - h).detach() if turn is None else turn(h, e.detach())).flatten(1)
    codebook = (h.detach() - e).square().flatten(1).sum(-1)
    return loss_of(seen) + codebook + commitment * (h - e.detach()).square().flatten(1).sum(-1)


def ours(latent, parameters, commitment=0.25, **settings):
    """A value of which the optimizer lowers the negative, as it does of an objective."""
    return value_of(latent, latent.distribution(parameters), commitment, **settings)


def value_of(latent, q, commitment=0.25, **settings):
    estimator = VectorQuantization(commitment, **settings)
    return -estimator(q, lambda z: -loss_of(latent.embed(z.squeeze(0))).unsqueeze(0))


@pytest.mark.parametrize("categories", [5, 4, 40])
@pytest.mark.parametrize("settings", BOOKS)
def test_the_gradients_are_those_of_van_den_oord(settings, categories):
    latent = vq(categories, **settings)
    parameters, trained = vectors(latent), latent.book.codes
    expected = torch.autograd.grad(as_in_the_paper(latent, parameters).sum(), [parameters, trained])
    found = torch.autograd.grad(ours(latent, parameters).sum(), [parameters, trained])
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)


def test_the_value_is_that_of_f_alone():
    latent = vq()
    parameters = vectors(latent)
    z = latent.mode(latent.distribution(parameters))
    torch.testing.assert_close(ours(latent, parameters), loss_of(latent.embed(z)))


def test_in_float32_too():
    latent = vq(categories=512, dim=8, latents=1)
    parameters = vectors(latent, 50)
    (exact,) = torch.autograd.grad(as_in_the_paper(latent, parameters).sum(), parameters)
    latent, rounded = latent.float(), parameters.detach().float().requires_grad_()
    for precision in (None, torch.bfloat16):
        with torch.autocast("cpu", precision, enabled=precision is not None):
            value = ours(latent, rounded)
        (found,) = torch.autograd.grad(value.sum(), rounded)
        torch.testing.assert_close(found.double(), exact, rtol=1e-3, atol=1e-3)


def test_fewer_codes_than_dimensions_copy_what_can_change_the_choice():
    latent = vq(categories=2, dim=4, latents=1)
    parameters = vectors(latent)
    settings = {"commitment": 0.0}
    (found,) = torch.autograd.grad(ours(latent, parameters, **settings).sum(), parameters)
    (whole,) = torch.autograd.grad(as_in_the_paper(latent, parameters, 0.0).sum(), parameters)
    difference = latent.codebook()[0, 0] - latent.codebook()[0, 1]
    basis = torch.nn.functional.normalize(difference, dim=0).unsqueeze(1)  # [D, 1]
    torch.testing.assert_close(found, whole @ basis @ basis.mT, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found @ difference, whole @ difference, rtol=1e-6, atol=1e-6)


def turned(h, e):
    """The rotation trick by matrices, one for each vector."""
    e_unit, h_unit = (torch.nn.functional.normalize(x.detach(), dim=-1) for x in (e, h))
    r = torch.nn.functional.normalize(e_unit + h_unit, dim=-1)
    outer = lambda a, b: a.unsqueeze(-1) * b.unsqueeze(-2)  # noqa: E731
    matrix = torch.eye(h.shape[-1]) - 2 * outer(r, r) + 2 * outer(e_unit, h_unit)
    scale = e.norm(dim=-1) / h.detach().norm(dim=-1)
    return scale.unsqueeze(-1) * (matrix @ h.unsqueeze(-1)).squeeze(-1)


def test_the_rotation_trick():
    latent = vq()
    parameters = vectors(latent)
    h, e = latent.vectors(parameters), torch.randn(7, 2, 3)
    torch.testing.assert_close(rotated(h, e), e)
    nothing = torch.zeros(1, 3, requires_grad=True)
    (gradient,) = torch.autograd.grad(rotated(nothing, torch.full((1, 3), 9.0)).sum(), nothing)
    assert gradient.isfinite().all() and gradient.abs().max() < 1e4
    torch.testing.assert_close(turned(h, e), e)
    expected = torch.autograd.grad(
        as_in_the_paper(latent, parameters, turn=turned).sum(), [parameters, latent.book.codes]
    )
    value = ours(latent, parameters, rotation=True).sum()
    found = torch.autograd.grad(value, [parameters, latent.book.codes])
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-7)


SEEN = {
    "vq": lambda: vq(),
    "shared": lambda: vq(shared=True, cosine=True),
    "average": lambda: vq(decay=0.9),
    "fsq": lambda: FSQ((3, 4), latents=2),
    "fsq of bits": lambda: FSQ((2, 2, 2)),
    "chain": lambda: residual(),
    "shared chain": lambda: residual(depth=2, shared=True),
}


@pytest.mark.parametrize("commitment", [0.0, 0.25])
@pytest.mark.parametrize("build", [discrete_vae, grid_vae])
@pytest.mark.parametrize("name", SEEN)
def test_what_the_decoder_sees_is_trained_as_z_is(name, build, commitment):
    vae, estimator = build(SEEN[name]()), VectorQuantization(commitment)
    x = binary_images(6, vae.shape)
    vae.eval()
    trained = [p for p in vae.parameters() if p.requires_grad]
    found = []
    for pick in (lambda level: level, lambda level: level.embedded):
        level = pick(vae.infer(x))
        value = estimator(level.q, level.below)
        gradients = torch.autograd.grad(value.sum(), trained, allow_unused=True)
        found.append([value, *(torch.zeros(()) if g is None else g for g in gradients)])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b.expand_as(a), rtol=1e-5, atol=1e-5)
    assert any(g.abs().sum() > 0.01 for g in found[1][1:])


@pytest.mark.parametrize("name", SEEN)
def test_no_step_makes_a_one_hot_z(name, monkeypatch):
    vae, made = grid_vae(SEEN[name]()), []
    point = QuantizedCategory.point.fget
    monkeypatch.setattr(QuantizedCategory, "point", property(lambda q: made.append(q) or point(q)))
    x = binary_images(6, vae.shape)
    vae.eval()(x).objective.sum().backward()
    assert not made
    vae(x, objective=MonteCarloELBO())
    assert made  # log p(z) is asked for


@pytest.mark.parametrize("name", SEEN)
def test_what_is_the_same_for_all_codes_moves_none(name):
    """log p(z) of a uniform prior, which only an objective that samples its KL sees."""
    vae = discrete_vae(SEEN[name]())
    x, found = binary_images(6, vae.shape), []
    trained = [*vae.encoder.parameters(), *vae.head.parameters()]
    vae.eval().latent.prior_parameters.data.zero_()
    for objective in (ELBO(), MonteCarloELBO()):
        value = objective(vae, VectorQuantization(), x).objective.sum()
        found.append(torch.autograd.grad(value, trained))
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", SEEN)
def test_the_kl_of_a_name_is_that_of_its_z(name):
    latent = SEEN[name]()
    latent.prior_parameters.requires_grad_().data.normal_()
    q, p = latent.distribution(vectors(latent)), latent.prior()
    named, whole = latent.kl(q).sum(-1), -p.log_prob(base(q).point)
    torch.testing.assert_close(named, whole)
    of = [torch.autograd.grad(x.sum(), latent.prior_parameters)[0] for x in (named, whole)]
    torch.testing.assert_close(*of)


def residual(depth=3, categories=4, dim=2, latents=2, decay=None, shared=False, revive=0.0):
    """Of which each level has smaller codes than the one before."""
    latent = ResidualCodebook(latents, depth, categories, dim, shared, decay, revive).double()
    with torch.no_grad():
        for number, level in enumerate(latent.levels):
            level.book.codes.normal_().mul_(0.5**number)
    return latent


NEAREST = [vq(), residual(2, 3, 2, 1), FSQ((3, 4), 2).double(), LFQ(4, sphere=True).double()]


@pytest.mark.parametrize("latent", NEAREST, ids=lambda latent: type(latent).__name__)
def test_the_elbo_is_that_of_the_code_and_the_length_of_its_name(latent):
    vae, x = discrete_vae(latent), binary_images()
    latent.prior_parameters.data.zero_()
    terms = vae(x)  # with the estimator that suits it
    z = latent.mode(vae.encode(x))
    torch.testing.assert_close(terms.reconstruction, vae.log_px_z(x, z))
    length = torch.full((3,), math.log(latent.num_states))
    torch.testing.assert_close(terms.kl, length)
    torch.testing.assert_close(vae.elbo(x).elbo, terms.elbo)
    torch.testing.assert_close(IWAE()(vae, VectorQuantization(), x).objective, terms.elbo)
    every = support(latent.prior()).unsqueeze(1).expand(-1, 3, *latent.event_shape)
    evidence = (vae.log_px_z(x, every) - length).logsumexp(0)
    assert (terms.elbo < evidence).all(), "it is a bound"
    terms.objective.sum().backward()
    assert vae.head.weight.grad.any() and vae.head.weight.grad.isfinite().all()


@pytest.mark.parametrize("latent", NEAREST, ids=lambda latent: type(latent).__name__)
def test_the_mixture_of_nearest_codes_is_as_far_from_the_prior_as_its_frequencies(latent):
    """Its KL is that of a q that has randomness."""
    latent.prior_parameters.data.zero_()
    q = latent.distribution(vectors(latent, 50))
    gap, moments = latent.gap(q)
    p = latent.codes(q).mean(0)
    expected = (math.log(p.shape[-1]) - torch.special.entr(p).sum(-1)).sum()
    torch.testing.assert_close(gap, expected)
    assert moments == p.shape[0] * (p.shape[1] - 1)


@pytest.mark.parametrize("cls", [c for c in catalog() if c is not VectorQuantization])
@pytest.mark.parametrize("latent", NEAREST, ids=lambda latent: type(latent).__name__)
def test_a_q_without_randomness_is_refused_by_all_others(latent, cls):
    q = latent.distribution(torch.zeros(1, latent.parameter_size))
    assert VectorQuantization.accepts(q) and not cls.accepts(q)
    assert "use one of VectorQuantization" in cls.refusal(q)


@pytest.mark.parametrize("make", [lambda: FSQ((6, 2)), lambda: vq(latents=1, categories=12, dim=2)])
def test_what_is_not_finite_has_a_code_all_the_same(make):
    """A name of no code would end the process where there is a GPU."""
    h = torch.tensor([[math.nan, 0.1], [math.inf, -math.inf], [1e30, 0.0]])
    latent = make().to(h)
    q = latent.distribution(h)
    assert torch.equal(latent.mode(q).sum(-1), torch.ones(3, 1))
    assert latent.numbers(latent.mode(q)).max() < 12


@pytest.mark.parametrize("latent", [FSQ((6, 2)), vq(latents=1), LFQ(2)], ids=repr)
def test_the_value_of_z_is_that_of_the_code_whatever_the_move(latent):
    q = base(latent.double().distribution(vectors(latent, 3)))
    assert torch.equal(q.carried(torch.full_like(q.code, math.inf)), q.point)


def test_aggregate_kl_reaches_h_where_q_has_no_derivative():
    for latent in (vq(), residual(), FSQ((3, 4)).double(), LFQ(4).double()):
        parameters = vectors(latent, 20)
        q = latent.distribution(parameters)
        value = latent.aggregate_kl(q)
        assert value.shape == (20,) and (value.mean() >= 0)
        (gradient,) = torch.autograd.grad(value.mean(), parameters)
        assert gradient.isfinite().all() and gradient.abs().max() > 1e-4


# At T > 0: every estimator against enumeration

RANDOM = {
    "codebook": functools.partial(vq, 3, 2, 2, 0.8),
    "cosine": functools.partial(vq, 3, 2, 2, 0.8, cosine=True, shared=True),
    "fsq": lambda: FSQ((3,), 2, 0.5).double(),
    "lfq": lambda: LFQ(3, temperature=2.0).double(),
}
CHUNKS, COPIES = 30, 100
PARTS = "encoder", "decoder", "codes"


def pairs():
    for name, make in RANDOM.items():
        q = make().distribution(torch.zeros(1, make().parameter_size))
        for file, config in sorted(ESTIMATORS.items()):
            estimator = instantiate(config, _convert_="all")
            if estimator.accepts(q) and estimator.single_sample:
                yield pytest.param(estimator, make, id=f"{file}-{name}")


def parts(vae):
    """Encoder, decoder, and the codes where they are learned."""
    books = [vae.latent.book.codes] if isinstance(vae.latent, Codebook) else []
    return [[*vae.encoder.parameters(), *vae.head.parameters()], [*vae.decoder.parameters()], books]


def flat_gradients(value, vae):
    found = [torch.autograd.grad(value, p, retain_graph=True) for p in parts(vae) if p]
    return [torch.cat([g.flatten() for g in each]) for each in found]


@pytest.mark.parametrize("estimator, make", [*pairs()])
def test_every_estimator_trains_encoder_decoder_and_codes(estimator, make):
    torch.manual_seed(3)
    vae, estimator = discrete_vae(make()).eval(), estimator.double().eval()
    x = binary_images(1)
    expected = flat_gradients(exact_elbo(vae, x).mean(), vae)
    copies = x.expand(COPIES, *SHAPE)
    drawn = [
        flat_gradients(ELBO()(vae, estimator, copies).objective.mean(), vae) for _ in range(CHUNKS)
    ]
    for name, exact, *samples in zip(
        ("encoder", "decoder", "codes"), expected, *drawn, strict=False
    ):
        samples = torch.stack(samples)
        error = samples.std(0) / math.sqrt(CHUNKS)
        z = (samples.mean(0) - exact).abs() / error.clamp_min(1e-9)
        if estimator.unbiased is True:
            assert z.max() < 5, name
        else:
            assert torch.cosine_similarity(samples.mean(0), exact, dim=0) > 0.7, name
