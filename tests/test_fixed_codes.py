"""Codes that do not move: around which training whitens h."""

import copy
import itertools
import math

import pytest
import torch
from test_codebooks import vectors

from vae_lab.distributions import base
from vae_lab.estimators import VectorQuantization
from vae_lab.latents import FSQ, LFQ
from vae_lab.latents.whitening import learning
from vae_lab.schedules import schedules

pytestmark = pytest.mark.usefixtures("float64")

FIXED = [
    pytest.param(lambda: FSQ((8, 5)).double(), id="fsq"),
    pytest.param(lambda: FSQ((4, 5), 3).double(), id="fsq of 3"),
    pytest.param(lambda: LFQ(3).double(), id="lfq"),
]


def moments(white):
    """The mean and the covariance of h' [N, L, D], [L, D] and [L, D, D], within each vector."""
    return white.mean(0), torch.einsum("nld,nle->lde", white, white) / len(white)


def whitened(latent, h):
    """h [N, L * D] by the moments of this batch, [N, L, D]."""
    with learning(latent.whitening):
        return latent.whitening(h.unflatten(-1, latent.whitening.loc.shape))


def by_the_averages(latent, h):
    return latent.whitening(h.unflatten(-1, latent.whitening.loc.shape))


@pytest.mark.parametrize("make", FIXED)
def test_h_is_around_the_codes_at_every_step_of_training(make):
    latent = make()
    h = torch.randn(3000, latent.parameter_size).cumsum(-1) + 5
    usage = lambda q: latent.codes(q).flatten(0, 1).mean(0)  # noqa: E731
    assert usage(latent.distribution(h)).min() < 0.002
    for batch in (0.1 * h, 10 * h + 100):
        mean, covariance = moments(whitened(latent, batch))
        torch.testing.assert_close(mean, torch.zeros_like(mean), rtol=0, atol=0.02)
        one = torch.eye(mean.shape[-1]).expand_as(covariance)
        torch.testing.assert_close(covariance, one, rtol=0, atol=0.02)
        assert (usage(latent.learn(batch)) > 0.002).all()
    for _ in range(100):
        latent.learn(h)
    mean, _ = moments(by_the_averages(latent, h))
    torch.testing.assert_close(mean, torch.zeros_like(mean), rtol=0, atol=1e-3)
    assert (usage(latent.distribution(h)) > 0.002).all()


