"""Codebooks: the nearest code and its gradient, and what keeps codes in use."""

import copy
import functools
import math
from types import SimpleNamespace

import pytest
import torch
from hydra.utils import instantiate
from oracles import bumpy
from test_precision import ESTIMATORS
from tiny import SHAPE, SMALL_GRID, binary_images, discrete_vae, exact_elbo, grid_vae

from models import FSQVAE, LFQVAE, VQVAE
from vae_lab import VAE
from vae_lab.callbacks import FiniteUpdates
from vae_lab.conditions import InferredLabels
from vae_lab.description import assemble, blueprint
from vae_lab.distributions import base, support
from vae_lab.estimators import ScoreFunction, VectorQuantization, catalog
from vae_lab.estimators.vector_quantization import rotated
from vae_lab.gradients import encoder_gradients, reference
from vae_lab.latents import FSQ, LFQ, Codebook, ResidualCodebook
from vae_lab.latents.codes import Codes
from vae_lab.likelihoods import Bernoulli
from vae_lab.metrics import sums_and_count
from vae_lab.networks import MLP
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


def left_over(latent, h):
    """By brute force, h [N, L, D]: at each level what is left over and its nearest code."""
    for level in latent.levels:
        codes = level.codebook().expand(latent.latents, -1, -1)
        index = (h.unsqueeze(-2) - codes).square().sum(-1).argmin(-1)
        code = codes[torch.arange(latent.latents), index]
        yield h, code, index
        h = h - code.detach()


@pytest.mark.parametrize("shared", [False, True])
def test_each_level_has_the_nearest_code_to_what_those_before_it_left_over(shared):
    latent = residual(shared=shared)
    parameters = vectors(latent, 100)
    z = latent.mode(latent.distribution(parameters))
    _, codes, index = zip(*left_over(latent, parameters.unflatten(-1, (2, 2))), strict=True)
    assert torch.equal(latent.numbers(z), torch.cat(index, -1))
    assert torch.equal(latent.from_numbers(latent.numbers(z)), z)
    torch.testing.assert_close(latent.embed(z), sum(codes).flatten(1))
    errors = [(parameters - sum(codes[:n]).flatten(1)).square().mean() for n in (1, 2, 3)]
    assert errors[0] > errors[1] > errors[2]


def test_the_gradients_of_a_chain_are_one_copy_and_the_losses_of_all_levels():
    latent = residual()
    parameters, books = vectors(latent), [level.book.codes for level in latent.levels]
    h = parameters.unflatten(-1, (2, 2))
    loss, total = 0.0, 0.0
    for rest, code, _ in left_over(latent, h):
        loss = loss + (rest.detach() - code).square() + 0.25 * (rest - code.detach()).square()
        total = total + code.detach()
    value = loss_of((h + (total - h).detach()).flatten(1)) + loss.flatten(1).sum(-1)
    expected = torch.autograd.grad(value.sum(), [parameters, *books])
    found = torch.autograd.grad(ours(latent, parameters).sum(), [parameters, *books])
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)


def test_a_chain_of_one_is_a_codebook():
    one, plain = residual(depth=1), vq(4, 2)
    with torch.no_grad():
        plain.book.codes.copy_(one.levels[0].book.codes)
    parameters = vectors(one)
    found, expected = (
        torch.autograd.grad(ours(latent, parameters).sum(), parameters) for latent in (one, plain)
    )
    assert torch.equal(*found, *expected)
    found, expected = (
        latent.aggregate_kl(latent.distribution(parameters)) for latent in (one, plain)
    )
    assert torch.equal(found, expected)


