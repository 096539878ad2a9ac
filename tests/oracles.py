"""Expectations and gradients known without any estimator, and the f that tells estimators apart."""

import itertools
import math
from dataclasses import dataclass

import torch
from torch.distributions import (
    Bernoulli,
    Beta,
    Dirichlet,
    Gamma,
    Independent,
    Normal,
    Poisson,
    VonMises,
    biject_to,
)

from vae_lab.distributions import OneHotCategorical, base

WEIGHTS = torch.tensor(
    [0.7, -1.1, 0.4, 1.3, -0.6, 0.9, -0.2, 0.5, 0.3, -0.8, 0.6, -0.4], dtype=torch.float64
)


def bumpy(z):
    """Not a polynomial, and with interactions, [*, n] -> [*]: simpler ones tell too little."""
    c = WEIGHTS[: z.shape[-1]].to(z)
    pairs = torch.outer(c, c.flip(0)).tril(-1)
    quadratic = torch.einsum("...i,ij,...j->...", z, pairs, z)
    return torch.tanh((z * c).sum(-1)) + 0.8 * quadratic + 2 * torch.sin(1.3 * z.sum(-1) + 0.4)


def linear(z):
    return (z * WEIGHTS[: z.shape[-1]].to(z)).sum(-1) + 0.3


def quadratic(z):
    c = WEIGHTS[: z.shape[-1]].to(z)
    return linear(z) + torch.einsum("...i,ij,...j->...", z, torch.outer(c, c.flip(0)) + 0.2, z)


def cubic(z):
    return quadratic(z) + 0.1 * (z**3 * WEIGHTS[: z.shape[-1]].to(z)).sum(-1)


@dataclass
class Case:
    """A family with parameters of which it is tested, one row a datum."""

    name: str
    family: type
    parameters: dict[str, list]
    event_dims: int

    def q(self, rows=None, dtype=torch.float64):
        """A distribution of batch shape [rows] (or []), and its leaf parameters."""
        leaves = {}
        for name, value in self.parameters.items():
            p = torch.tensor(value, dtype=dtype)
            p = p.expand(rows, *p.shape).clone() if rows is not None else p
            leaves[name] = p.requires_grad_()
        q = self.family(**leaves, validate_args=False)
        extra = self.event_dims - len(q.event_shape)
        return Independent(q, extra, validate_args=False) if extra else q, leaves

    def flat(self, f):
        """f of a flattened event as an f of z; of angles, f of their cosines and sines."""
        if self.family is VonMises:
            return lambda z: f(torch.cat([z.cos(), z.sin()], -1))
        return lambda z: f(z.flatten(-self.event_dims) if self.event_dims > 1 else z)

    def states(self):
        """Every z, [states, *E]."""
        shape = torch.tensor(self.parameters["logits"]).shape
        if self.family is Bernoulli:
            values, variables = torch.tensor([0.0, 1.0]), shape.numel()
        else:
            values, variables = torch.eye(shape[-1]), shape[:-1].numel()
        states = itertools.product(values.double(), repeat=variables)
        return torch.stack([torch.stack(state).reshape(shape) for state in states])

    def exact(self, f):
        """E_q[f] by enumeration or quadrature, differentiable; and the leaves."""
        q, leaves = self.q()
        if self.family in (Bernoulli, OneHotCategorical):
            z = self.states()
            return (q.log_prob(z).exp() * self.flat(f)(z)).sum(), leaves
        if self.family is Normal:
            return normal_quadrature(q, self.flat(f)), leaves
        if self.family is Poisson:
            return count_sum(q, self.flat(f)), leaves
        if self.family is VonMises:
            return circle_sum(q, self.flat(f)), leaves
        return bijected_quadrature(q, self.flat(f)), leaves

    def exact_gradient(self, f):
        value, leaves = self.exact(f)
        return value.item(), torch.autograd.grad(value, list(leaves.values()))


def normal_quadrature(q, f, points=60):
    import numpy

    nodes, weights = numpy.polynomial.hermite_e.hermegauss(points)
    nodes, weights = torch.tensor(nodes), torch.tensor(weights) / math.sqrt(2 * math.pi)
    q = base(q)
    variables = q.loc.numel()
    points = torch.cartesian_prod(*[nodes] * variables).reshape(-1, *q.loc.shape)
    weight = torch.cartesian_prod(*[weights] * variables).prod(-1)
    return (weight * f(q.loc + q.scale * points)).sum()


