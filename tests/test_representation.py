"""The linear probe and the nearest neighbours of codes."""

import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier

from vae_lab.evaluation import representation
from vae_lab.evaluation.representation import linear_probe, nearest_neighbours


def clouds(distance, count=300, classes=3):
    """Codes around the corners of a simplex, and a code on quite another scale."""
    y = torch.arange(count) % classes
    z = distance * torch.eye(classes)[y] + torch.randn(count, classes)
    return torch.cat([z, 1000 + 100 * torch.randn(count, 1)], 1), y


def ring(count=400):
    """A disc in a ring: no line parts them."""
    y = torch.arange(count) % 2
    angle = torch.rand(count) * 2 * torch.pi
    return (1 + 3 * y[:, None]) * torch.stack([angle.cos(), angle.sin()], 1), y


def test_a_probe_finds_what_a_line_parts():
    assert linear_probe(*clouds(8), *clouds(8)) > 0.98
    assert linear_probe(*clouds(0), *clouds(0)) == pytest.approx(1 / 3, abs=0.1)
    assert linear_probe(*ring(), *ring()) < 0.65


def test_the_units_of_a_code_do_not_matter_to_the_probe():
    (train, y), (test, labels) = clouds(3), clouds(3)
    found = linear_probe(train, y, test, labels)
    assert linear_probe(train / 1e4, y, test / 1e4, labels) == pytest.approx(found, abs=1e-9)


def test_the_probe_is_near_the_best_possible():
    """Two Gaussians at a distance of 2 are told apart with probability Phi(1)."""
    (train, y), (test, labels) = clouds(2**0.5, 4000, 2), clouds(2**0.5, 4000, 2)
    best = torch.special.ndtr(torch.tensor(1.0)).item()
    assert linear_probe(train, y, test, labels) == pytest.approx(best, abs=0.02)


def test_neighbours_find_what_no_line_parts():
    assert nearest_neighbours(*ring(), *ring()) == 1


def test_neighbours_are_those_of_scikit_learn(monkeypatch):
    (train, y), (test, labels) = clouds(2), clouds(2, 200)
    for k in (1, 10):
        model = KNeighborsClassifier(k).fit(train.double().numpy(), y.numpy())
        expected = model.score(test.double().numpy(), labels.numpy())
        found = nearest_neighbours(train, y, test, labels, k)
        assert found == pytest.approx(expected, abs=1e-9)
        monkeypatch.setattr(representation, "ROWS", 7 * 300)  # the test codes in parts of seven
        assert nearest_neighbours(train, y, test, labels, k) == found


@pytest.mark.parametrize("score", [linear_probe, nearest_neighbours])
def test_the_score_is_that_of_the_test_codes(score):
    """A quarter of their labels is wrong, and none of the training codes'."""
    (train, y), (test, labels) = ((z[:, :3], y) for z, y in (clouds(20), clouds(20)))
    labels[::4] = (labels[::4] + 1) % 3
    assert score(train, y, test, labels) == 0.75 and score(train, y, train, y) == 1


def test_labels_need_not_begin_at_zero():
    (train, y), (test, labels) = clouds(8), clouds(8)
    for score in (linear_probe, nearest_neighbours):
        assert score(train[:, :3], 10 * y + 5, test[:, :3], 10 * labels + 5) > 0.98


def test_constant_codes_are_a_guess():
    y = torch.tensor([0, 0, 0, 1])
    z = torch.ones(4, 2)
    assert linear_probe(z, y, z, y) == 0.75
    assert nearest_neighbours(z, y, z, y, k=4) == 0.75


Z, Y = torch.zeros(4, 2), torch.tensor([0, 1, 0, 1])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((Z, Y, Z, -torch.ones_like(Y)), "test_y must not be negative: -1 says"),
        ((Z, Y, Z[:, :1], Y), "as wide, got 2 and 1"),
        ((Z, Y[:3], Z, Y), r"train_z must be \[N, D\] and train_y \[N\]"),
        ((Z, Y, Z[:0], Y[:0]), "N at least 1"),
    ],
)
@pytest.mark.parametrize("score", [linear_probe, nearest_neighbours])
def test_what_is_wrong_is_said(score, arguments, message):
    with pytest.raises(ValueError, match=message):
        score(*arguments)


def test_what_one_of_them_needs():
    with pytest.raises(ValueError, match="at least two classes, got only 1"):
        linear_probe(Z, torch.ones_like(Y), Z, Y)
    with pytest.raises(ValueError, match="k must be from 1 to the 4 training codes, got 10"):
        nearest_neighbours(Z, Y, Z, Y)