@pytest.mark.parametrize("shared", [False, True])
def test_levels_begin_at_what_is_left_over_and_follow_it(shared):
    latent, h = residual(decay=0.9, shared=shared, revive=0.3), torch.randn(200, 4) + 3
    latent.learn(h)
    rest = h.unflatten(-1, (2, 2))
    for level in latent.levels:
        rows = rest.movedim(1, 0) if not shared else rest.reshape(1, -1, 2)
        for codes, seen in zip(level.book.codes, rows, strict=True):
            assert all((code == seen).all(-1).any() for code in codes)
        rest = rest - base(level.distribution(rest.flatten(1))).code
    for _ in range(50):
        latent.learn(h)
    shares = [(rest / h.std()).square().mean() for rest, *_ in left_over(latent, h.view(-1, 2, 2))]
    assert shares[1] < 0.5 and shares[2] < 0.5 * shares[1]
    assert latent.learned()["code_perplexity"] > 3


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


COMPILED = [
    pytest.param(lambda: vq(decay=0.9), False, id="codebook"),
    pytest.param(lambda: vq(decay=0.9), True, id="rotation"),
    pytest.param(
        lambda: residual(decay=0.9, revive=0.5), False, id="residual", marks=pytest.mark.slow
    ),
    pytest.param(lambda: FSQ((3, 4), 2).double(), False, id="fsq"),
    pytest.param(lambda: LFQ(4).double(), False, id="lfq"),
]


@pytest.mark.parametrize("make, rotation", COMPILED)
def test_compiled_equals_eager(make, rotation):
    latent = make()
    parameters, start = vectors(latent), copy.deepcopy(latent.state_dict())

    def step(parameters):
        return value_of(latent, latent.learn(parameters), rotation=rotation).sum()

    results = []
    for run in (step, torch.compile(step, backend="aot_eager", fullgraph=True)):
        latent.load_state_dict(start)
        (gradient,) = torch.autograd.grad(run(parameters), parameters)
        results.append([gradient, *(b.clone() for b in latent.buffers())])
    for eager, compiled in zip(*results, strict=True):
        torch.testing.assert_close(eager, compiled)


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


# What keeps codes in use


def book(categories=4, dim=2, decay=0.0, revive=0.0, started=True):
    codes = Codes((1, categories, dim), decay, revive).double()
    codes.batches += started
    codes.usage.fill_(1 / categories)
    return codes


def chosen_of(codes, h):
    distance = (h.unsqueeze(-2) - codes.codes).square().sum(-1)
    return torch.nn.functional.one_hot(distance.argmin(-1), codes.usage.shape[-1]).double()


def learned(codes, h):
    """After a batch of h [N, D]."""
    codes.learn(h.unsqueeze(1), chosen_of(codes, h).unsqueeze(1))
    return codes


def test_an_average_without_a_past_is_a_step_of_lloyd():
    codes, h = book(), torch.randn(30, 2)
    with torch.no_grad():
        codes.codes[0, 3] = 100.0  # nothing is near
    chosen, before = chosen_of(codes, h).bool(), codes.codes.clone()
    learned(codes, h)
    for k in range(3):
        torch.testing.assert_close(codes.codes[0, k], h[chosen[:, k]].mean(0))
    assert torch.equal(codes.codes[0, 3], before[0, 3])


def test_the_average_is_that_of_the_paper():
    codes = book(decay=0.9)
    count, total = torch.full((4,), 0.25), 0.25 * codes.codes[0].clone()
    for _ in range(5):
        h = torch.randn(50, 2)
        chosen = chosen_of(codes, h)
        count = 0.9 * count + 0.1 * chosen.mean(0)
        total = 0.9 * total + 0.1 * chosen.mT @ h / 50
        learned(codes, h)
        torch.testing.assert_close(codes.codes[0], total / count.unsqueeze(-1))
        torch.testing.assert_close(codes.usage[0], count)


@pytest.mark.parametrize("decay", [None, 0.9])
def test_codes_begin_at_rows_of_the_first_batch(decay):
    codes, h = book(decay=decay, started=False), torch.randn(9, 2)
    learned(codes, h)
    rows = [int((h == code).all(-1).nonzero()) for code in codes.codes[0]]
    assert len(set(rows)) == 4 and not codes.revived.any()


