"""Rows of a table, or a series of them: columns of different kinds, with values missing."""

import math
from collections.abc import Mapping, Sequence
from copy import copy
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..inputs import Shape
from .base import Likelihood
from .kinds import KINDS, Column, Kind, leave_out
from .units import observed, with_mask


class _Counts(NamedTuple):
    """Of a row: the total of its counts, and which of its columns were observed."""

    total: Tensor  # [*, 1]; at least 1
    seen: Tensor  # [*, C]


class Columns(Likelihood):
    r"""Values whose last axis has columns, each of a kind of its own: x [*, D].

    .. math:: \log p(x \mid z) = \sum_{j \text{ observed}} \log p_j(x_j \mid z)

    All is in the user's units, log p(x) too. What the units are is learned of the training data by
    :meth:`start` (:meth:`vae_lab.VAE.initialize`), and kept with the weights: the decoder gives
    standardised numbers, and the encoder sees such.

    =============================== ==================== ======================================
    kind                            values               of the decoder; learned for the column
    =============================== ==================== ======================================
    gaussian                        numbers              mean; sigma
    lognormal                       numbers above 0      mean of the logarithm; sigma
    student_t                       numbers, outliers    location; scale, degrees of freedom
    bernoulli                       0, 1                 logit
    categorical                     0 to K - 1           K logits
    ordinal                         0 to K - 1, in order location; K - 1 cuts
    poisson                         counts               log-rate
    negative_binomial               counts               log-mean; dispersion
    zero_inflated_poisson           counts               log-rate, logit of a further zero
    zero_inflated_negative_binomial counts               log-mean, logit; dispersion
    =============================== ==================== ======================================

    What is learned for a column is its own in all data, and has the learning rate
    ``model.likelihood_lr``.

    :meth:`mean` has the mean of a number or a count, which for imputation is the value with the
    least squared error, and the most probable of categories.

    Args:
        columns: a dict for each of the D: its name, its kind, and of categories their values, as in
            ``{"name": "size", "kind": "ordinal", "values": ["S", "M", "L"]}``. A category is kept
            as its place in `values`.
        missing: is NaN a value that was not observed. It is left out of log p(x), and the encoder
            sees 0 (for numbers the mean) and beside all values which of them were observed.
        size_factor: counts are shares of their row's total, which is given, as in sequencing:
            rates are the total times a softmax over the columns of counts. The total is that of
            the values that were observed; where none was, and in samples, it is the training
            data's mean.

    A person of 180 cm is as likely as the density at the mean, 0.399 / sigma for each cm, times the
    probability of brown eyes, 1 / 3:

    >>> import torch
    >>> eyes = {"name": "eyes", "kind": "categorical", "values": ["blue", "brown", "green"]}
    >>> likelihood = Columns([{"name": "height", "kind": "gaussian"}, eyes])
    >>> x = torch.tensor([[170.0, 0.0], [180.0, 1.0], [190.0, 2.0]])
    >>> params = likelihood.start(x)
    >>> params
    tensor([ 0.0000, -1.0986, -1.0986, -1.0986])
    >>> print(f"{likelihood.log_prob(params, x[1]).exp():.4f}")
    0.0163

    Source of mixed kinds and missing values: Nazabal, Olmos, Ghahramani & Valera, *Handling
    Incomplete Heterogeneous Data using VAEs*, Pattern Recognition 2020, arXiv:1807.03653; of the
    size factor: Lopez et al., *Deep Generative Modeling for Single-Cell Transcriptomics*, Nature
    Methods 2018
    """

    draws = True
    learns_units = True
    data_axes = 1  # a row, until it is bound to series
    by_kind: Tensor  # the places of the columns, kind after kind
    way_back: Tensor  # from there to the columns
    mean_total: Tensor

    def __init__(
        self,
        columns: Sequence[Column] | None,
        missing: bool = False,
        size_factor: bool = False,
    ) -> None:
        super().__init__()
        self.columns = _plain(columns)
        self.missing = missing
        self.size_factor = size_factor
        groups = _grouped(self.columns)
        self.kinds = nn.ModuleDict(
            {key: _kind([self.columns[i] for i in places]) for key, places in groups.items()}
        )
        by_kind = torch.tensor([place for places in groups.values() for place in places])
        self.register_buffer("by_kind", by_kind, persistent=False)
        self.register_buffer("way_back", by_kind.argsort(), persistent=False)
        self.discrete = all(kind.discrete for kind in self._each())
        if size_factor:
            if not any(kind.counts for kind in self._each()):
                raise ValueError("size_factor needs columns of counts, such as poisson")
            self.register_buffer("mean_total", torch.ones(()))
        self._counts: _Counts | None = None

    def parameter_shape(self, shape: Shape) -> Shape:
        """[*, P] for data [*, D]."""
        if shape[-1] != len(self.columns):
            raise ValueError(
                f"data with {len(self.columns)} columns must have a shape that ends in "
                f"{len(self.columns)}, got {list(shape)}"
            )
        return (*shape[:-1], sum(len(kind.names) * kind.width for kind in self._each()))

    def input_shape(self, shape: Shape) -> Shape:
        seen = sum(len(kind.names) * kind.encoded for kind in self._each())
        return (*shape[:-1], seen + self.missing * len(self.columns))

    def inputs(self, x: Tensor) -> Tensor:
        """Numbers standardised (of counts and log-normals their logarithm), categories one-hot."""
        parts = zip(self._each(), self._values(x), strict=True)
        inputs = torch.cat([kind.inputs(values).flatten(-2) for kind, values in parts], -1)
        return with_mask(inputs.nan_to_num(0), ~x.isnan(), -1) if self.missing else inputs

    @torch.no_grad()
    def start(self, x: Tensor) -> Tensor:
        """Learns units, and of each column what is best where all data are alike.

        Raises:
            ValueError: a column has no values, or of numbers always the same.
        """
        rows = x.flatten(0, -2).double()
        for column, empty in zip(self.columns, rows.isnan().all(0).tolist(), strict=True):
            if empty:
                raise ValueError(
                    f"column {column['name']!r} has no values: {leave_out(column['name'])}"
                )
        if self.size_factor:
            counts = self._counts_of(rows)
            self.mean_total.copy_(counts.total[counts.seen.any(-1)].mean())
        parts = zip(self._each(), self._values(rows), strict=True)
        params = torch.cat([kind.start(values).flatten() for kind, values in parts])
        return params.to(x.dtype).expand(self.parameter_shape(x.shape[1:]))

    def pixel_log_prob(self, params: Tensor, x: Tensor) -> Tensor:
        parameters = self._split(params, self._counts_of(x) if self.size_factor else None)
        x, seen = observed(x) if self.missing else (x, None)
        parts = zip(self._each(), parameters, self._values(x), strict=True)
        terms = self._joined([kind.log_prob(p, values) for kind, p, values in parts])
        return terms if seen is None else torch.where(seen, terms, 0)

    def expected(self, params: Tensor) -> Tensor:
        parts = zip(self._each(), self._split(params, self._counts), strict=True)
        return torch.cat([kind.expected(p).flatten(-2) for kind, p in parts], -1)

    def show(self, expected: Tensor) -> Tensor:
        parts = zip(self._each(), self._expectations(expected), strict=True)
        return self._joined([kind.show(e) for kind, e in parts])

    def by_column(self, expected: Tensor) -> list[Tensor]:
        columns = [column for e in self._expectations(expected) for column in e.unbind(-2)]
        return [columns[place] for place in self.way_back.tolist()]

    def schema(self, size: int) -> list[Column]:
        return self.columns

    def mean(self, params: Tensor) -> Tensor:
        """The mean of numbers and counts, and the most probable categories."""
        return self.show(self.expected(params))

    def sample(self, params: Tensor) -> Tensor:
        parts = zip(self._each(), self._split(params, self._counts), strict=True)
        return self._joined([kind.sample(p) for kind, p in parts])

    def given(self, x: Tensor) -> "Columns":
        """With a size factor, counts are shares of the totals of x."""
        if not self.size_factor:
            return self
        other = copy(self)
        other._counts = self._counts_of(x)
        return other

    def bias(self, mean: Tensor) -> Tensor:
        """There is none for a mean alone: the units are not known from it."""
        raise ValueError("columns learn their units of data: type vae.initialize(x)")

    def check(self, x: Tensor) -> None:
        """Refuses a value that its column cannot have, by the column's name and the row."""
        legal = self._joined(
            [kind.legal(values) for kind, values in zip(self._each(), self._values(x), strict=True)]
        )
        if (wrong := ~legal & ~(x.isnan() & self.missing)).any():
            row, *place = wrong.nonzero()[0].tolist()
            raise ValueError(self._complaint(row, place, x[row, *place].item()))

    def _complaint(self, row: int, place: list[int], value: float) -> str:
        *step, j = place
        column = self.columns[j]
        where = f"row {row}" + "".join(f", step {i}" for i in step)
        if math.isnan(value):
            return (
                f"column {column['name']!r} is missing (nan) in {where}: the model was made for "
                "data that is whole; fit one to data with missing values, or type "
                "likelihood.missing=true, or fill it in"
            )
        kind = KINDS[column["kind"]]
        needs = f"{column['kind']} column {column['name']!r} needs {kind.needs}"
        return f"{needs}, {where} has {value:g}: mend the data, or give the column another kind"

    def _each(self) -> list[Kind]:
        return list(self.kinds.values())  # type: ignore[arg-type]

    def _expectations(self, expected: Tensor) -> list[Tensor]:
        """What is expected, as [*, n, shown] of each kind."""
        kinds = self._each()
        parts = expected.split([len(kind.names) * kind.shown for kind in kinds], -1)
        return [e.unflatten(-1, (-1, k.shown)) for k, e in zip(kinds, parts, strict=True)]

    def _values(self, x: Tensor) -> Sequence[Tensor]:
        """[*, D] -> [*, n] of each kind."""
        return x[..., self.by_kind].split([len(kind.names) for kind in self._each()], -1)

    def _joined(self, parts: list[Tensor]) -> Tensor:
        """[*, n] of each kind -> [*, D]."""
        return torch.cat(parts, -1)[..., self.way_back]

    def _split(self, params: Tensor, counts: _Counts | None) -> list[Tensor]:
        """[*, P] -> [*, n, width] of each kind."""
        kinds = self._each()
        sizes = [len(kind.names) * kind.width for kind in kinds]
        parts = zip(kinds, params.split(sizes, -1), strict=True)
        found = [part.unflatten(-1, (-1, kind.width)) for kind, part in parts]
        return self._of_total(found, counts) if self.size_factor else found

    def _of_total(self, parts: list[Tensor], counts: _Counts | None) -> list[Tensor]:
        """The same, in which the rates are shares of a total."""
        log_rates = [p[..., 0] for kind, p in zip(self._each(), parts, strict=True) if kind.counts]
        logits = torch.cat(log_rates, -1)
        total, seen = self.mean_total, torch.ones_like(logits, dtype=torch.bool)
        if counts is not None:
            some = counts.seen.any(-1, keepdim=True)
            total, seen = torch.where(some, counts.total, total), counts.seen | ~some
        whole = torch.where(seen, logits, -math.inf).logsumexp(-1, keepdim=True)
        shares = (total.log() + logits - whole).split([r.shape[-1] for r in log_rates], -1)
        rates = iter(shares)
        return [
            _with_first(p, next(rates)) if kind.counts else p
            for kind, p in zip(self._each(), parts, strict=True)
        ]

    def _counts_of(self, x: Tensor) -> _Counts:
        parts = zip(self._each(), self._values(x), strict=True)
        values = torch.cat([values for kind, values in parts if kind.counts], -1)
        values, seen = observed(values)
        return _Counts(values.sum(-1, keepdim=True).clamp(min=1), seen)


