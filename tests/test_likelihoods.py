"""Likelihoods against torch.distributions, sums and integrals, and at the extremes of float32."""

import inspect
import itertools
import math

import pytest
import torch
import torch.distributions as D
import torch.nn.functional as F
from mpmath import mp  # torch brings it
from torch.autograd import forward_ad

from vae_lab.cross_entropy import bernoulli_log_prob
from vae_lab.likelihoods import (
    Bernoulli,
    ContinuousBernoulli,
    DiscretizedLogistic,
    DiscretizedLogisticMixture,
    Gaussian,
    Laplace,
)

LIKELIHOODS = [
    Bernoulli(),
    ContinuousBernoulli(),
    Gaussian(),
    Gaussian(0.3, learned=True),
    Laplace(),
    Laplace(0.2, learned=True),
    DiscretizedLogistic(0.2, learned=False),
    DiscretizedLogistic(),
    DiscretizedLogisticMixture(3),
]
likelihoods = pytest.mark.parametrize(
    "likelihood", LIKELIHOODS, ids=lambda case: type(case).__name__
)
LEVELS = torch.arange(256) / 255


def images(*shape):
    return torch.randint(256, shape) / 255


def pixels(values):
    """[N] -> N images of one grey pixel, [N, 1, 1, 1]."""
    return torch.as_tensor(values).reshape(-1, 1, 1, 1)


@pytest.fixture
def continuous():
    return ContinuousBernoulli()


@likelihoods
def test_prints_as_the_call_that_makes_it(likelihood):
    again = eval(repr(likelihood), {type(each).__name__: type(each) for each in LIKELIHOODS})
    assert repr(again) == repr(likelihood)
    assert all(again.state_dict()[name] == t for name, t in likelihood.state_dict().items())
    assert again.out_channels(3) == likelihood.out_channels(3)


@likelihoods
@pytest.mark.parametrize("channels", [1, 2, 3])
def test_shapes_and_broadcasting(likelihood, channels):
    x = images(4, channels, 5, 6)
    params_shape = likelihood.parameter_shape((channels, 5, 6))
    params = torch.randn(7, 4, *params_shape, requires_grad=True)
    log_px = likelihood.log_prob(params, x)
    assert log_px.shape == (7, 4)
    torch.testing.assert_close(log_px[2, 1:2], likelihood.log_prob(params[2, 1:2], x[1:2]))
    log_px.sum().backward()
    assert (params.grad.abs().sum((0, 1, 3, 4)) > 0).all()
    for image in (likelihood.mean(params), likelihood.sample(params.detach())):
        assert image.shape == (7, 4, channels, 5, 6)
    assert likelihood.bias(x.mean(0)).shape == params_shape
    assert likelihood.log_prob(params[:, :0], x[:0]).shape == (7, 0)


@likelihoods
def test_mean_is_an_image_and_samples_are_legal(likelihood):
    params = 3 * torch.randn(50, *likelihood.parameter_shape((3, 4, 4)))
    assert ((likelihood.mean(params) >= 0) & (likelihood.mean(params) <= 1)).all()
    if not isinstance(likelihood, Gaussian | Laplace):  # their noise leaves [0, 1]
        likelihood.check(likelihood.sample(params))


@likelihoods
def test_extreme_parameters_stay_finite(likelihood):
    channels, *_ = likelihood.parameter_shape((3, 2, 2))
    params = torch.tensor([-1e4, -100, -1e-4, 0, 1e-4, 100, 1e4]).reshape(-1, 1, 1, 1)
    params = params.repeat(1, channels, 2, 2).requires_grad_()
    for x in (torch.zeros(3, 2, 2), torch.ones(3, 2, 2), images(3, 2, 2)):
        log_px = likelihood.log_prob(params, x)
        (gradient,) = torch.autograd.grad(log_px.sum(), params)
        assert log_px.isfinite().all()
        assert gradient.isfinite().all()
    assert likelihood.mean(params).isfinite().all()
    assert likelihood.sample(params).isfinite().all()


