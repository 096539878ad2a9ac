"""OVIS, and the two baselines of VIMCO, against the enumeration of all tuples."""

import math

import pytest
import torch
from oracles import BITS, CODES, bumpy, z_scores
from torch.distributions import Independent

from vae_lab.aggregates import credit, log_mean_exp, log_mean_exp_of_others, mean, substitute
from vae_lab.estimators import OVIS, Exact, ScoreFunction

ROWS = 100_000


def gradient(estimator, case=BITS, rows=ROWS, f=bumpy, seen=None):
    """Of the bound whose log-weights are f - log q."""
    q, leaves = case.q(rows)

    def log_w(z):
        values = case.flat(f)(z) - q.log_prob(z)
        if seen is not None:
            seen.update(z=z, log_w=values.detach())
        return values

    value = estimator(q, log_w, aggregate=log_mean_exp)
    return torch.autograd.grad(value.sum(), leaves["logits"])[0]


@pytest.mark.parametrize("case", [BITS, CODES], ids=lambda c: c.name)
@pytest.mark.parametrize("auxiliary", [0, 1, 3])
def test_unbiased_for_the_bound_whose_weights_contain_q(case, auxiliary):
    exact = gradient(Exact(3), case, 1)[0]
    samples = gradient(OVIS(3, auxiliary), case)
    assert z_scores(samples, exact).abs().max() < 4


def test_asymptotic_credit_is_of_second_order_in_the_weights():
    seen = {}
    samples = gradient(OVIS(4), rows=30, seen=seen)
    v = seen["log_w"].softmax(0)
    score = seen["z"] - torch.tensor(BITS.parameters["logits"], dtype=torch.float64).sigmoid()
    expected = ((-(-v).log1p() - v).unsqueeze(-1) * score).sum(0)
    torch.testing.assert_close(samples, expected)


def test_sampled_control_is_the_mean_over_the_auxiliary_samples():
    seen = {}
    samples = gradient(OVIS(3, 2), rows=30, seen=seen)
    log_w, auxiliary = seen["log_w"][:3], seen["log_w"][3:]
    p = torch.tensor(BITS.parameters["logits"], dtype=torch.float64).sigmoid()

    def d(log_w, s):
        return log_mean_exp(log_w) - log_w.softmax(0)[s]

    expected = torch.zeros_like(samples)
    for s in range(3):
        control = []
        for other in auxiliary:
            changed = log_w.clone()
            changed[s] = other
            control.append(d(changed, s))
        credit = d(log_w, s) - torch.stack(control).mean(0)
        expected = expected + credit.unsqueeze(-1) * (seen["z"][s] - p)
    torch.testing.assert_close(samples, expected)


def test_the_authors_gamma_would_be_biased():
    """Negative control: c_s with the term -v_s depends on z_s."""

    class Gamma(OVIS):
        def _control(self, log_w, auxiliary):
            size = len(log_w)
            return log_mean_exp_of_others(log_w) - log_w.softmax(0) + 0 * math.log(1 - 1 / size)

    exact = gradient(Exact(3), rows=1)[0]
    assert z_scores(gradient(Gamma(3)), exact).abs().max() > 10


def test_signal_to_noise_ratio_grows_with_the_samples():
    """And exceeds VIMCO's, which is what the control variate is for."""

    def ratio(estimator):
        samples = gradient(estimator, rows=10_000)
        return samples.mean(0).norm() / samples.var(0).sum().sqrt()

    few, many = ratio(OVIS(4)), ratio(OVIS(16))
    assert many > 1.2 * few
    assert many > ratio(ScoreFunction(16, "leave_one_out_arithmetic"))
    assert many > ratio(ScoreFunction(16))


def test_arithmetic_counterfactual_is_the_bound_without_the_sample():
    values = torch.randn(4, 6, dtype=torch.float64)
    others = log_mean_exp_of_others(values)
    for s in range(4):
        rest = torch.cat([values[:s], values[s + 1 :]])
        torch.testing.assert_close(others[s], log_mean_exp(rest))
    torch.testing.assert_close(substitute(values, others, log_mean_exp), others)


def test_credit_is_what_the_aggregate_loses():
    """Of the mean without a difference of means: digits remain beside a constant."""
    values, others = torch.randn(2, 5, 3, dtype=torch.float64)
    for aggregate in (mean, log_mean_exp):
        expected = aggregate(values) - substitute(values, others, aggregate)
        torch.testing.assert_close(credit(values, others, aggregate), expected)
    far = credit((values + 1e5).float(), (others + 1e5).float(), mean)
    torch.testing.assert_close(far.double(), (values - others) / 5, rtol=0, atol=4e-3)


def test_credit_of_the_mean_needs_no_pairs_of_samples():
    values = torch.zeros(200_000)  # of which all pairs would be 160 GB
    assert credit(values, values + 1, mean)[0] == pytest.approx(-1 / 200_000)


@pytest.mark.parametrize("baseline", ["leave_one_out", "leave_one_out_arithmetic"])
def test_both_forms_of_vimco_are_unbiased(baseline):
    exact = gradient(Exact(3), rows=1)[0]
    assert z_scores(gradient(ScoreFunction(3, baseline)), exact).abs().max() < 4


def test_one_sample_with_all_the_weight():
    f = lambda z: 200 * z.sum(-1)  # noqa: E731
    assert gradient(OVIS(4), rows=100, f=f).isfinite().all()
    assert gradient(OVIS(4, 2), rows=100, f=f).isfinite().all()


@pytest.mark.parametrize("batch", [(), (1,), (2, 3)])
def test_batch_shapes(batch):
    q, _ = CODES.q()
    q = q.expand(batch) if batch else q
    for estimator in (OVIS(2), OVIS(3, 2)):
        assert estimator(q, CODES.flat(bumpy), aggregate=log_mean_exp).shape == batch


@pytest.mark.parametrize("aggregate", [mean, lambda values: values.amax(0)])
def test_other_aggregates_are_refused(aggregate):
    assert not OVIS.single_sample
    q = Independent(torch.distributions.Normal(torch.zeros(2, 3), 1.0), 1)
    with pytest.raises(ValueError, match="multi-sample bound only: use aggregate=log_mean_exp"):
        OVIS()(q, lambda z: z.sum(-1), aggregate=aggregate)