@pytest.mark.parametrize("make", FIXED)
@pytest.mark.parametrize("batches", [0, 1])
def test_the_gradient_of_whitening_is_that_of_what_it_computes(make, batches):
    latent = make()
    vectors, dim = latent.whitening.loc.shape
    for _ in range(batches):
        whitened(latent, torch.randn(50, vectors * dim) @ torch.randn(vectors * dim, vectors * dim))
    before = copy.deepcopy(latent.whitening)
    h, seen = torch.randn(40, vectors, dim).requires_grad_(), torch.randn(40, vectors, dim)
    past, count = dim + 1, 40 + dim + 1
    loc = (h.sum(0) + past * (before.loc if batches else h.detach().mean(0))) / count
    squares = torch.einsum("nld,nle->lde", h - loc, h - loc)
    variance = squares.detach().diagonal(dim1=-2, dim2=-1).mean(-1) / 40  # in all directions
    round_one = torch.eye(dim) * variance[:, None, None]
    covariance = before.covariance if batches else round_one
    root = torch.linalg.cholesky((squares + past * covariance) / count)
    expected = torch.linalg.solve_triangular(root, (h - loc).unsqueeze(-1), upper=False).squeeze(-1)
    found = whitened(latent, h.flatten(1))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    gradients = [torch.autograd.grad((white * seen).sum(), h)[0] for white in (found, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("make", FIXED)
def test_no_gradient_moves_or_stretches_all_of_h(make):
    latent = make()
    h = torch.randn(5000, *latent.whitening.loc.shape).requires_grad_()
    seen = torch.randn(h.shape) + h.detach()
    free, held = (
        torch.autograd.grad((f(h) * seen).sum(), h)[0]
        for f in (lambda h: h, lambda h: whitened(latent, h.flatten(1)))
    )
    stretched = lambda g: (g * h).mean(0)  # noqa: E731
    assert free.mean(0).abs().max() < 0.1 < stretched(free).abs().min()
    assert held.mean(0).abs().max() < 0.01 and stretched(held).abs().max() < 0.01
    assert held.square().mean() > 0.3 * free.square().mean()


@pytest.mark.parametrize("rows", [1, 2, 3])
def test_a_small_batch_is_taken_with_those_before(rows):
    latent = FSQ((8, 5)).double()
    for _ in range(300):
        assert whitened(latent, h := torch.randn(rows, 2) + 5).isfinite().all()
    mean, _ = moments(by_the_averages(latent, torch.randn(2000, 2) + 5))
    assert mean.abs().max() < 1
    h.requires_grad_()
    (gradient,) = torch.autograd.grad(whitened(latent, h).square().sum(), h)
    assert gradient.any() and gradient.isfinite().all()


@pytest.mark.parametrize("latent", [FSQ((3, 4), whiten=0), LFQ(2, whiten=0)], ids=str)
def test_without_whitening_training_leaves_h_as_it_is(latent):
    latent.double()
    h = torch.randn(200, 2) + 3
    q, learned = (base(f(h)) for f in (latent.distribution, latent.learn))
    assert torch.equal(q.h, h.tanh().unsqueeze(1) if isinstance(latent, FSQ) else h)
    assert torch.equal(learned.h, q.h) and torch.equal(learned.point, q.point)
    assert not [name for name in latent.state_dict() if "whitening" in name]


@pytest.mark.parametrize("make", FIXED)
@pytest.mark.parametrize("first", ["one", "two", "constant"])
def test_a_first_batch_that_does_not_vary_does_no_harm(make, first):
    """Its covariance has no inverse, and is among what the next batches are whitened by."""
    latent = make()
    size = latent.parameter_size
    batch = {"one": torch.randn(1, size), "two": torch.randn(2, size)}
    h = batch.get(first, torch.full((50, size), 3.7)).requires_grad_()
    weight = torch.randn(len(h), size).view(len(h), *latent.whitening.loc.shape)
    (gradient,) = torch.autograd.grad((whitened(latent, h) * weight).sum(), h)
    assert gradient.norm() < 100 * weight.norm() and latent.whitening.matrix.abs().max() < 200
    h = torch.randn(64, size).requires_grad_()
    weight = torch.randn(64, size).view(64, *latent.whitening.loc.shape)
    (gradient,) = torch.autograd.grad((whitened(latent, h) * weight).sum(), h)
    assert 0.1 * weight.norm() < gradient.norm() < 10 * weight.norm()


@pytest.mark.parametrize("make", FIXED)
def test_after_the_first_steps_h_is_moved_as_it_was_last(make):
    latent = make()
    h = torch.randn(50, latent.parameter_size).requires_grad_()
    moving = schedules(latent)["whitens"]
    latent.learn(5 * torch.randn(50, latent.parameter_size))
    for step in (0, 299, 300, 10_000):
        moving.set_step(step)
        before, q = latent.whitening.loc.clone(), latent.learn(2 * h + 1)
        known = latent.distribution(2 * h + 1)
        assert torch.equal(base(q).h, base(known).h) == (step >= 300)
        assert torch.equal(before, latent.whitening.loc) == (step >= 300)
    (gradient,) = torch.autograd.grad(base(q).h.sum(), h)
    assert gradient.mean(0).abs().min() > 0.01, "all h can move"


@pytest.mark.parametrize("latent", [FSQ((3, 4)), LFQ(2)], ids=lambda latent: type(latent).__name__)
def test_a_latent_of_32_bits_learns_of_numbers_of_64(latent):
    latent.float()
    for _ in range(2):
        latent.whitening.learns = True
        white = latent.whitening(torch.randn(20, *latent.whitening.loc.shape).double())
    assert white.dtype == torch.float64 and latent.whitening.loc.dtype == torch.float32


@pytest.mark.parametrize("steps", [-1, True, 0.5, "no"])
@pytest.mark.parametrize("cls", [FSQ, LFQ])
def test_whiten_is_a_number_of_steps(cls, steps):
    with pytest.raises(ValueError, match="whiten must be a number of steps, 0 for none, got"):
        cls(whiten=steps)


@pytest.mark.parametrize("cls", [FSQ, LFQ])
def test_what_a_subclass_says_of_q_holds_in_training(cls):
    class Own(cls):
        def distribution(self, parameters):
            return super().distribution(parameters - 1000)

    latent = (Own((3, 4), whiten=0) if cls is FSQ else Own(2, whiten=0)).double()
    h = vectors(latent, 20).detach()
    assert torch.equal(base(latent.learn(h)).h, base(latent.distribution(h)).h)
    assert (base(latent.learn(h)).code == -1).all()
    whole = (Own((3, 4)) if cls is FSQ else Own(2)).double()
    whole.learn(h)
    torch.testing.assert_close(whole.whitening.loc.flatten(), h.mean(0) - 1000)


def test_a_code_that_the_prior_rules_out_has_a_kl_that_0_times_is_0():
    latent = FSQ((3, 4), 2).double()
    latent.prior_parameters.data[:6] = -math.inf
    kl = latent.kl(latent.distribution(vectors(latent, 50)))
    assert (0 * kl).isfinite().all() and kl.max() > 1e30


@pytest.mark.parametrize("make", FIXED)
def test_h_that_does_not_change_stays_finite(make):
    latent = make()
    h = torch.full((20, latent.parameter_size), 3.7, requires_grad=True)
    for _ in range(2000):
        latent.learn(h)
    (gradient,) = torch.autograd.grad(base(latent.learn(h)).h.sum(), h)
    assert gradient.isfinite().all() and gradient.abs().max() < 1e4


@pytest.mark.parametrize("levels", [(3,), (2, 3), (8, 5, 5, 5)])
def test_fsq_numbers_and_codes_are_one_to_one(levels):
    latent = FSQ(levels).double()
    numbers = torch.arange(math.prod(levels)).unsqueeze(-1)
    codes = latent.embed(latent.from_numbers(numbers))
    digits = torch.stack(torch.unravel_index(numbers.squeeze(-1), levels), -1)
    torch.testing.assert_close(codes, 2 * digits / (torch.tensor(levels) - 1) - 1)
    assert math.log2(latent.num_states) == pytest.approx(sum(map(math.log2, levels)))


@pytest.mark.parametrize("levels", [(3,), (4,), (8, 5, 6)])
def test_fsq_rounds_each_number_by_itself_and_twice_is_once(levels):
    latent = FSQ(levels).double()
    parameters = vectors(latent, 300)
    h = parameters.tanh()
    steps = torch.tensor(levels) - 1
    expected = 2 * ((h + 1) / 2 * steps).round() / steps - 1
    code = latent.embed(latent.mode(latent.distribution(parameters)))
    torch.testing.assert_close(code, expected)
    inside = code.clamp(-1 + 1e-12, 1 - 1e-12).atanh()
    torch.testing.assert_close(latent.embed(latent.mode(latent.distribution(inside))), code)


@pytest.mark.parametrize("levels", [(2,), (3,), (4,), (8, 5, 6)])
def test_fsq_levels_are_on_both_sides_of_zero_alike(levels):
    latent = FSQ(levels).double()
    parameters = vectors(latent, 100)
    code, mirrored = (
        latent.embed(latent.mode(latent.distribution(sign * parameters))) for sign in (1, -1)
    )
    torch.testing.assert_close(code, -mirrored)


def test_fsq_gradient_is_that_of_the_bound():
    latent = FSQ((8, 5, 5)).double()
    parameters, weights = vectors(latent), torch.randn(3)
    value = VectorQuantization(0.0)(
        latent.distribution(parameters), lambda z: (latent.embed(z) * weights).sum(-1)
    )
    (found,) = torch.autograd.grad(value.sum(), parameters)
    torch.testing.assert_close(found, weights * (1 - parameters.tanh().square()))


@pytest.mark.parametrize("latent", [FSQ((8, 5, 5)), FSQ((2, 2), temperature=1.0), LFQ(3)], ids=repr)
def test_no_noise_leaves_the_numbers(latent):
    for scale in (1e-3, 1.0, 1e3, 1e30):
        q = latent.double().distribution(scale * torch.randn(500, latent.parameter_size))
        numbers = latent.numbers(q.sample())
        assert numbers.min() >= 0 and numbers.max() < latent.categories


@pytest.mark.parametrize("sphere", [False, True])
@pytest.mark.parametrize("bits", [1, 4, 10])
def test_lfq_is_a_codebook_of_all_corners(bits, sphere):
    latent = LFQ(bits, sphere, temperature=0.9).double()
    parameters = vectors(latent, 20)
    corners = torch.tensor([*itertools.product([-1.0, 1.0], repeat=bits)]) * latent.scale
    h = torch.nn.functional.normalize(parameters, dim=-1) if sphere else parameters
    p = (-(h.unsqueeze(1) - corners).square().sum(-1) / 0.9).softmax(-1)  # [20, 2^bits]
    q = latent.distribution(parameters)
    each = corners.sign().clamp_min(0).unsqueeze(1)
    torch.testing.assert_close(q.log_prob(each).mT.exp(), p)
    entropy = torch.special.entr(p).sum(-1)
    torch.testing.assert_close(bits * math.log(2) - latent.kl(q).sum(-1), entropy)
    nearest = corners[p.argmax(-1)]
    still = LFQ(bits, sphere).double()
    torch.testing.assert_close(still.embed(still.mode(still.distribution(parameters))), nearest)


@pytest.mark.parametrize("sphere", [False, True])
def test_lfq_copies_the_gradient(sphere):
    latent = LFQ(4, sphere).double()
    parameters, weights = vectors(latent), torch.randn(4)
    f = lambda z: (latent.embed(z) * weights).sum(-1)  # noqa: E731
    value = VectorQuantization(0.0)(latent.distribution(parameters), f)
    (found,) = torch.autograd.grad(value.sum(), parameters)
    h = torch.nn.functional.normalize(parameters, dim=-1) if sphere else parameters
    (expected,) = torch.autograd.grad((h * weights).sum(), parameters)
    torch.testing.assert_close(found, expected)