@likelihoods
def test_gradients_match_finite_differences(likelihood, float64):
    likelihood = type(likelihood)(**arguments(likelihood)).double()
    params = torch.randn(2, *likelihood.parameter_shape((2, 1, 2)), requires_grad=True)
    x = images(2, 2, 1, 2)
    assert torch.autograd.gradcheck(lambda p: likelihood.log_prob(p, x), params)
    assert torch.autograd.gradgradcheck(lambda p: likelihood.log_prob(p, x), params)


def arguments(likelihood):
    names = inspect.signature(type(likelihood)).parameters
    return {name: getattr(likelihood, name) for name in names}


@likelihoods
def test_bias_reproduces_the_mean_image(likelihood):
    mean = torch.rand(3, 4, 5) * 0.9 + 0.05
    bias = likelihood.bias(mean)
    if isinstance(likelihood, DiscretizedLogisticMixture):  # starts broad: nearer to grey
        correlation = torch.corrcoef(torch.stack([likelihood.mean(bias).ravel(), mean.ravel()]))
        assert correlation[0, 1] > 0.99
    else:
        torch.testing.assert_close(likelihood.mean(bias), mean, atol=0.02, rtol=0)
    black_and_white = torch.tensor([0.0, 1.0]).reshape(1, 1, 2)
    assert likelihood.bias(black_and_white).isfinite().all()


def test_gaussian_bias_is_not_the_mean_itself():
    mean = images(1, 2, 2)
    bias = Gaussian().bias(mean)
    bias += 1
    assert not torch.equal(bias, mean)


@likelihoods
@pytest.mark.parametrize(
    ("value", "message"),
    [
        (255.0, r"needs values in \[0, 1\], the batch has 255: divide by 255"),
        (-1.0, r"the batch has -1: shift and scale"),
        (math.nan, r"the batch has nan at .0, 2, 2. of its datum 1: remove the broken data"),
    ],
)
def test_check_refuses_what_is_not_an_image(likelihood, value, message):
    x = torch.zeros(2, 1, 3, 3)
    likelihood.check(x)
    likelihood.check(x[:0])
    x[1, 0, 2, 2] = value
    with pytest.raises(ValueError, match=type(likelihood).__name__ + ".*" + message):
        likelihood.check(x)


@likelihoods
def test_mismatched_shapes_are_refused_not_broadcast(likelihood):
    with pytest.raises(ValueError, match=r"params must end in \(.*, 4, 4\) for data of shape"):
        likelihood.log_prob(
            torch.zeros(2, *likelihood.parameter_shape((1, 4, 4))), images(2, 3, 4, 4)
        )


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Gaussian(0), "sigma must be positive and finite, got 0"),
        (lambda: Gaussian(math.nan), "sigma must be positive and finite, got nan"),
        (lambda: Laplace(-1.0), "scale must be positive and finite, got -1"),
        (lambda: DiscretizedLogistic(math.inf), "scale must be positive and finite, got inf"),
        (lambda: DiscretizedLogisticMixture(0), "components must be at least 1, got 0"),
    ],
)
def test_constructor_refusals(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def test_bernoulli_matches_torch(float64):
    logits, x = 5 * torch.randn(6, 2, 3, 3), torch.rand(6, 2, 3, 3).round()
    expected = D.Bernoulli(logits=logits).log_prob(x).sum((1, 2, 3))
    torch.testing.assert_close(Bernoulli().log_prob(logits, x), expected)
    frequency = Bernoulli().sample(logits.expand(4000, *logits.shape)).mean(0)
    torch.testing.assert_close(frequency, logits.sigmoid(), atol=0.05, rtol=0)


def test_bernoulli_keeps_small_probabilities_in_float32():
    logits, x = pixels([100.0, -100.0, 100.0, -100.0]), pixels([1.0, 0.0, 0.0, 1.0])
    log_px = Bernoulli().log_prob(logits, x)
    assert log_px.tolist() == pytest.approx([0, 0, -100, -100], abs=1e-30)


def test_continuous_bernoulli_matches_torch(continuous, float64):
    logits = pixels([-9.0, -2.0, -0.7, 0.7, 3.0, 8.0])
    x = torch.rand(50, 6, 1, 1, 1)
    reference = D.ContinuousBernoulli(logits=logits)
    expected = reference.log_prob(x).sum((-3, -2, -1))
    torch.testing.assert_close(continuous.log_prob(logits.expand_as(x), x), expected)
    torch.testing.assert_close(continuous.mean(logits), reference.mean)


@pytest.mark.parametrize("size", [0, 1e-6, 0.01, 0.39, 0.41, 1, 20, 100])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-6), (torch.float64, 1e-9)])
def test_continuous_bernoulli_is_exact_from_0_to_100(continuous, size, dtype, tolerance):
    for sign, value in itertools.product((-1, 1), (0.0, 0.25, 1.0)):
        logits = torch.tensor(sign * size, dtype=dtype).reshape(1, 1, 1).requires_grad_()
        log_px = continuous.log_prob(logits, torch.full_like(logits, value))
        (slope,) = torch.autograd.grad(log_px, logits)
        expected, mean = continuous_oracle(logits.item(), value)
        assert log_px.item() == pytest.approx(expected, rel=tolerance, abs=tolerance)
        assert slope.item() == pytest.approx(value - mean, abs=tolerance)
        assert continuous.mean(logits).item() == pytest.approx(mean, abs=tolerance)


