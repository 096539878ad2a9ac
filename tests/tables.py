"""Columns of every kind, and data for them."""

import torch
from tiny import randomize

from vae_lab import VAE
from vae_lab.likelihoods import Bernoulli, Columns
from vae_lab.likelihoods import Gaussian as Normal
from vae_lab.likelihoods.kinds import KINDS
from vae_lab.networks import MLP

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


SCHEMA = [
    {"name": "age", "kind": "gaussian"},
    {"name": "pay in $", "kind": "lognormal"},
    {"name": "town", "kind": "categorical", "values": ["Rome", "Paris", "Ulm, at the Danube"]},
    {"name": "kids", "kind": "poisson"},
    {"name": "sex", "kind": "bernoulli", "values": ["f", "m"]},
]


def mixed(*shape):
    """Data [*shape, 5] of SCHEMA that have to do with each other, with values missing."""
    z = torch.randn(*shape, 2)
    town = (z[..., 0] + 1).round().clamp(0, 2)
    age, pay, kids = 40 + 10 * z[..., 0], (5 + z.sum(-1)).exp(), torch.poisson(z[..., 1].exp())
    return with_holes(torch.stack([age, pay, town, kids, z[..., 1] > 0], -1), 0.1)


# Data that are no images, and their likelihoods.
PLOTTED = {
    "table": lambda: (mixed(60), Columns(SCHEMA, missing=True)),
    "every kind": lambda: (lambda c, x: (x.float(), Columns(c)))(*everything()),
    "vectors": lambda: (40 + 3 * torch.randn(60, 4), Normal(standardize=True)),
    "one number": lambda: (torch.rand(60, 1), Normal()),
    "bits": lambda: (torch.rand(60, 6).round(), Bernoulli()),
    "wide": lambda: (torch.randn(60, 40), of_kind("gaussian", 40)),
    "series": lambda: (mixed(60, 7), Columns(SCHEMA, missing=True)),
    "text": lambda: (torch.randint(26, (60, 30, 1)).float(), Columns([LETTER])),
    "two rows": lambda: (torch.tensor([[0.0, 1, 0], [2, 3, 1]]), Columns(SCHEMA[2:])),
}
LETTER = {"name": "letter", "kind": "categorical", "values": [*"abcdefghijklmnopqrstuvwxyz"]}


def plotted(kind, latent):
    """An untrained model that knows the units of its data, and the data."""
    x, likelihood = PLOTTED[kind]()
    vae = VAE(tuple(x.shape[1:]), MLP((8,), "tanh"), latent, likelihood)
    vae.initialize(x)
    for part in (vae.encoder, vae.head, vae.decoder):
        randomize(part)
    return vae.eval(), x