@pytest.mark.parametrize("decay", [None, 0.9])
def test_a_dead_code_begins_anew_and_no_living_one_is_touched(decay):
    codes, calm = (book(decay=decay, revive=revive) for revive in (0.1, 0.0))
    calm.load_state_dict(codes.state_dict())
    for each in (codes, calm):
        with torch.no_grad():
            each.codes[0, 2] = 100.0
        each.usage[0, 2] = 0.1 / 4
    h = torch.randn(30, 2)
    dead = torch.arange(4) == 2
    learned(codes, h), learned(calm, h)
    assert (codes.codes[0, 2] == h).all(-1).any() and codes.usage[0, 2] == 1 / 4
    assert torch.equal(codes.codes[0, ~dead], calm.codes[0, ~dead])
    assert torch.equal(codes.usage[0, ~dead], calm.usage[0, ~dead])
    assert codes.revived == 1 and not calm.revived
    assert calm.codes[0, 2].min() > 99 and calm.usage[0, 2] < 0.1 / 4


def test_the_log_has_the_usage_and_the_codes_that_began_anew():
    latent = vq(categories=4, latents=1, decay=0.9, revive=0.1)
    assert latent.learned()["code_perplexity"] == 1  # of no usage
    h = torch.randn(50, 3)
    latent.learn(h)
    latent.book.usage[0] = torch.tensor([0.5, 0.5, 0.0, 0.0])
    torch.testing.assert_close(latent.learned()["code_perplexity"], torch.tensor(2.0))
    with torch.no_grad():
        latent.book.codes[0, 2:] = 100.0
    latent.learn(h)
    assert latent.learned()["revived_codes"] == 2 and FSQ().learned() == {}


def test_what_is_not_finite_is_not_learned():
    codes, other, h = book(), book(), torch.randn(30, 2)
    other.load_state_dict(codes.state_dict())
    learned(codes, h)
    broken = torch.cat([h, torch.tensor([[math.nan, 0.0], [math.inf, 1.0]])])
    learned(other, broken)
    torch.testing.assert_close(codes.codes, other.codes)


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


@pytest.mark.parametrize("build", [discrete_vae, grid_vae])
@pytest.mark.parametrize("shared", [False, True])
def test_a_model_learns_in_training_only(build, shared):
    vae = build(vq(decay=0.9, shared=shared))
    x = binary_images(5, vae.shape)
    vae.eval()(x)
    assert not vae.latent.book.batches
    vae.train()(x)
    vae.elbo(x)
    assert vae.latent.book.batches == 1
    h = vae.latent.vectors(vae.head(vae.features(x))).detach()  # [5, *grid, L, D]
    rows = h.reshape(-1, 3 if shared else 6)
    codes = vae.latent.book.codes.movedim(0, 1).flatten(1)  # [K, L * D]
    seen = rows if shared else rows.unflatten(-1, (2, 3)).flatten(1)
    assert all((code == seen).all(-1).any() for code in codes)


def test_most_of_many_codes_are_used_and_all_of_them_after_a_while():
    torch.manual_seed(0)
    latent = Codebook(1, 64, 4, 0.0, decay=0.9, revive=0.3).double()
    usage = []
    for _ in range(150):
        h = torch.randn(200, 4) * torch.tensor([3.0, 1.0, 0.3, 0.1]) + 7
        latent.learn(h)
        p = latent.codes(latent.distribution(h)).mean((0, 1))
        usage.append((p > 0).double().mean())
    assert usage[0] > 0.6 and min(usage[-10:]) > 0.85