def continuous_oracle(logit, value):
    """log p(value) and the mean, in 60 digits."""
    with mp.workdps(60):
        l = mp.mpf(logit) or mp.mpf("1e-25")  # noqa: E741
        log_p = l * value - mp.log(mp.expm1(l) / l)
        return float(log_p), float(1 / -mp.expm1(-l) - 1 / l)


def test_torch_continuous_bernoulli_would_fail_at_100():
    reference = D.ContinuousBernoulli(logits=torch.tensor(100.0)).log_prob(torch.tensor(1.0))
    assert abs(reference.item() - math.log(100)) > 0.1


def test_continuous_bernoulli_integrates_to_one(continuous, float64):
    x = torch.linspace(0, 1, 20_001)
    for logit in (-40.0, -1.0, 0.0, 0.3, 15.0):
        density = continuous.log_prob(torch.full((20_001, 1, 1, 1), logit), pixels(x)).exp()
        assert torch.trapezoid(density, x).item() == pytest.approx(1, abs=1e-5)


def test_continuous_bernoulli_samples_have_its_moments(continuous):
    logits = pixels([-100.0, -3.0, 0.0, 1e-4, 2.0, 100.0])
    x = continuous.sample(logits.expand(20_000, *logits.shape))
    torch.testing.assert_close(x.mean(0), continuous.mean(logits), atol=0.01, rtol=0.03)
    variance = D.ContinuousBernoulli(logits=logits[1:5].double()).variance
    torch.testing.assert_close(x.double().var(0)[1:5], variance, atol=0.005, rtol=0)


@pytest.mark.parametrize("learned", [False, True])
def test_gaussian_matches_torch(learned, float64):
    mu, x = torch.randn(6, 2, 3, 3), torch.rand(6, 2, 3, 3)
    likelihood = Gaussian(0.2, learned).double()
    expected = D.Normal(mu, 0.2).log_prob(x).sum((1, 2, 3))
    torch.testing.assert_close(likelihood.log_prob(mu, x), expected, rtol=1e-6, atol=1e-6)
    noise = likelihood.sample(mu.expand(4000, *mu.shape)) - mu
    assert noise.std().item() == pytest.approx(0.2, rel=0.01)


@pytest.mark.parametrize("learned", [False, True])
def test_laplace_matches_torch(learned, float64):
    mu, x = torch.randn(6, 2, 3, 3), torch.rand(6, 2, 3, 3)
    likelihood = Laplace(0.2, learned).double()
    expected = D.Laplace(mu, 0.2).log_prob(x).sum((1, 2, 3))
    torch.testing.assert_close(likelihood.log_prob(mu, x), expected, rtol=1e-6, atol=1e-6)
    noise = likelihood.sample(mu.expand(4000, *mu.shape)) - mu
    assert noise.abs().mean().item() == pytest.approx(0.2, rel=0.01)
    assert noise.std().item() == pytest.approx(0.2 * 2**0.5, rel=0.02)


