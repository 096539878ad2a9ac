"""Estimates of log p(x), against models whose log p(x) is known."""

import itertools
import math

import pytest
import torch
from tiny import LinearGaussian, binary_images, discrete_vae, exact_elbo, log_evidence, randomize
from torch.profiler import profile

from vae_lab import VAE, likelihoods
from vae_lab.estimators import GumbelSoftmax
from vae_lab.evaluation import evaluate, evidence
from vae_lab.evaluation.evidence import annealed, enumerated, importance_weighted
from vae_lab.latents import Bernoulli, Categorical, Gaussian, Poisson
from vae_lab.memory import bytes_to_decode, encode_in_parts, encoded_at_once, images_at_once
from vae_lab.networks import MLP, Conv, Grid, ResNet

DISCRETE = [
    pytest.param(lambda: Bernoulli(3), id="bits"),
    pytest.param(lambda: Categorical(2, 3, learn_prior=True), id="codes"),
]


def scores(values, exact):
    """(mean - exact) in standard errors, of repeats [R, B]."""
    return (values.mean(0) - exact) / (values.std(0) / math.sqrt(len(values)))


def repeated(x, repeats=40):
    return x.repeat(repeats, 1, 1, 1)


@pytest.mark.parametrize("learn_prior", [False, True])
def test_both_estimates_of_a_linear_gaussian_model(learn_prior):
    """What they estimate without bias is p(x), so it is that which is compared."""
    model = LinearGaussian(Gaussian(2, learn_prior))
    exact, x = model.log_evidence().detach(), repeated(model.x)
    bound = importance_weighted(model.vae, x, 2000).bound.unflatten(0, (-1, 3))
    ais = annealed(model.vae, x, num_chains=10, steps=20).estimate.unflatten(0, (-1, 3))
    for values in (bound, ais):
        assert scores((values - exact).exp(), 1.0).abs().max() < 3
    # The posterior is not q: one sample is far off.
    assert (exact - model.elbo()).min() > 0.1


def test_annealing_from_the_prior_needs_no_encoder():
    model = LinearGaussian(Gaussian(2))
    exact, x = model.log_evidence().detach(), repeated(model.x)
    randomize(model.vae.head, 3.0)  # a q that is of no use
    found = annealed(model.vae, x, num_chains=20, steps=40, start="prior")
    assert scores((found.estimate.unflatten(0, (-1, 3)) - exact).exp(), 1.0).abs().max() < 3
    assert 0.4 < found.acceptance.mean() < 0.95


def test_annealing_mends_a_narrow_q_where_weights_fail():
    model = LinearGaussian(Gaussian(2))
    with torch.no_grad():
        model.vae.head.weight[2:] = 0
        model.vae.head.bias[2:] = -2.0  # sigma 0.14, a third of the posterior's
    exact, x = model.log_evidence().detach(), repeated(model.x)
    bound = importance_weighted(model.vae, x, 200).bound.unflatten(0, (-1, 3)).mean(0)
    ais = annealed(model.vae, x, num_chains=10, steps=100).estimate.unflatten(0, (-1, 3)).mean(0)
    assert (exact - bound).min() > 3
    assert (exact - ais).abs().max() < 0.3


@pytest.mark.parametrize("make", DISCRETE)
def test_enumeration_is_exact_and_the_bound_agrees_with_it(make):
    vae, x = discrete_vae(make()), binary_images()
    exact = log_evidence(vae, x)
    torch.testing.assert_close(enumerated(vae, x), exact)
    values = importance_weighted(vae, repeated(x), 300).bound.unflatten(0, (-1, 3))
    assert scores((values - exact).exp(), 1.0).abs().max() < 3
    assert (exact - exact_elbo(vae, x)).min() > 0.01


def test_enumeration_in_chunks(monkeypatch):
    vae, x = discrete_vae(Categorical(3, 4)), binary_images(5)
    whole = enumerated(vae, x)
    torch.testing.assert_close(enumerated(vae, x, memory=1), whole)
    torch.testing.assert_close(whole, log_evidence(vae, x))