def test_aggregate_kl_reaches_h_where_q_has_no_derivative():
    for latent in (vq(), residual(), FSQ((3, 4)).double(), LFQ(4).double()):
        parameters = vectors(latent, 20)
        q = latent.distribution(parameters)
        value = latent.aggregate_kl(q)
        assert value.shape == (20,) and (value.mean() >= 0)
        (gradient,) = torch.autograd.grad(value.mean(), parameters)
        assert gradient.isfinite().all() and gradient.abs().max() > 1e-4


# Models, releases and refusals

MODELS = {
    "vq": (VQVAE, {"categories": 5, "dim": 2}),
    "residual": (VQVAE, {"categories": 5, "dim": 2, "depth": 3}),
    "fsq": (FSQVAE, {"levels": [3, 2]}),
    "lfq": (LFQVAE, {"latents": 3}),
}


def model(name, place=None, **settings):
    cls, own = MODELS[name]
    return cls(
        shape=SHAPE,
        network=place or MLP((3,)),
        likelihood=Bernoulli(),
        objective=ELBO(),
        optimizer=functools.partial(torch.optim.Adam, lr=0.01),
        **own | settings,
    )


@pytest.mark.parametrize("place", [None, SMALL_GRID], ids=["flat", "grid"])
@pytest.mark.parametrize("name", [name for name in MODELS if name != "residual"])
def test_a_model_takes_the_nearest_code_or_with_another_estimator_any(name, place):
    nearest, drawn = model(name, place), model(name, place, estimator=ScoreFunction(4))
    assert nearest.vae.latent.deterministic and not drawn.vae.latent.deterministic
    with pytest.raises(ValueError, match="use one of VectorQuantization"):
        model(name, place, estimator=ScoreFunction(4), temperature=0.0)
    with pytest.raises(ValueError, match="VectorQuantization works with Quantized"):
        model(name, place, temperature=1.0)


@pytest.mark.parametrize("name", MODELS)
def test_a_release_comes_back(name):
    vae = model(name).vae
    x = binary_images(20)
    vae.train()(x)
    again = assemble(VAE, blueprint(vae), "here")
    again.load_state_dict(vae.state_dict())
    z, other = (v.eval().latent.mode(v.encode(x)) for v in (vae, again))
    assert torch.equal(z, other) and torch.equal(vae.decode(z), again.decode(z))


@pytest.mark.parametrize("name", MODELS)
def test_a_step_that_is_left_out_teaches_nothing(name, tmp_path):
    module, callback = model(name).double(), FiniteUpdates(tmp_path / "debug.ckpt", "skip")
    plugin = SimpleNamespace(scaler=None)
    trainer = SimpleNamespace(precision_plugin=plugin, global_step=0, current_epoch=0)
    optimizer, x = torch.optim.Adam(module.parameters()), binary_images(20)
    callback.on_train_start(trainer, module)
    states = []
    for spoil in (1.0, math.nan, 1.0):
        terms = module.terms_of(x, torch.zeros(20))
        optimizer.zero_grad()
        (-terms.objective.mean() * spoil).backward()
        module.batch_terms = sums_and_count(terms) * spoil
        callback.on_before_backward(trainer, module, None)
        callback.on_before_optimizer_step(trainer, module, optimizer)
        optimizer.step()
        states.append({k: v.clone() for k, v in module.vae.state_dict().items()})
    good, skipped, after = states
    assert all(torch.equal(good[k], skipped[k]) for k in good)
    assert all(v.isfinite().all() for v in after.values())
    learned = [k for k, _ in module.vae.latent.named_buffers(prefix="latent") if k in good]
    assert any(not torch.equal(after[k], skipped[k]) for k in learned)


