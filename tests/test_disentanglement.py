"""MIG, DCI and SAP of codes whose scores are known."""

import pytest
import torch
from torch import nn

from vae_lab import VAE
from vae_lab.evaluation import disentanglement, evaluate
from vae_lab.evaluation.disentanglement import dci, mig, sap
from vae_lab.latents import Categorical
from vae_lab.likelihoods import Bernoulli
from vae_lab.networks import MLP

SIZES = (3, 4, 5)


@pytest.fixture
def factors():
    """Every combination of three factors, 20 times, [1200, 3]."""
    return torch.cartesian_prod(*map(torch.arange, SIZES)).repeat(20, 1)


@pytest.fixture
def perfect(factors):
    """One code for each factor with a little noise, in another order, and a code of noise."""
    codes = factors[:, [2, 0, 1]] + 0.02 * torch.randn(len(factors), 3)
    return torch.cat([codes, torch.randn(len(factors), 1)], 1)


def rotated(codes):
    """Codes that are all mixed with each other."""
    standard = (codes - codes.mean(0)) / codes.std(0)
    return standard @ nn.init.orthogonal_(torch.empty(codes.shape[1], codes.shape[1]))


def scores(codes, factors):
    return torch.tensor([mig(codes, factors), *dci(codes, factors), sap(codes, factors)])


def test_a_code_for_every_factor_scores_one(perfect, factors):
    assert (scores(perfect, factors) > 0.95).all()


def test_mixed_codes_inform_and_score_low(perfect, factors):
    found = scores(rotated(perfect), factors)
    assert found[0] < 0.4 and found[4] < 0.6  # MIG, SAP
    assert found[1] < 0.5 and found[2] < 0.5  # disentanglement, completeness
    assert found[3] > 0.6  # informativeness


def test_noise_beside_a_code_leaves_it_disentangled(factors):
    """Codes that inform of one factor each, imperfectly, beside others that say nothing."""
    codes = torch.cat([factors + 0.7 * torch.randn(len(factors), 3), torch.randn(1200, 5)], 1)
    found = dci(codes, factors)
    assert found.informativeness < 0.8
    assert min(found.disentanglement, found.completeness) > 0.6


def test_noise_scores_nothing(factors):
    found = scores(torch.randn(len(factors), 4), factors)
    assert found[[0, 1, 2, 4]].max() < 0.05
    assert found[3] == pytest.approx(sum(1 / size for size in SIZES) / 3, abs=0.1)  # chance


def test_mig_of_a_discrete_perfect_code_is_exactly_one():
    sizes = (3, 16)
    factors = torch.cartesian_prod(*map(torch.arange, sizes))
    names = torch.randperm(16).float().exp()[factors[:, 1]]  # in no bins of equal width
    codes = torch.stack([names, 2 * (factors[:, 0] - 1.0).square() + factors[:, 0]], 1)
    assert mig(codes, factors) == pytest.approx(1, abs=1e-12)
    assert sap(factors.float(), factors) == pytest.approx(1, abs=1e-12)


def test_mig_of_two_equal_codes_is_nothing(factors):
    assert mig(torch.cat([factors, factors], 1).float(), factors) == pytest.approx(0, abs=1e-12)


def test_mig_of_a_noisy_bit():
    """A code that is wrong every fourth time informs of log 2 - H(1/4) nats."""
    factors = torch.tensor([0, 0, 0, 0, 1, 1, 1, 1])[:, None]
    code = torch.tensor([0.0, 0, 0, 9, 9, 9, 9, 0])[:, None]
    entropy = torch.special.entr(torch.tensor([0.25, 0.75])).sum() / torch.tensor(2.0).log()
    assert mig(code, factors) == pytest.approx(1 - entropy.item(), abs=1e-6)


def test_the_information_is_that_of_scikit_learn(perfect, factors):
    from sklearn.metrics import mutual_info_score

    code = disentanglement._discrete(perfect[:, 3], 20)
    assert code.max() == 19 and len(code.unique()) <= 20
    found = disentanglement._information(code, factors[:, 1])
    assert found.item() == pytest.approx(mutual_info_score(code, factors[:, 1]), abs=1e-12)


def test_categories_are_names(factors):
    """Of as many as there are, in any order, beside a category that says nothing."""
    other = torch.randint(0, 3, (len(factors), 1))
    codes = torch.cat([torch.randperm(5)[factors[:, 2:]], factors[:, :2], other], 1)
    assert (scores(codes, factors) > 0.99).all()
    renamed = torch.stack([torch.randperm(50)[code] for code in codes.T], 1)
    torch.testing.assert_close(scores(renamed, factors), scores(codes, factors))
    named = sap(codes, factors, categorical=range(3))
    assert named == pytest.approx(sum(1 - 1 / size for size in SIZES) / 3, abs=0.03)
    many = torch.arange(400) % 40
    assert mig(torch.randperm(40)[many][:, None], many[:, None]) == pytest.approx(1, abs=1e-12)


def test_sap_of_categories_by_hand():
    factor = torch.tensor([0, 0, 2, 2, 4, 4])[:, None]
    code = torch.tensor([7, 7, 3, 3, 3, 9])[:, None]  # its means are 0, 8/3 and 4
    explained = (2 * 4 + 3 * 4 / 9 + 4) / 16
    assert sap(code, factor) == pytest.approx(explained, abs=1e-12)
    assert sap(code, factor, categorical=[0]) == pytest.approx((1 + 1 + 1 / 2) / 3, abs=1e-12)