@pytest.mark.parametrize("make", [*DISCRETE, pytest.param(lambda: Gaussian(2), id="gaussian")])
def test_the_bound_does_not_fall_with_the_number_of_samples(make):
    vae, x = discrete_vae(make()), binary_images()
    means, errors = [], []
    for samples in (1, 4, 16, 64):
        values = importance_weighted(vae, repeated(x, 500), samples).bound
        means.append(values.mean())
        errors.append(values.std() / math.sqrt(len(values)))
    rises = [b - a for a, b in itertools.pairwise(means)]
    assert all(
        r > -3 * math.hypot(*e) for r, e in zip(rises, itertools.pairwise(errors), strict=True)
    )
    assert (means[-1] - means[0]) / math.hypot(errors[0], errors[-1]) > 3


def test_the_diagnostics_are_those_of_the_weights(monkeypatch):
    """However the samples are chunked, of which no more than a chunk is kept."""
    vae, x = discrete_vae(Bernoulli(3)), binary_images()
    states = torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 0, 1], [0, 1, 0], [0, 0, 0]]).double()
    z = states.unsqueeze(1).expand(-1, 3, -1)
    log_px_z, q = vae.log_px_z(x, z), vae.encode(x)
    log_w = (log_px_z + vae.latent.prior().log_prob(z) - q.log_prob(z)).detach()
    w = log_w.softmax(0)
    for chunk in (1, 2, 5, 9):
        drawn = iter(z.split(1))
        monkeypatch.setattr(
            torch.distributions.Independent,
            "sample",
            lambda self, shape: torch.cat([next(drawn) for _ in range(shape[0])]),  # noqa: B023
        )
        found = importance_weighted(vae, x, 5, chunk=chunk)
        torch.testing.assert_close(found.bound, log_w.logsumexp(0) - math.log(5))
        torch.testing.assert_close(found.largest_weight, w.max(0).values)
        torch.testing.assert_close(found.effective_samples, 1 / w.square().sum(0))
        torch.testing.assert_close(found.reconstruction, log_px_z.mean(0).detach())
        assert next(drawn, None) is None  # exactly so many


def test_a_budget_of_memory_is_kept():
    vae, x = discrete_vae(Gaussian(2)), binary_images(2)
    decoded = []
    vae.decoder.register_forward_hook(lambda m, i, output: decoded.append(len(output)))
    importance_weighted(vae, x, 50, memory=10.5 * bytes_to_decode(vae))
    assert decoded == [1, 1] + 10 * [10]  # the ones are to see what it allocates


def most_decoded(latent, images, budget, part, graph=False, **settings):
    """With the memory for so many."""
    vae, x, decoded = discrete_vae(latent).float(), binary_images(images).float(), []
    memory = (budget + 0.5) * bytes_to_decode(vae, graph)
    vae.decoder.register_forward_hook(lambda m, i, output: decoded.append(len(output)))
    evaluate(vae, [x], train=[x], parts=[part], memory=memory, samples=7, ais_steps=2, **settings)
    return max(decoded)


def test_no_part_decodes_more_than_the_memory_allows():
    five = GumbelSoftmax(num_samples=5)
    assert most_decoded(Categorical(2, 3), 60, 20, "split", estimator=five) == 20
    assert most_decoded(Gaussian(2), 60, 20, "samples") == 20
    assert most_decoded(Gaussian(2), 60, 20, "bound") == 20


def most_allocated(work):
    """By the profiler's account of what torch allocates and frees."""
    with profile(profile_memory=True) as seen:
        work()
    events = [e for e in seen.profiler.kineto_results.events() if e.name() == "[memory]"]
    events.sort(key=lambda event: event.start_ns())
    return max(itertools.accumulate(event.nbytes() for event in events))


NETWORKS = [MLP((64,)), Conv((8, 4), 16), ResNet((8, 4), features=16), ResNet((32, 48))]
NETWORKS += [Grid((8, 16)), Grid((16,), attention=True, norm="group")]