REFUSED = [
    (lambda: Codebook(dim=0), "dim must be at least 1, got 0"),
    (lambda: Codebook(temperature=-1.0), "temperature must be positive, or 0 at all steps, got -1"),
    (lambda: Codebook(temperature=Linear(1.0, 0.0, 5)), "or 0 at all steps, got 0"),
    (lambda: Codebook(temperature=0.0, learn_temperature=True), "needs a positive temperature"),
    (lambda: Codebook(decay=1.0), r"decay must be in \[0, 1\), or null, got 1"),
    (lambda: Codebook(revive=2.0), r"revive must be in \[0, 1\), got 2"),
    (lambda: ResidualCodebook(depth=0), "depth must be at least 1, got 0"),
    (lambda: model("residual", cosine=True), "depth=3 adds up nearest .*: leave out cosine=True"),
    (lambda: model("residual", rotation=True), "leave out rotation=True"),
    (lambda: model("residual", temperature=0.5), "leave out temperature=0.5"),
    (lambda: model("residual", estimator=ScoreFunction(4)), "use one of VectorQuantization"),
    (lambda: FSQ(8), "levels must be a non-empty sequence of positive integers, got 8"),
    (lambda: FSQ((8,) * 8), "levels make 16777216 codes, at most 4194304 fit: use LFQ"),
    (lambda: FSQ((4, 1)), r"levels must be 2 or more of each dimension, got \[4, 1\]"),
    (lambda: VectorQuantization(-1.0), "commitment must not be negative, got -1"),
]


@pytest.mark.parametrize("make, message", REFUSED)
def test_refusals(make, message):
    with pytest.raises(ValueError, match=message):
        make()


# What is drawn, what is frozen, what is cast


def test_codes_that_are_drawn_follow_the_gradient_whatever_the_decay():
    """An average of soft choices would draw all codes to one point."""
    latent = Codebook(2, 4, 3, 1.0, decay=0.9).double()
    vae = discrete_vae(latent)
    x, before = binary_images(20, vae.shape), latent.book.codes.detach().clone()
    assert isinstance(latent.book.codes, torch.nn.Parameter)
    vae.train()(x, ScoreFunction(2), ELBO()).objective.sum().backward()
    assert latent.book.codes.grad.abs().sum() > 0
    met = latent.book.codes.detach().clone()
    vae(x, ScoreFunction(2), ELBO())
    assert not torch.equal(met, before) and torch.equal(latent.book.codes, met)


FROZEN = {name: SEEN[name] for name in ("vq", "average", "fsq", "chain")}
FROZEN |= {"lfq": lambda: LFQ(4), "drawn": lambda: vq(temperature=1.0)}


@pytest.mark.parametrize("build", [discrete_vae, grid_vae])
@pytest.mark.parametrize("name", FROZEN)
def test_what_is_frozen_learns_nothing_of_a_batch(name, build):
    vae = build(FROZEN[name]()).train()
    x = binary_images(20, vae.shape)
    vae(x)
    vae.head.requires_grad_(False)  # with or without the encoder
    before = copy.deepcopy(vae.latent.state_dict())
    vae(x.roll(1, -1))
    assert all(torch.equal(tensor, before[n]) for n, tensor in vae.latent.state_dict().items())
    vae.head.requires_grad_()
    vae(x.roll(1, -1))
    assert any(not torch.equal(tensor, before[n]) for n, tensor in vae.latent.state_dict().items())


@pytest.mark.parametrize("name", FROZEN)
def test_no_data_teach_nothing(name):
    vae = discrete_vae(FROZEN[name]()).train()
    before = copy.deepcopy(vae.latent.state_dict())
    assert vae(binary_images(0, vae.shape)).objective.shape == (0,)
    assert all(torch.equal(tensor, before[n]) for n, tensor in vae.latent.state_dict().items())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("name", FROZEN)
def test_weights_of_any_type(name, dtype):
    """What codes and moments are averages of stays in float32."""
    torch.set_default_dtype(torch.float32)
    vae = grid_vae(FROZEN[name]()).to(dtype).train()
    x = binary_images(6, vae.shape).to(dtype)
    vae(x).objective.sum().backward()
    assert vae.log_likelihood(x, 4).isfinite().all()
    kept = [b for b in vae.latent.buffers() if b.is_floating_point() and b.numel() > 1]
    assert all(
        b.dtype == (torch.float64 if dtype == torch.float64 else torch.float32) for b in kept
    )