def one_hot_model(factors, categories):
    """A model with one nearly one-hot variable for every factor, and its images."""
    x = nn.functional.one_hot(factors, categories).float().flatten(1)
    shape = (1, 1, x.shape[1])
    vae = VAE(shape, MLP((4,)), Categorical(factors.shape[1], categories), Bernoulli())
    vae.encoder, vae.head = nn.Flatten(), nn.Linear(x.shape[1], x.shape[1])
    with torch.no_grad():
        vae.head.weight.copy_(10 * torch.eye(x.shape[1]))
    return vae, x.reshape(-1, *shape)


@pytest.mark.parametrize("categories", [2, 3, 5])
def test_a_category_for_every_factor_scores_one(categories):
    factors = torch.cartesian_prod(torch.arange(categories), torch.arange(categories))
    factors = factors.repeat(100, 1)
    vae, x = one_hot_model(factors, categories)
    found = evaluate(
        vae, [(x, torch.arange(len(x)))], parts=["latents"], factors=lambda y: factors[y]
    ).metrics
    assert found.keys() > {"mig", "sap"} and len(found) == 5
    assert min(metric.value for metric in found.values()) == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("images", [1, 60])
def test_too_few_images_and_factors_that_never_change_have_no_scores(images):
    factors = torch.tensor([[0, 1]]).expand(60, -1)
    vae, x = one_hot_model(factors, 2)
    found = evaluate(
        vae,
        [(x, torch.arange(60))],
        train=[(x, torch.arange(60))],
        parts=["bound", "split", "latents"],
        factors=lambda y: factors[y],
        images=images,
        samples=2,
    ).metrics
    assert "elbo" in found and not {"mig", "sap", "linear_probe"} & found.keys()


def test_dci_tells_disentangled_from_complete(factors):
    """One factor in two codes is disentangled and not complete; two in one code, the reverse."""
    two = factors[:, :2]
    split = torch.stack([two[:, 0], two[:, 1] % 2, two[:, 1] // 2], 1).float()
    shared = torch.stack([two[:, 0] * 10.0 + two[:, 1], torch.randn(len(two))], 1)
    assert dci(split, two).disentanglement > 0.99
    assert dci(split, two).completeness < 0.8
    assert dci(shared, two).disentanglement < 0.1
    assert dci(shared, two).completeness > 0.99
    assert dci(shared, two).informativeness == 1


def test_sap_is_a_difference_of_squared_correlations():
    factor = torch.tensor([0, 1, 2, 3])
    codes = torch.stack([factor * 2.0 - 1, torch.tensor([1.0, 0, 0, 0])], 1)
    expected = torch.corrcoef(torch.stack([codes[:, 1], factor.float()]))[0, 1] ** 2
    assert sap(codes, factor[:, None]) == pytest.approx(1 - expected.item(), abs=1e-6)


def test_sap_of_a_category_does_not_depend_on_its_numbers(perfect, factors):
    code = torch.tensor([0.0, 5, 1])[factors[:, :1]]
    assert sap(code, factors[:, :1]) < 0.1
    assert sap(code, factors[:, :1], categorical=[0]) == 1  # there is no second code
    noise = torch.zeros(len(code), 1)
    both = sap(torch.cat([code, noise], 1), factors[:, :1], categorical=[0])
    assert both == pytest.approx(1 - 1 / 3, abs=1e-6)


def test_what_never_changes_is_left_out(perfect, factors):
    """Exactly so: also a code that is always the same, and one code alone."""
    constant = torch.zeros(len(factors), 1)
    more_codes = torch.cat([constant, perfect], 1)
    more_factors = torch.cat([constant.long() + 3, factors], 1)
    for score in (mig, sap):
        expected = score(perfect, factors)
        assert score(more_codes, factors) == pytest.approx(expected, abs=1e-12)
        assert score(perfect, more_factors) == pytest.approx(expected, abs=1e-12)
    assert dci(perfect, more_factors) == dci(perfect, factors)
    for codes in (constant, more_codes[:, :2]):
        found = scores(codes, factors)
        assert found.isfinite().all() and found.min() >= 0 and found.max() <= 1
    assert scores(constant, factors)[[0, 1, 2, 4]].abs().max() == 0


def test_the_same_codes_have_the_same_scores(perfect, factors):
    before = torch.get_rng_state()
    first = scores(perfect, factors)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(scores(perfect, factors), first)


@pytest.mark.parametrize("score", [mig, dci, sap])
@pytest.mark.parametrize(
    ("codes", "factors", "message"),
    [
        (torch.zeros(4), torch.arange(4)[:, None], r"codes must be \[N, D\]"),
        (torch.zeros(4, 2), torch.arange(5)[:, None], "with as many rows"),
        (torch.zeros(4, 2), torch.zeros(4, 2), "whole numbers, got torch.float32"),
        (torch.zeros(4, 2), torch.ones(4, 2).long(), "at least one that changes"),
        (torch.full((4, 2), torch.nan), torch.arange(4)[:, None], "codes must be finite"),
    ],
)
def test_what_is_wrong_is_said(score, codes, factors, message):
    with pytest.raises(ValueError, match=message):
        score(codes, factors)
