"""The parts of an evaluation, each of which adds its metrics to a :class:`Measurement`."""

import math
from collections.abc import Callable, Collection, Sequence
from operator import itemgetter

import torch
from torch import Tensor
from torch.distributions import Distribution

from ..distributions import mapped
from ..estimators import Estimator
from ..latents.base import ACTIVE
from ..likelihoods.eight_bits import levels
from ..memory import encode_in_parts, posteriors_at_once
from ..objectives import ELBO
from ..vae import VAE
from .decomposition import (
    POINTS,
    Decomposition,
    activity,
    aggregate,
    code_use,
    decompose,
    evenly,
    prior_gap,
)
from .diagnosis import has_grey_pixels
from .distance import REACH, FeatureDistance, structural_similarity
from .evidence import MAX_STATES, Weighted, annealed, enumerated, importance_weighted
from .features import Features
from .measurement import BATCH, Measurement
from .mixture_gap import COMPONENTS, mixture_gap

VARYING = 0.01  # variance of the posteriors' means above which a variable varies
FEW_SAMPLES = 16  # for an ELBO alone
KL_REPEATS = 4  # of a KL that is sampled, for its error
AIS_CHAINS, AIS_BATCH = 16, 50
QUALITY_IMAGES = 10_000
SHOWN = 10  # samples beside their neighbours
FACTOR_CODES = 5000
NEIGHBOURS = 10
# Of a grid, whose thousands of variables tell any two images apart: more would tell no more.
GRID_IMAGES, GRID_POINTS = 250, 1000

OF_RECONSTRUCTIONS = {
    "mse": ("", "of the mean image at the most probable z, values in [0, 1]"),
    "psnr": ("dB", "-10 log10 of that, the mean over the images"),
    "feature_distance": ("", "of the same, in the layers of the shipped network; 0 to 2"),
    "ssim": ("", "structural similarity, 1 for equal images"),
}

Labelled = tuple[Tensor, Tensor]  # images [N, C, H, W] and labels [N]


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
    _add_kl(m)
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


def reconstructions(m: Measurement) -> None:
    """How far the mean images at the most probable z are from the images."""
    errors: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"mse": _squared_error}
    if not m.vae.likelihood.binary:  # whose means are grey, and the images are not
        errors["psnr"] = lambda x, mean: -10 * _squared_error(x, mean).log10()
        errors["feature_distance"] = FeatureDistance().to(m.device, m.vae.dtype)
        if min(m.vae.shape[1:]) > REACH:
            errors["ssim"] = structural_similarity

    def terms(vae: VAE, x: Tensor) -> tuple[Tensor, ...]:
        mean = vae.likelihood.mean(vae.decode(vae.latent.mode(vae.encode(x))))
        return tuple(error(x.to(mean.dtype), mean) for error in errors.values())

    m.measure("reconstructions", m.settled, m.x, terms, tuple(errors))
    for name in errors:
        m.mean(name, *OF_RECONSTRUCTIONS[name])


def _squared_error(x: Tensor, mean: Tensor) -> Tensor:
    return (mean - x).square().flatten(1).mean(1)


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


def split(m: Measurement, estimator: Estimator | None) -> None:
    """Measures the parts of the KL, the use of z, and the ELBO that relaxed samples hide."""
    vae, latent = m.vae, m.vae.latent
    m.progress("split", 0, 1)
    x, points, of_x = m.x, POINTS, m.settled
    if latent.num_places > 1:
        some = evenly(len(x), min(GRID_IMAGES, posteriors_at_once(vae, m.memory)))
        x, points, of_x = x[some], GRID_POINTS, of_x.rows(some)
    q = encode_in_parts(of_x, x, m.memory, BATCH)
    kl = _each_kl(m, of_x, q)
    if "kl" not in m.each:
        m.each["kl"] = kl.mean(0).sum(-1)
        _add_kl(m)
    m.draw_anew("split")
    if latent.closed_kl:  # else a density of q(z) would take hours
        found = decompose(latent, q, points)
        _add_decomposition(m, found)
        if vae.own_prior:
            _add_marginals(m, kl[0].mean(0), found, prior_gap(latent, q))
        elif vae.prior is not None:
            _add_aggregate_kl(m, kl.sum(-1), found)
    _add_use(m, q)
    _add_mixture_gap(m, of_x, q)
    m.progress("split", 1, 1)
    if estimator is not None and estimator.relaxed:
        _relaxed_gap(m, estimator)