def count_sum(q, f, largest=60):
    counts = torch.arange(largest + 1, dtype=torch.float64)
    z = torch.cartesian_prod(*[counts] * q.event_shape.numel()).reshape(-1, *q.event_shape)
    return (q.log_prob(z).exp() * f(z)).sum()


def circle_sum(q, f, points=100):
    """The trapezoidal rule, which converges exponentially for a periodic function."""
    line = torch.arange(points, dtype=torch.float64) * (2 * math.pi / points) - math.pi
    z = torch.cartesian_prod(*[line] * q.event_shape.numel())
    return (q.log_prob(z).exp() * f(z)).mean() * (2 * math.pi) ** q.event_shape.numel()


def bijected_quadrature(q, f, width=40.0, step=0.2):
    """The trapezoidal rule on the real line, which errs by exp(-1 / step) here."""
    to_support = biject_to(base(q).support)
    line = torch.arange(-width, width, step, dtype=torch.float64)
    shape = to_support.inverse_shape(q.event_shape)
    x = torch.cartesian_prod(*[line] * shape.numel()).reshape(-1, *shape)
    z = to_support(x)
    z, x = z[q.log_prob(z).isfinite()], x[q.log_prob(z).isfinite()]
    jacobian = to_support.log_abs_det_jacobian(x, z).reshape(len(z), -1).sum(-1)
    return (q.log_prob(z) + jacobian).exp().mul(f(z)).sum() * step ** shape.numel()


BITS = Case("bernoulli", Bernoulli, {"logits": [0.4, -1.2, 0.8]}, 1)
CODES = Case("categorical", OneHotCategorical, {"logits": [[0.5, -0.3, 0.1], [-1.0, 0.2, 0.7]]}, 2)
NORMAL = Case("normal", Normal, {"loc": [0.3, -0.8], "scale": [0.7, 1.2]}, 1)
GAMMA = Case("gamma", Gamma, {"concentration": [1.7, 3.2], "rate": [1.4, 2.5]}, 1)
BETA = Case("beta", Beta, {"concentration1": [1.6, 2.8], "concentration0": [2.3, 1.2]}, 1)
DIRICHLET = Case("dirichlet", Dirichlet, {"concentration": [1.5, 2.4, 3.1]}, 1)
COUNTS = Case("poisson", Poisson, {"rate": [0.5, 0.3]}, 1)
ANGLES = Case("von_mises", VonMises, {"loc": [0.4, -2.9], "concentration": [1.3, 4.0]}, 1)
PLACES = {  # of 2 x 2, and of 2 x 1
    "bits": [[[0.4], [-1.2]], [[0.8], [-0.3]]],
    "codes": [[[[0.5, -0.3, 0.1]], [[-1.0, 0.2, 0.7]]], [[[0.0, 0.9, -0.4]], [[0.3, -0.6, 0.2]]]],
    "loc": [[[0.3]], [[-0.8]]],
    "scale": [[[0.7]], [[1.2]]],
    "rate": [[[0.5]], [[0.3]]],
}
GRIDS = [
    Case("bits_of_places", Bernoulli, {"logits": PLACES["bits"]}, 3),
    Case("codes_of_places", OneHotCategorical, {"logits": PLACES["codes"]}, 4),
    Case("normal_of_places", Normal, {n: PLACES[n] for n in ("loc", "scale")}, 3),
    Case("poisson_of_places", Poisson, {"rate": PLACES["rate"]}, 3),
]
CASES = [BITS, CODES, NORMAL, GAMMA, BETA, DIRICHLET, COUNTS, ANGLES, *GRIDS]


def features(rows):
    """What a datum's q was computed from, as a learned baseline sees it."""
    return torch.randn(rows, 3, dtype=torch.float64)


def gradient_samples(estimator, case, f, rows, dtype=torch.float64, **kwargs):
    """The estimator's value [rows] and gradient samples {parameter: [rows, *]}, in one call."""
    q, leaves = case.q(rows, dtype)
    value = estimator(q, case.flat(f), **kwargs)
    value.sum().backward()
    return value.detach(), {name: leaf.grad for name, leaf in leaves.items()}


def z_scores(samples, exact):
    """(mean - exact) in standard errors, for each parameter."""
    error = samples.std(0) / math.sqrt(len(samples))
    return (samples.mean(0) - exact) / error.clamp_min(1e-12)
