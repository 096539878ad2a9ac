"""Classifiers of the codes of a trained model, which they take as they are.

Fitted on the training images' codes, scored on the test images'. Codes are floats [N, D], labels
whole numbers [N]. Each returns the accuracy, in [0, 1], and draws no random numbers.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from ..optional import needs

ROWS = 1 << 20  # distances that are in memory at once: more leave the cache


def linear_probe(train_z: Tensor, train_y: Tensor, test_z: Tensor, test_y: Tensor) -> float:
    """The test accuracy of a logistic regression on standardised codes, with scikit-learn's own
    L2 penalty (C = 1)."""
    with needs("train", __name__):
        from sklearn.linear_model import LogisticRegression
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler

    _check(train_z, train_y, test_z, test_y)
    if (train_y == train_y[0]).all():
        raise ValueError(f"train_y needs at least two classes, got only {train_y[0].item()}")
    probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    train, test = (z.detach().cpu().double().numpy() for z in (train_z, test_z))
    return float(probe.fit(train, train_y.cpu().numpy()).score(test, test_y.cpu().numpy()))


def nearest_neighbours(
    train_z: Tensor, train_y: Tensor, test_z: Tensor, test_y: Tensor, k: int = 10
) -> float:
    """The test accuracy of the vote of the k nearest training codes, by Euclidean distance.

    In double precision on the CPU, some of the test codes at a time. Of a draw, the smallest label.
    """
    _check(train_z, train_y, test_z, test_y)
    if not 1 <= k <= len(train_z):
        raise ValueError(f"k must be from 1 to the {len(train_z)} training codes, got {k}")
    train, test = (z.detach().cpu().double() for z in (train_z, test_z))
    classes, labels = train_y.cpu().unique(return_inverse=True)
    guesses = []
    for z in test.split(max(ROWS // len(train), 1)):
        near = labels[torch.cdist(z, train).topk(k, largest=False).indices]  # [rows, k]
        guesses.append(F.one_hot(near, len(classes)).sum(1).argmax(1))
    return (classes[torch.cat(guesses)] == test_y.cpu()).double().mean().item()


def _check(train_z: Tensor, train_y: Tensor, test_z: Tensor, test_y: Tensor) -> None:
    for name, z, y in (("train", train_z, train_y), ("test", test_z, test_y)):
        if z.ndim != 2 or y.shape != z.shape[:1] or len(z) == 0:
            raise ValueError(
                f"{name}_z must be [N, D] and {name}_y [N], N at least 1, "
                f"got {tuple(z.shape)} and {tuple(y.shape)}"
            )
        if (y < 0).any():
            raise ValueError(f"{name}_y must not be negative: -1 says that there is no label")
    if train_z.shape[1] != test_z.shape[1]:
        raise ValueError(
            f"train_z and test_z must be as wide, got {train_z.shape[1]} and {test_z.shape[1]}"
        )