def _plain(columns: Sequence[Column] | None) -> list[Column]:
    """The columns as a release has them."""
    if not isinstance(columns, Sequence) or not columns:
        raise ValueError(f"columns must be a list of the table's columns, got {columns!r}")
    for place, column in enumerate(columns):
        if not isinstance(column, Mapping) or {"name", "kind"} ^ column.keys() - {
            "values",
            "integer",
        }:
            raise ValueError(
                "a column must be a dict with a name, a kind and, of categories, values, column "
                f"{place} is {column!r}"
            )
    return [dict(column) for column in columns]


def _grouped(columns: Sequence[Column]) -> dict[str, list[int]]:
    """The places of the columns that are computed together, by their key."""
    groups: dict[str, list[int]] = {}
    names = set()
    for place, column in enumerate(columns):
        if column["kind"] not in KINDS:
            raise ValueError(
                f"unknown kind {column['kind']!r} of column {column['name']!r}; known: "
                f"{', '.join(KINDS)}"
            )
        if column["name"] in names:
            raise ValueError(f"columns must differ in name, two are named {column['name']!r}")
        names.add(column["name"])
        groups.setdefault(KINDS[column["kind"]].key(column), []).append(place)
    return groups


def _kind(columns: Sequence[Column]) -> Kind:
    return KINDS[columns[0]["kind"]](columns)


def _with_first(params: Tensor, first: Tensor) -> Tensor:
    """The parameters [*, n, width], of which the first is replaced."""
    rest = params[..., 1:].expand(*first.shape, -1)
    return torch.cat([first.unsqueeze(-1), rest], -1)
