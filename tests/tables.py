"""Columns of every kind, and data for them."""

import torch

from vae_lab.likelihoods import Columns
from vae_lab.likelihoods.kinds import KINDS

COUNTS = [name for name, kind in KINDS.items() if kind.counts]
NUMBERS = ["gaussian", "lognormal", "student_t"]
N = 400  # rows


def column(kind, name="x"):
    values = (
        {"values": ["low", "middle", "high", "top"]} if kind in ("categorical", "ordinal") else {}
    )
    return {"name": name, "kind": kind, **values}


def of_kind(kind, count=1, **arguments):
    return Columns([column(kind, f"x{i}") for i in range(count)], **arguments)


def drawn(kind, rows=N, count=1):
    """Data of a kind, no two columns alike, [N, n]."""
    z = torch.randn(rows, 1) + torch.randn(rows, count) / 2
    if kind in NUMBERS:
        return (3 + z).exp() if kind == "lognormal" else 40 + 3 * z
    if kind == "bernoulli":
        return (z > torch.linspace(0.4, -0.4, count)).double()
    if kind in COUNTS:
        return torch.poisson((1 + z / 2).exp()) * (torch.rand(rows, count) < 0.7)
    return (z + 1.5).round().clamp(0, 3)


def started(kind, count=1, **arguments):
    """A likelihood that has met data, all of whose own parameters are random; the data; params."""
    likelihood, x = of_kind(kind, count, **arguments), drawn(kind, count=count)
    params = likelihood.start(x)
    with torch.no_grad():
        for own in likelihood.parameters():
            own += 0.3 * torch.randn_like(own)
    return likelihood, x, params


def everything():
    """A column of each kind, and of categories two more: [N, D]."""
    names = [*KINDS, "categorical", "gaussian"]
    columns = [column(kind, f"{kind}{i}") for i, kind in enumerate(names)]
    return columns, torch.cat([drawn(kind) for kind in names], 1)


def with_holes(x, share=0.3):
    return torch.where(torch.rand_like(x) < share, torch.nan, x)