@pytest.mark.parametrize("name", ["vq", "fsq", "lfq"])
def test_autocast_chooses_the_same_codes(name):
    torch.set_default_dtype(torch.float32)
    latent = FROZEN[name]().float()
    h = torch.randn(200, latent.parameter_size) @ torch.randn(latent.parameter_size).diag()
    latent.train().learn(h)
    with torch.autocast("cpu", torch.bfloat16):
        found = latent.numbers(latent.mode(latent.distribution(h)))
    assert torch.equal(found, latent.numbers(latent.mode(latent.distribution(h))))


def test_an_entropy_term_is_finite_where_the_codes_lie_on_their_vectors():
    """As after the first batch, whose vectors they are."""
    latent = Codebook(1, 4, 64, 0.0).double()
    h = (10 * torch.randn(4, 64)).requires_grad_()
    latent.learn(h)
    q = latent.distribution(h)
    assert torch.equal(latent.embed(latent.mode(q)), h)
    (gradient,) = torch.autograd.grad(latent.aggregate_kl(q).sum(), h)
    assert gradient.isfinite().all() and gradient.norm() < 100


def test_a_label_that_is_inferred_above_nearest_codes():
    vae = VAE(SHAPE, MLP((8,)), FSQ((3, 3)), Bernoulli(), condition=InferredLabels(3))
    x = binary_images(5, SHAPE)
    assert vae(x, y=torch.tensor([0, 1, 2, -1, -1])).objective.isfinite().all()


@pytest.mark.parametrize("name", ["vq", "fsq", "chain"])
def test_a_gradient_that_is_of_no_expectation_is_not_measured(name):
    vae = discrete_vae(SEEN[name]())
    with pytest.raises(ValueError, match="takes the nearest code, without randomness"):
        reference(vae, ELBO(), binary_images(3, vae.shape))


def test_a_measured_gradient_teaches_the_codes_nothing():
    vae = discrete_vae(vq(temperature=1.0)).train()
    x = binary_images(9, vae.shape)
    before = copy.deepcopy(vae.state_dict())
    encoder_gradients(vae, ELBO(), ScoreFunction(2), x, 3)
    assert all(torch.equal(tensor, before[n]) for n, tensor in vae.state_dict().items())
    assert vae.training


class Tripled(FSQ):
    def embed(self, z):
        return 3 * super().embed(z)


def test_a_latent_with_an_embedding_of_its_own_is_trained_with_it():
    vae = discrete_vae(Tripled((3, 3)))
    x = binary_images(5, vae.shape)
    terms = vae.eval()(x)
    torch.testing.assert_close(terms.reconstruction, vae.log_px_z(x, vae.mode(x)))


@pytest.mark.parametrize("name", ["vq", "average", "fsq", "chain"])
def test_codes_keep_their_digits_where_a_model_is_cast(name):
    torch.set_default_dtype(torch.float32)
    vae = grid_vae(FROZEN[name]()).float().train()
    vae(binary_images(6, vae.shape).float())
    before = copy.deepcopy(dict(vae.latent.named_buffers()))
    vae.bfloat16()
    assert all(torch.equal(b, before[n]) for n, b in vae.latent.named_buffers())


def test_measuring_a_gradient_leaves_all_modes_as_they_were():
    vae = discrete_vae(vq(temperature=1.0)).train()
    vae.encoder.eval()
    modes = [part.training for part in vae.modules()]
    with pytest.raises(ValueError, match="must have the shape"):
        encoder_gradients(vae, ELBO(), ScoreFunction(2), binary_images(3, (1, 9, 9)), 1)
    encoder_gradients(vae, ELBO(), ScoreFunction(2), binary_images(3, vae.shape), 1)
    assert [part.training for part in vae.modules()] == modes