@pytest.mark.parametrize("likelihood", [likelihoods.Bernoulli, likelihoods.ContinuousBernoulli])
@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("graph", [False, True])
def test_what_is_decoded_at_once_takes_no_more_than_was_counted(network, graph, likelihood):
    vae = VAE((1, 16, 16), network, Gaussian(4), likelihood()).float().eval()
    memory = 20.5 * bytes_to_decode(vae, graph)
    count = images_at_once(vae, memory, graph)
    x = torch.zeros(count, 1, 16, 16)
    z = torch.zeros(count, *vae.latent.event_shape, requires_grad=graph)

    def work():
        with torch.set_grad_enabled(graph):
            log_px_z = vae.log_px_z(x, z)
            if graph:
                torch.autograd.grad(log_px_z.sum(), z)

    assert count == 20
    # What a grid's decoder makes of its weights is counted for each image: much, of so small ones.
    least = 0.1 if isinstance(network, Grid) else 0.3
    assert least < most_allocated(work) / memory < 1.35


@pytest.mark.parametrize("network", NETWORKS)
def test_what_is_encoded_at_once_takes_no_more_than_was_counted(network):
    vae = VAE((1, 16, 16), network, Gaussian(4), likelihoods.Bernoulli()).float().eval()
    count = encoded_at_once(vae, 4e6)
    x = torch.zeros(count, 1, 16, 16)
    with torch.no_grad():
        assert 0.3 < most_allocated(lambda: vae.latent.kl(vae.encode(x))) / 4e6 < 1.35


def test_encoding_in_parts_is_encoding():
    vae = VAE((1, 16, 16), Grid((8, 16)), Gaussian(4), likelihoods.Bernoulli()).eval()
    x, sizes = torch.rand(9, 1, 16, 16), []
    vae.encoder.register_forward_hook(lambda m, i, output: sizes.append(len(output)))
    memory = 4 * 4e6 / encoded_at_once(vae, 4e6)
    found = encode_in_parts(vae, x, memory)
    assert max(sizes) in (4, 3) and sum(sizes) == 9 + 2
    torch.testing.assert_close(found.mean, vae.encode(x).mean)


def test_annealing_counts_its_chains_and_the_graph():
    assert most_decoded(Gaussian(2), 4, 50, "ais", graph=True) == 3 * 16
    assert most_decoded(Gaussian(2), 2, 20, "ais") == 16  # those of one image, at least


def test_more_states_than_can_be_enumerated_are_sampled():
    vae, x = discrete_vae(Bernoulli(17)), binary_images(1)
    found = evaluate(vae, [x], parts=["bound"], samples=2**17)
    assert found.metrics["log_likelihood"].note == "importance-weighted, 131072 samples"


def test_weights_of_any_size():
    """e^-5000 is 0 in any precision."""
    total = evidence._Sum(torch.zeros(1))
    for log_w in (-5000.0, -4000.0, -4500.0):
        total.add(torch.tensor([[log_w]]))
    assert total.log().item() == -4000 and total.largest().item() == 1
    assert total.effective().item() == 1


def test_the_number_of_states():
    assert Bernoulli(5).num_states == 32 and Categorical(3, 4).num_states == 64
    assert Gaussian(2).num_states == Poisson(2).num_states == math.inf


def test_refusals():
    gaussian, bits = discrete_vae(Gaussian(2)), discrete_vae(Bernoulli(3))
    x = binary_images()
    with pytest.raises(ValueError, match="Gaussian has inf states, more than max_states=65536"):
        enumerated(gaussian, x)
    with pytest.raises(ValueError, match="8 states, more than max_states=4: use importance"):
        enumerated(bits, x, max_states=4)
    with pytest.raises(
        ValueError, match=r"Bernoulli has 10\^331 states, more than max_states=65536"
    ):
        enumerated(discrete_vae(Bernoulli(1100)), x)
    with pytest.raises(ValueError, match="needs latents that can be any numbers, got Bernoulli"):
        annealed(bits, x)
    with pytest.raises(ValueError, match="start must be posterior or prior, got 'q'"):
        annealed(gaussian, x, start="q")
    with pytest.raises(ValueError, match="num_samples must be a positive integer, got 0"):
        importance_weighted(gaussian, x, 0)
