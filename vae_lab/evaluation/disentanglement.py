r"""Do single codes stand for single factors? Three scores, for data whose factors are known.

All take codes [N, D] and factors [N, F], whole numbers, and lie between 0 and 1, where 1 is one
code for every factor. Codes are floats, such as the means of q(z|x), or whole numbers: the names of
categories, without an order. The same codes have the same scores: nothing is drawn from torch's
generators. A factor that never changes is left out; a code that never changes tells nothing.
:func:`dci` and :func:`sap` need scikit-learn, which `vae_lab[train]` has.
"""

from collections.abc import Collection
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..optional import needs

BINS = 20  # of a continuous code, for MIG
LEAF = 0.02  # of the rows, at least, in a leaf of DCI's trees


class DCI(NamedTuple):
    """The three scores of :func:`dci`."""

    disentanglement: float
    completeness: float
    informativeness: float


def mig(codes: Tensor, factors: Tensor, bins: int = BINS) -> float:
    r"""The mutual information gap, in [0, 1].

    .. math:: \frac{1}{F} \sum_f \frac{1}{H(v_f)} \big(I(z_{j(f)}; v_f)
              - \max_{j \ne j(f)} I(z_j; v_f)\big), \quad j(f) = \arg\max_j I(z_j; v_f)

    Entropies and informations are those of the observed frequencies. A float code with more than
    `bins` values is cut into that many bins of equal width, as Locatello et al. (2019) do. Few data
    raise all informations alike, by about (bins - 1)(values - 1) / 2N nats, and hardly their
    difference.

    Args:
        codes: shape [N, D]; floats, or names of categories as whole numbers.
        factors: shape [N, F].
        bins: of a continuous code.

    Source: Chen, Li, Grosse & Duvenaud, *Isolating Sources of Disentanglement in Variational
    Autoencoders*, 2018, arXiv:1802.04942
    """
    codes, columns = _checked(codes, factors)
    cut = [_discrete(code, bins) for code in codes.T]
    gaps = []
    for factor in map(_numbered, columns.values()):
        informations = torch.stack([_information(code, factor) for code in cut])
        gaps.append(_gap(informations) / _entropy(factor.bincount()))
    return torch.stack(gaps).mean().item()


def dci(codes: Tensor, factors: Tensor, trees: int = 20, test_size: float = 0.2) -> DCI:
    r"""Disentanglement, completeness and informativeness, each in [0, 1].

    From the importances R [D, F] of every code for predicting every factor, with
    :math:`P_{jf} = R_{jf} / \sum_g R_{jg}` and :math:`Q_{jf} = R_{jf} / \sum_i R_{if}`:

    .. math:: \text{disentanglement} = \sum_j \rho_j \big(1 - H_F(P_{j \cdot})\big), \quad
              \rho_j = \frac{\sum_f R_{jf}}{\sum_{if} R_{if}}

    .. math:: \text{completeness} = \frac{1}{F} \sum_f \big(1 - H_D(Q_{\cdot f})\big)

    where :math:`H_n` is the entropy to the base n; where there is one code or one factor only, it
    is 0. The predictors are random forests, one of the paper's two kinds; an importance is what a
    code's cuts take off the Gini impurity. Each cut is chosen among all codes, and a leaf has at
    least 2 % of the rows: finer cuts fit noise, with codes that say nothing. Of a code's categories
    each is cut off alone, and the importances are added; a rarer one than 2 % is not seen.
    Informativeness is the accuracy on rows that were not fitted, every factor taken as classes,
    where the paper has an error: higher is better, and chance depends on the factors.

    Args:
        codes: shape [N, D]; floats, or names of categories as whole numbers.
        factors: shape [N, F].
        trees: in a forest. 2000 rows of 10 codes take a second; time grows with N and D.
        test_size: fraction of the rows, chosen at random, for the accuracy.

    Source: Eastwood & Williams, *A Framework for the Quantitative Evaluation of Disentangled
    Representations*, 2018
    """
    with needs("train", __name__):
        from sklearn.ensemble import RandomForestClassifier
        from sklearn.model_selection import train_test_split

    codes, columns = _checked(codes, factors)
    train, test = train_test_split(range(len(codes)), test_size=test_size, random_state=0)
    inputs, owner = _columns(codes)
    importances, accuracies = [], []
    for factor in columns.values():
        forest = RandomForestClassifier(
            trees, max_features=None, min_samples_leaf=LEAF, random_state=0
        )
        forest.fit(inputs[train].numpy(), factor[train].numpy())
        importance = torch.from_numpy(forest.feature_importances_)
        importances.append(importance.new_zeros(codes.shape[1]).index_add(0, owner, importance))
        accuracies.append(float(forest.score(inputs[test].numpy(), factor[test].numpy())))
    r = torch.stack(importances, dim=1)  # [D, F]
    weights = r.sum(1) / r.sum().clamp_min(1e-12)
    return DCI(
        disentanglement=(weights * _concentration(r)).sum().item(),
        completeness=_concentration(r.T).mean().item(),
        informativeness=sum(accuracies) / len(accuracies),
    )