SCALES = [
    (Gaussian, "log_sigma", lambda error: error.square().mean().sqrt()),
    (Laplace, "log_scale", lambda error: error.abs().mean()),
]


@pytest.mark.parametrize("cls, name, optimum", SCALES)
def test_a_scale_is_learned_only_on_request(cls, name, optimum):
    assert list(cls(0.5).parameters()) == []
    assert not cls(0.5).state_dict()  # the constructor's argument is all there is to know
    learned = cls(0.5, learned=True)
    mu, x = torch.zeros(1, 1, 10, 10), torch.rand(1, 1, 10, 10) / 5
    optimizer = torch.optim.Adam(learned.parameters(), lr=0.05)
    for _ in range(200):
        optimizer.zero_grad()
        (-learned.log_prob(mu, x).mean()).backward()
        optimizer.step()
    assert getattr(learned, name).exp().item() == pytest.approx(optimum(x - mu).item(), rel=0.01)


@pytest.mark.parametrize("location", [-5.0, -0.1, 0.0, 0.003, 0.5, 1.0, 6.0])
@pytest.mark.parametrize("scale", [1e-4, 0.003, 0.1, 2.0])
def test_discretized_logistic_sums_to_one_and_matches_the_logistic(location, scale, float64):
    likelihood = DiscretizedLogistic(scale).double()
    masses = likelihood.log_prob(torch.full((1, 1, 1), location), pixels(LEVELS.double())).exp()
    edges = (torch.arange(255) + 0.5) / 255
    cdf = ((edges - location) / likelihood.log_scale.exp()).sigmoid()
    expected = torch.cat([torch.zeros(1), cdf, torch.ones(1)]).diff()
    torch.testing.assert_close(masses, expected, rtol=1e-6, atol=1e-12)
    torch.testing.assert_close(masses.sum(), torch.ones(()), rtol=1e-10, atol=0)


def test_discretized_logistic_is_the_mixture_of_one():
    mu, scale, x = torch.rand(6, 1, 3, 3), 0.07, images(6, 1, 3, 3)
    log_scale = torch.full_like(mu, 2 * scale).log()  # the mixture's range is [-1, 1]
    mixture = torch.cat([torch.zeros_like(mu), 2 * mu - 1, log_scale], 1)
    expected = DiscretizedLogisticMixture(1).log_prob(mixture, x)
    torch.testing.assert_close(DiscretizedLogistic(scale).log_prob(mu, x), expected)


def test_no_draw_of_a_laplace_is_infinite():
    """Of the 2^24 values of a uniform in float32 one is 0, and the inverse of F infinite there."""
    params, seed = torch.full((1, 1024, 1024), 0.5, dtype=torch.float32), 12
    assert (
        torch.rand(params.shape, generator=torch.manual_seed(seed), dtype=params.dtype) == 0
    ).any()
    torch.manual_seed(seed)
    error = Laplace(0.2).sample(params) - 0.5
    assert error.isfinite().all()
    assert error.mean().abs() < 2e-3 and abs(error.abs().mean() - 0.2) < 2e-3


def test_discretized_logistic_samples_have_its_masses():
    likelihood, mu = DiscretizedLogistic(0.02), torch.full((1, 1, 1), 0.99)
    p = likelihood.log_prob(mu, pixels(LEVELS)).exp()
    levels = (likelihood.sample(mu.expand(50_000, 1, 1, 1)) * 255).round().long().flatten()
    counts = levels.bincount(minlength=256)
    assert (counts / 50_000 - p).abs().max() < 4 * (p.max() / 50_000).sqrt()


def mixture_parts(components, channels, scale=1.0):
    """Random logits, m, log s and coefficients of one pixel, each [K, ?, 1, 1]."""
    pairs = channels * (channels - 1) // 2
    logits, m, log_s, a = (torch.randn(components, n, 1, 1) for n in (1, channels, channels, pairs))
    return logits, m, log_s * scale - 2, a