def _add_use(m: Measurement, q: Distribution) -> None:
    """How much of z varies with the data, and how many codes are in use."""
    latent, variance = m.vae.latent, activity(q).cpu()
    varying = (variance > VARYING).sum().item()
    m.add("varying_units", varying, note=f"variance of E_q[z] above {VARYING}")
    channels = latent.places_as_data(variance.unsqueeze(0)).mean(0)
    m.per_latent["activity"] = channels.tolist()
    if (codes := latent.codes(q)) is not None:
        use = code_use(latent.places_as_data(codes))
        total = use.perplexity.numel() * codes.shape[-1]
        who = "some image's" if latent.num_places == 1 else "some place's"
        note = f"share of the {total} codes that are {who} first choice"
        m.add("code_usage", use.used, note=note)
        perplexity = use.perplexity.mean().item()
        m.add("code_perplexity", perplexity, note=f"of {codes.shape[-1]} categories")
        m.per_latent["perplexity"] = use.perplexity.tolist()
    if (revived := latent.learned().get("revived_codes")) is not None:
        m.add("revived_codes", revived.item(), note="codes that began anew in training")


def _add_aggregate_kl(m: Measurement, kl: Tensor, found: Decomposition) -> None:
    rest = aggregate(kl, found)
    note = "KL(q(z) || p(z)), kl less mutual_information; this prior has no KL of each variable"
    m.add("aggregate_kl", rest.kl, rest.error, "nats", note)


def _add_mixture_gap(m: Measurement, vae: VAE, q: Distribution) -> None:
    """What a second stage would gain, where there can be one."""
    if vae.condition is not None:
        return
    m.draw_anew("mixture")
    if (gap := mixture_gap(vae, q)) is None:
        return
    each = "" if vae.latent.num_places == 1 else " at each place on its own"
    note = f"KL(q(z) || p(z)) at least: a mixture of {COMPONENTS}{each}, on images it has not seen"
    m.add("mixture_gap", gap.value, gap.error, "nats", note)
    m.numbers["mixture_gap_error"] = gap.error


def _add_decomposition(m: Measurement, found: Decomposition) -> None:
    how, most = f"{found.points} z, {found.images} posteriors", math.log(found.images)
    information, correlation = found.mutual_information, found.total_correlation
    error, note = found.mutual_information_error, f"{how}; {most:.1f} at most"
    m.add("mutual_information", information, error, "nats", note)
    m.add("total_correlation", correlation, found.total_correlation_error, "nats", how)


def _each_kl(m: Measurement, vae: VAE, q: Distribution) -> Tensor:
    """The KL of each image and variable, [1, N, L]; sampled it is several times, [S, N, L]."""
    if vae.prior is None:
        return vae.kl(q).double().cpu().unsqueeze(0)
    m.draw_anew("kl")
    rows = torch.arange(q.batch_shape[0]).split(BATCH)
    batches = [mapped(q, itemgetter(part)) for part in rows]
    draws = [torch.cat([vae.kl(q) for q in batches]) for _ in range(KL_REPEATS)]
    return torch.stack(draws).double().cpu()


def _add_kl(m: Measurement) -> None:
    sampled = "" if m.vae.prior is None else ", sampled"
    m.mean("kl", "nats", f"KL(q(z|x) || p(z)){sampled}")


def _add_marginals(m: Measurement, kl: Tensor, found: Decomposition, gap: float | None) -> None:
    """What is known of each variable, kl [L], where the prior is a product over them."""
    latent = m.vae.latent
    marginal, note = found.marginal_kl.sum().item(), "KL(q(z_l) || p(z_l)), summed"
    m.add("marginal_kl", marginal, found.marginal_kl_error or None, "nats", note)
    if gap is not None:
        m.add("prior_gap", gap, None, "nats", "KL(q(z) || p(z)) at least, by the moments of q(z)")
    m.add("active_units", (kl > ACTIVE).sum().item(), note=f"KL above {ACTIVE} nats")
    each = {"kl": kl, "marginal_kl": found.marginal_kl}
    if latent.num_places > 1:
        m.per_place |= {name: latent.at_places(v).sum(-1).tolist() for name, v in each.items()}
        each = {name: latent.places_as_data(v.unsqueeze(0)).sum(0) for name, v in each.items()}
        means = each["kl"] / latent.num_places
        note = f"of {len(means)} at each place, mean KL over the places above {ACTIVE}"
        m.add("active_channels", (means > ACTIVE).sum().item(), note=note)
    m.per_latent |= {name: values.tolist() for name, values in each.items()}