def sap(codes: Tensor, factors: Tensor, categorical: Collection[int] = ()) -> float:
    r"""The separated attribute predictability, in [0, 1].

    .. math:: \frac{1}{F} \sum_f \big(S_{j(f) f} - \max_{j \ne j(f)} S_{jf}\big),
              \quad j(f) = \arg\max_j S_{jf}

    S [D, F] says how well one code alone tells a factor: the square of their correlation, or, for
    a categorical factor, the balanced accuracy of thresholds on the code (chosen one after the
    other, by a tree with a leaf per category). Chance counts there: of K categories, a perfect
    code beats an empty one by 1 - 1/K only. A code of categories tells a factor by its mean in each
    of them (the share of its variance that they explain), or a categorical factor by its likeliest
    value in each, all values taken as equally frequent.

    Args:
        codes: shape [N, D]; floats, or names of categories as whole numbers.
        factors: shape [N, F].
        categorical: columns of `factors` whose numbers are names, without an order.

    Source: Kumar, Sattigeri & Balakrishnan, *Variational Inference of Disentangled Latent Concepts
    from Unlabeled Observations*, 2018, arXiv:1711.00848
    """
    codes, columns = _checked(codes, factors)
    gaps = []
    for f, factor in columns.items():
        by_order = _thresholds if f in categorical else _correlation
        by_name = _likeliest if f in categorical else _explained
        score = by_order if codes.is_floating_point() else by_name
        gaps.append(_gap(torch.stack([score(code, factor) for code in codes.T])))
    return torch.stack(gaps).mean().item()


def _checked(codes: Tensor, factors: Tensor) -> tuple[Tensor, dict[int, Tensor]]:
    """The codes, floats in double precision, and the columns of factors that change; on the CPU."""
    if codes.ndim != 2 or factors.ndim != 2 or len(codes) != len(factors):
        raise ValueError(
            "codes must be [N, D] and factors [N, F], with as many rows, "
            f"got {tuple(codes.shape)} and {tuple(factors.shape)}"
        )
    if factors.is_floating_point():
        raise ValueError(f"factors must be whole numbers, got {factors.dtype}")
    if not codes.isfinite().all():
        raise ValueError("codes must be finite")
    columns = {f: column for f, column in enumerate(factors.cpu().T) if (column != column[0]).any()}
    if not columns:
        raise ValueError("factors need at least one that changes from row to row")
    codes = codes.detach().cpu()
    return codes.double() if codes.is_floating_point() else codes, columns


def _numbered(column: Tensor) -> Tensor:
    """0, 1, ... for the smallest value, the next, ..."""
    return column.unique(return_inverse=True)[1]


def _discrete(code: Tensor, bins: int) -> Tensor:
    """A code [N] as whole numbers: names or few values as they are, else bins of equal width."""
    numbers = _numbered(code)
    if numbers.max() < bins or not code.is_floating_point():
        return numbers
    low, high = code.aminmax()
    return ((code - low) / (high - low) * bins).long().clamp_max(bins - 1)


def _columns(codes: Tensor) -> tuple[Tensor, Tensor]:
    """Columns for decision trees, [N, C], and the code that each belongs to, [C].

    Numbers are columns themselves; a discrete code has one for each category, 1 where it is there.
    """
    if codes.is_floating_point():
        return codes, torch.arange(codes.shape[1])
    parts = [F.one_hot(_numbered(code)) for code in codes.T]
    owner = torch.arange(len(parts)).repeat_interleave(torch.tensor([p.shape[1] for p in parts]))
    return torch.cat(parts, 1), owner


def _entropy(counts: Tensor) -> Tensor:
    """In nats, of a table of counts."""
    return torch.special.entr(counts.double() / counts.sum()).sum()


def _information(a: Tensor, b: Tensor) -> Tensor:
    """The mutual information of two columns of whole numbers, in nats."""
    size = int(b.max()) + 1
    table = (a * size + b).bincount(minlength=(int(a.max()) + 1) * size).view(-1, size)
    return _entropy(table.sum(1)) + _entropy(table.sum(0)) - _entropy(table)


def _gap(scores: Tensor) -> Tensor:
    """The best of the scores [D] less the second best; one score alone, less 0."""
    best = torch.cat([scores, scores.new_zeros(1)]).topk(2).values
    return best[0] - best[1]


def _concentration(r: Tensor) -> Tensor:
    """1 - the entropy of each row of r [A, B], to the base B; 0 for a row of zeros."""
    if r.shape[1] == 1:
        return (r[:, 0] > 0).to(r)
    total = r.sum(1, keepdim=True)
    p = r / total.clamp_min(1e-12)
    entropy = torch.special.entr(p).sum(1) / torch.tensor(r.shape[1]).log()
    return torch.where(total[:, 0] > 0, 1 - entropy, 0)


def _correlation(code: Tensor, factor: Tensor) -> Tensor:
    """The square of the correlation of two columns; 0 where the code does not change."""
    a, b = code - code.mean(), factor - factor.double().mean()
    return (a @ b).square() / ((a @ a) * (b @ b)).clamp_min(1e-300)


def _explained(code: Tensor, factor: Tensor) -> Tensor:
    """The share of the factor's variance that its means in the code's categories have."""
    names, values = F.one_hot(_numbered(code)).double(), factor.double()
    means = (values @ names) / names.sum(0)
    return (names @ means).var(correction=0) / values.var(correction=0)


def _likeliest(code: Tensor, factor: Tensor) -> Tensor:
    """The balanced accuracy of each category's likeliest value of the factor."""
    names, values = (F.one_hot(_numbered(x)).double() for x in (code, factor))
    return (names.T @ (values / values.sum(0))).max(1).values.sum() / values.shape[1]


def _thresholds(code: Tensor, factor: Tensor) -> Tensor:
    """The balanced accuracy of telling the categories by thresholds on the code."""
    with needs("train", __name__):
        from sklearn.tree import DecisionTreeClassifier

    x, values = code[:, None].numpy(), factor.unique()
    tree = DecisionTreeClassifier(
        max_leaf_nodes=len(values), class_weight="balanced", random_state=0
    )
    right = torch.from_numpy(tree.fit(x, factor.numpy()).predict(x)) == factor
    return torch.stack([right[factor == value].double().mean() for value in values]).mean()
