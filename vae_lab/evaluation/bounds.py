"""The ELBO and log p(x) of an evaluation: their bounds, and other estimates of them."""

import math

import torch
from torch import Tensor

from ..likelihoods.eight_bits import levels
from ..vae import VAE
from .diagnosis import has_grey_pixels
from .evidence import MAX_STATES, Weighted, annealed, enumerated, importance_weighted
from .measurement import Measurement

FEW_SAMPLES = 16  # for an ELBO alone
AIS_CHAINS, AIS_BATCH = 16, 50
GRID_IMAGES = 250  # of a grid, on which each image is measured by thousands of variables


def bound(m: Measurement, samples: int) -> None:
    """The ELBO and log p(x): by importance weighting, or exact where z has no more states."""
    vae, states = m.vae, m.vae.latent.num_states
    exact = states <= min(samples, MAX_STATES)

    def terms(vae: VAE, x: Tensor) -> tuple[Tensor, ...]:
        found = importance_weighted(vae, x, FEW_SAMPLES if exact else samples, memory=m.memory)
        elbo, reconstruction, kl = _elbo(vae, x, found)
        drawn = vae.with_drawn_labels(len(x))
        other = drawn.log_px_z(x, drawn.draw(len(x)))
        log_px = enumerated(vae, x, memory=m.memory) if exact else found.bound
        return (
            *(log_px, elbo, reconstruction, kl),
            *(reconstruction - other, found.effective_samples, found.largest_weight),
        )

    names = ("log_likelihood", "elbo", "reconstruction", "kl", "reconstruction_gain")
    m.measure("bound", m.known, m.x, terms, (*names, "effective_samples", "largest_weight"))
    grey = has_grey_pixels(vae.likelihood, m.x)
    if vae.likelihood.binary:
        m.numbers["grey"] = float(grey)
    how = f"exact, {states:.0f} states" if exact else f"importance-weighted, {samples} samples"
    m.mean("log_likelihood", "nats", how + "; no likelihood of grey pixels" * grey)
    m.mean("elbo", "nats")
    m.mean("reconstruction", "nats", "E_q log p(x|z)")
    add_kl(m)
    m.mean("reconstruction_gain", "nats", "over the reconstruction from a z of the prior")
    if vae.likelihood.discrete and not grey:
        scale = -1 / (math.log(2) * math.prod(vae.shape))
        m.each["bits_per_dimension"] = scale * m.each["log_likelihood"]
        m.mean("bits_per_dimension", "bits", how)
    if not exact:
        m.numbers["samples"] = samples
        m.each["dominated"] = (m.each["largest_weight"] > 0.5).double()
        m.mean("effective_samples", "", f"of {samples} importance weights")
        m.mean("dominated", "", "share of the images where one weight is more than half")


def _elbo(vae: VAE, x: Tensor, found: Weighted) -> tuple[Tensor, Tensor, Tensor]:
    """The ELBO, the reconstruction and the KL, [B] each."""
    if vae.infers_labels:
        bound = vae.elbo(x, FEW_SAMPLES, check=False)
        return bound.elbo, bound.reconstruction, bound.reconstruction - bound.elbo
    kl = vae.kl(vae.encode(x)).sum(-1)
    return found.reconstruction - kl, found.reconstruction, kl


def add_kl(m: Measurement) -> None:
    sampled = "" if m.vae.prior is None else ", sampled"
    m.mean("kl", "nats", f"KL(q(z|x) || p(z)){sampled}")


def are_bytes(x: Tensor) -> bool:
    """Whether all values in [0, 1] are k / 255, and not only 0 and 1."""
    level = x * 255
    return bool((levels(x) - level).abs().max() < 1e-2) and bool(((x != 0) & (x != 1)).any())


def dequantized(m: Measurement) -> None:
    r"""Bits for each byte, at most, by a density: that of bytes k with uniform noise u.

    .. math:: -\log_2 \int_0^1 p\Big(\frac{k + u}{256}\Big) \, \frac{du}{256^D}
              \le 8 D - \mathbb{E}_u \log_2 p\Big(\frac{k + u}{256}\Big)

    The integral is a mass of the bytes, so this can be compared with `bits_per_dimension`. The
    density at the bytes themselves can not: it has no upper bound.

    Source: Theis, van den Oord & Bethge, *A note on the evaluation of generative models*, ICLR
    2016, arXiv:1511.01844, section 3.1
    """
    size = math.prod(m.vae.shape)

    def terms(vae: VAE, x: Tensor) -> tuple[Tensor]:
        q, noisy = vae.encode(x), (levels(x) + torch.rand_like(x)) / 256
        elbo = vae.log_px_z(noisy, q.sample()) - vae.kl(q).sum(-1)
        return (8 - elbo / (math.log(2) * size),)

    m.measure("dequantized", m.settled, m.x, terms, ("dequantized_bits_per_dimension",))
    note = "at most, by the ELBO of bytes with uniform noise; not the density at the bytes"
    m.mean("dequantized_bits_per_dimension", "bits", note)


def train_gap(m: Measurement, x: Tensor, y: Tensor) -> None:
    """The ELBO of training images."""
    samples = FEW_SAMPLES
    if m.vae.latent.num_places > 1:  # many variables are sampled for each image
        x, y, samples = x[:GRID_IMAGES], y[:GRID_IMAGES], 1

    def terms(vae: VAE, x: Tensor) -> tuple[Tensor]:
        return (_elbo(vae, x, importance_weighted(vae, x, samples, memory=m.memory))[0],)

    m.measure("train", m.vae.given(m.vae.own_y(y)), x, terms, ("train_elbo",))
    m.mean("train_elbo", "nats", f"{len(x)} training images")
    errors = (m.metrics[name].standard_error or 0.0 for name in ("elbo", "train_elbo"))
    m.numbers["train_elbo_error"] = math.hypot(*errors)


def annealing(m: Measurement, images: int, steps: int) -> None:
    """log p(x) of some images once more, and how much more that is than their bound."""
    x = m.x[:images]

    def terms(vae: VAE, x: Tensor) -> tuple[Tensor, ...]:
        found = annealed(vae, x, AIS_CHAINS, steps)
        return found.estimate, found.acceptance

    batch = m.batch(AIS_BATCH, AIS_CHAINS, graph=True)
    m.measure("ais", m.known, x, terms, ("ais_log_likelihood", "acceptance"), batch)
    accepted = m.each["acceptance"].mean().item()
    how = f"annealed importance sampling, {AIS_CHAINS} chains, {steps} steps, {accepted:.0%}"
    m.mean("ais_log_likelihood", "nats", f"{len(x)} images, {how} accepted")
    if "log_likelihood" in m.each:
        m.each["ais_gain"] = m.each["ais_log_likelihood"] - m.each["log_likelihood"][: len(x)]
        m.mean("ais_gain", "nats", f"over log_likelihood of the same {len(x)} images")