def _relaxed_gap(m: Measurement, estimator: Estimator) -> None:
    """The gap in the ELBO of an estimator that trains at points between those that z can take."""
    relaxed = ELBO()

    def terms(vae: VAE, x: Tensor) -> tuple[Tensor]:
        return (relaxed(vae, estimator.below, x).elbo - vae.elbo(x).elbo,)

    m.measure(
        "relaxed", m.settled, m.x, terms, ("relaxed_gap",), m.batch(decoded=estimator.num_samples)
    )
    m.mean("relaxed_gap", "nats", "ELBO of relaxed samples less that of exact ones")


def quality(
    m: Measurement,
    images: Tensor,
    train_images: Tensor | None,
    features: Features | str | None = None,
    temperatures: Sequence[float] = (1.0,),
) -> None:
    """FID, precision, recall and nearest training image of samples of the prior, and a picture; and
    FID of reconstructions."""
    from .samples import beside_neighbours, reconstruction_fid, sample_quality

    m.progress("samples", 0, 1)
    m.draw_anew("samples")
    found = sample_quality(
        m.known, images, QUALITY_IMAGES, features, train_images, m.memory, temperatures
    )
    m.draw_anew("reconstructed")
    found["rfid"] = reconstruction_fid(m.settled, m.x, images, QUALITY_IMAGES, features, m.memory)
    of = features or "the shipped network"
    of = of if isinstance(of, str) else "a network of one's own"
    count = min(len(images), QUALITY_IMAGES)
    for name, value in found.items():
        what = "reconstructions" if name == "rfid" else "samples"
        m.add(name, value, note=f"{count} {what}, features of {of}")
    if train_images is not None:
        m.draw_anew("neighbours")
        given, t = m.known.rows(slice(SHOWN)), temperatures[0]
        m.pictures["neighbours"] = beside_neighbours(
            given, train_images, min(SHOWN, len(m.x)), features=features, temperature=t
        )
    m.progress("samples", 1, 1)


def classifiers(m: Measurement, train: Labelled, most: int) -> None:
    """Measures how well classifiers find the labels from the codes."""
    from .representation import linear_probe, nearest_neighbours

    train_x, train_y = (part[:most] for part in train)
    y = m.y[:most]
    if (train_y < 0).any() or (y < 0).any() or len(train_y.unique()) < 2:
        return
    m.progress("latents", 0, 1)
    of_train, of_test = m.vae.of_data(train_x, train_y), m.settled.rows(slice(most))
    codes = m.codes(of_train, train_x), train_y, m.codes(of_test, m.x[:most]), y
    pooled = ", means over the places" if m.vae.latent.grid else ""
    note = f"accuracy, {len(train_y)} training and {len(y)} test codes{pooled}"
    m.add("linear_probe", linear_probe(*codes), note=note)
    k = min(NEIGHBOURS, len(train_y))
    m.add("nearest_neighbours", nearest_neighbours(*codes, k=k), note=f"{note}, {k} neighbours")
    m.progress("latents", 1, 1)


def accuracy(m: Measurement) -> None:
    """How often the most probable label of a model that infers labels is the true one."""
    known = m.y >= 0
    right = (m.settled.labels.cpu() == m.y)[known].double()
    if len(right):
        error = math.sqrt(right.var(correction=0).item() / len(right))
        m.add("accuracy", right.mean().item(), error, note=f"of the labels of {len(right)} images")


def disentanglement(
    m: Measurement, factors: Callable[[Tensor], Tensor], categorical: Collection[int]
) -> None:
    """Measures whether single codes stand for single factors."""
    from .disentanglement import dci, mig, sap

    known = factors(m.y[:FACTOR_CODES])
    if (known == known[0]).all():
        return
    m.progress("factors", 0, 1)
    some = slice(FACTOR_CODES)
    codes = m.variables(m.settled.rows(some), m.x[some])
    scores = {"mig": mig(codes, known), "sap": sap(codes, known, categorical)}
    scores |= {f"dci_{name}": score for name, score in dci(codes, known)._asdict().items()}
    for name, score in scores.items():
        m.add(name, score, note=f"{len(codes)} images")
    m.progress("factors", 1, 1)
