"""What keeps codes in use: averages, revival, the first batch, and chains of what is left over."""

import copy
import math

import pytest
import torch
from test_codebooks import loss_of, ours, residual, value_of, vectors, vq
from tiny import binary_images, discrete_vae, grid_vae

from vae_lab.distributions import base
from vae_lab.estimators import ScoreFunction
from vae_lab.latents import FSQ, LFQ, Codebook
from vae_lab.latents.codes import Codes
from vae_lab.objectives import ELBO

pytestmark = pytest.mark.usefixtures("float64")


# Chains of what is left over


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


# Averages, revival and the first batch


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


@pytest.mark.parametrize(("rows", "most"), [(8, 2), (64, 2), (256, 2)])
@pytest.mark.parametrize("decay", [None, 0.9])
def test_a_code_that_few_vectors_meet_by_chance_is_not_dead(rows, most, decay):
    codes, points = book(64, 2, decay=decay, revive=0.1), 10 * torch.randn(64, 2)
    with torch.no_grad():
        codes.codes.copy_(points)
    codes.usage.fill_(1 / 64)
    for _ in range(300):
        learned(codes, points[torch.randint(64, (rows,))])
    assert codes.revived <= most
    apart = points + 1000  # then half of them are met no more
    for _ in range(2000):
        learned(codes, torch.cat([points[:32], apart[32:]])[torch.randint(64, (rows,))])
    assert codes.revived >= 20


def test_codes_that_are_drawn_do_not_begin_anew():
    """Where h lies tells nothing of where codes are that it draws."""
    latent = Codebook(1, 8, 2, 1.0, revive=0.9).double()
    latent.learn(torch.randn(50, 2))
    before = latent.book.codes.detach().clone()
    for _ in range(100):
        latent.learn(torch.randn(50, 2) + 100)
    assert torch.equal(latent.book.codes, before) and not latent.book.revived.any()


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


def test_an_entropy_term_is_finite_where_the_codes_lie_on_their_vectors():
    """As after the first batch, whose vectors they are."""
    latent = Codebook(1, 4, 64, 0.0).double()
    h = (10 * torch.randn(4, 64)).requires_grad_()
    latent.learn(h)
    q = latent.distribution(h)
    assert torch.equal(latent.embed(latent.mode(q)), h)
    (gradient,) = torch.autograd.grad(latent.aggregate_kl(q).sum(), h)
    assert gradient.isfinite().all() and gradient.norm() < 100


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