def mass(parts, x):
    """Probability of pixels x [N, C] under the mixture of `parts`, [N]."""
    params = torch.cat(parts, 1).flatten(0, 1)  # [C', 1, 1]
    return DiscretizedLogisticMixture(len(parts[0])).log_prob(params, x[..., None, None]).exp()


def without_last_channel(parts):
    """The marginal of all channels but the last: the later ones do not reach back."""
    logits, m, log_s, a = parts
    c = m.shape[1] - 1
    return logits, m[:, :c], log_s[:, :c], a[:, : c * (c - 1) // 2]


@pytest.mark.parametrize("components", [1, 4])
@pytest.mark.parametrize("channels", [1, 2, 3])
def test_mixture_sums_to_one(components, channels, float64):
    parts = mixture_parts(components, channels)
    earlier = images(5, channels - 1).double()
    x = torch.cat(
        [earlier[:, None].expand(-1, 256, -1), LEVELS.double().expand(5, 256)[..., None]], -1
    )
    total = mass(parts, x).sum(-1)
    # Summed over the last channel the joint mass is that of the channels before; of none it is 1.
    expected = mass(without_last_channel(parts), earlier) if channels > 1 else torch.ones(5)
    torch.testing.assert_close(total, expected, rtol=1e-10, atol=0)


@pytest.mark.parametrize("location", [-50, -1, 0.003, 1, 50])
def test_mixture_sums_to_one_at_extremes_of_float32(location):
    for log_s in (-1e4, -7, -5, 0, 6, 1e4):
        params = torch.tensor([0.0, location, log_s]).reshape(3, 1, 1)
        likelihood = DiscretizedLogisticMixture(1)
        total = likelihood.log_prob(params, pixels(LEVELS)).logsumexp(0).item()
        assert total == pytest.approx(0, abs=1e-4 * max(1, abs(location)))


def test_mixture_without_the_tails_would_not_sum_to_one(float64):
    logits, _, log_s, a = mixture_parts(1, 1)
    at_white = (logits, torch.ones_like(logits), log_s, a)
    assert mass(at_white, LEVELS.double()[1:-1, None]).sum() < 0.6


def test_mixture_matches_the_logistic_distribution(float64):
    logits, m, log_s, _ = parts = mixture_parts(4, 1)
    base = D.Uniform(torch.zeros(4), torch.ones(4))
    maps = [D.SigmoidTransform().inv, D.AffineTransform(m.flatten(), log_s.flatten().exp())]
    logistic = D.TransformedDistribution(base, maps)
    edges = (2 * torch.arange(1, 256) - 256) / 255.0
    cdf = torch.cat([torch.zeros(1, 4), logistic.cdf(edges[:, None]), torch.ones(1, 4)])
    expected = (cdf.diff(dim=0) * logits.flatten().softmax(0)).sum(-1)
    torch.testing.assert_close(mass(parts, LEVELS.double()[:, None]), expected)


def test_mixture_channels_depend_on_the_earlier_ones(float64):
    logits, m, log_s, a = mixture_parts(1, 3)
    log_s, a = (
        torch.full_like(log_s, -6),
        torch.tensor([0.5, -0.3, 0.8]).reshape(1, 3, 1, 1).atanh(),
    )
    m = torch.tensor([0.4, 0.1, -0.2]).reshape(1, 3, 1, 1)
    params = torch.cat([logits, m, log_s, a], 1).flatten(0, 1)
    green = 0.1 + 0.5 * 0.4
    expected = torch.tensor([0.4, green, -0.2 - 0.3 * 0.4 + 0.8 * green])
    likelihood = DiscretizedLogisticMixture(1)
    torch.testing.assert_close(likelihood.mean(params).flatten(), (expected + 1) / 2)
    sampled = likelihood.sample(params.expand(500, -1, -1, -1)).mean(0).flatten()
    torch.testing.assert_close(sampled, (expected + 1) / 2, atol=2e-3, rtol=0)


@pytest.mark.parametrize("scale", [0.5, 2.0])
def test_mixture_mean_and_samples_agree_with_the_mass(scale, float64):
    parts = mixture_parts(4, 1, scale)
    params, likelihood = torch.cat(parts, 1).flatten(0, 1), DiscretizedLogisticMixture(4)
    p = mass(parts, LEVELS.double()[:, None])
    assert likelihood.mean(params).item() == pytest.approx((p * LEVELS).sum().item(), abs=1e-3)
    draws = likelihood.sample(params.expand(50_000, -1, -1, -1)).flatten()
    counts = (draws * 255).round().long().bincount(minlength=256)
    assert (counts / 50_000 - p).abs().max() < 4 * (p.max() / 50_000).sqrt()


def test_mixture_has_the_published_number_of_channels():
    shapes = [DiscretizedLogisticMixture(10).parameter_shape((c, 4, 5)) for c in (1, 3)]
    assert shapes == [(30, 4, 5), (100, 4, 5)]


@pytest.mark.parametrize("cls", [DiscretizedLogistic, DiscretizedLogisticMixture])
def test_values_between_the_levels_are_refused(cls):
    likelihood = cls()
    likelihood.check(images(4, 3, 8, 8))
    with pytest.raises(ValueError, match="needs 8-bit values k / 255, the batch has 0.5: round"):
        likelihood.check(torch.full((1, 1, 2, 2), 0.5))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_cross_entropy_is_torchs(dtype):
    """Its value to rounding and its gradient, also where one of the two is all but certain."""
    size = {torch.float32: 200, torch.float64: 900}[dtype]
    edges = torch.tensor([0.0, -0.0, 1e-30, 20.0, -20.0, size, -size], dtype=dtype)
    logits = torch.cat([edges, 8 * torch.randn(500, dtype=dtype)]).repeat(3, 1)
    x = torch.tensor([0.0, 1.0, 0.3], dtype=dtype)[:, None].expand_as(logits)
    for tensor in (logits, x := x.clone()):
        tensor.requires_grad_()
    ours = bernoulli_log_prob(logits, x)
    torchs = -F.binary_cross_entropy_with_logits(logits, x, reduction="none")
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(ours, torchs, rtol=8 * eps, atol=16 * eps)
    weight = torch.randn_like(ours)
    for found, wanted in zip(
        torch.autograd.grad((weight * ours).sum(), (logits, x)),
        torch.autograd.grad((weight * torchs).sum(), (logits, x)),
        strict=True,
    ):
        torch.testing.assert_close(found, wanted, rtol=8 * eps, atol=16 * eps)


@pytest.mark.filterwarnings("ignore:.torch.jit.script:FutureWarning")  # torch's, in forward mode
def test_the_cross_entropy_has_derivatives_of_derivatives_and_of_each_datum():
    logits = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    x = torch.rand(3, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(bernoulli_log_prob, (logits, x))
    gradient = torch.func.grad(lambda logits, x: bernoulli_log_prob(logits, x).sum())
    each = torch.func.vmap(gradient, in_dims=(0, None))(logits, x[0])
    torch.testing.assert_close(each, x[0] - logits.sigmoid())
    with forward_ad.dual_level():  # without torch.func
        dual = forward_ad.make_dual(logits.detach(), torch.ones_like(logits))
        slope = forward_ad.unpack_dual(bernoulli_log_prob(dual, x)).tangent
    torch.testing.assert_close(slope, x - logits.sigmoid())


def test_the_cross_entropy_compiles():
    compiled = torch.compile(bernoulli_log_prob, backend="aot_eager", fullgraph=True)
    logits, x = torch.randn(5, requires_grad=True), torch.rand(5)
    (found,) = torch.autograd.grad(compiled(logits, x).sum(), logits)
    torch.testing.assert_close(found, x - logits.sigmoid().detach())


def test_the_cross_entropy_leaves_other_types_and_shapes_to_torch():
    logits, x = torch.linspace(-2, 2, 3), torch.tensor([0.0, 0.3, 1.0])
    with torch.autocast("cpu", torch.bfloat16):
        found = bernoulli_log_prob(logits.bfloat16(), x.bfloat16())
    assert found.dtype == torch.float32
    with pytest.raises(ValueError, match="size"):
        bernoulli_log_prob(logits, x[:1])
