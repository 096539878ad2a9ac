"""The latents of an evaluation: what the KL is made of, how z is used, and what it tells."""

import math
from collections.abc import Callable, Collection
from operator import itemgetter

import torch
from torch import Tensor
from torch.distributions import Distribution

from ..distributions import mapped
from ..estimators import Estimator
from ..latents.base import ACTIVE
from ..memory import encode_in_parts, posteriors_at_once
from ..objectives import ELBO
from ..vae import VAE
from .bounds import GRID_IMAGES, add_kl
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
from .measurement import BATCH, Labelled, Measurement
from .mixture_gap import COMPONENTS, mixture_gap

VARYING = 0.01  # variance of the posteriors' means above which a variable varies
KL_REPEATS = 4  # of a KL that is sampled, for its error
FACTOR_CODES = 5000
NEIGHBOURS = 10
GRID_POINTS = 1000  # more would tell no more, as thousands of variables tell any two images apart


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
        add_kl(m)
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


def _each_kl(m: Measurement, vae: VAE, q: Distribution) -> Tensor:
    """The KL of each image and variable, [1, N, L]; sampled it is several times, [S, N, L]."""
    if vae.prior is None:
        return vae.kl(q).double().cpu().unsqueeze(0)
    m.draw_anew("kl")
    rows = torch.arange(q.batch_shape[0]).split(BATCH)
    batches = [mapped(q, itemgetter(part)) for part in rows]
    draws = [torch.cat([vae.kl(q) for q in batches]) for _ in range(KL_REPEATS)]
    return torch.stack(draws).double().cpu()


def _add_decomposition(m: Measurement, found: Decomposition) -> None:
    how, most = f"{found.points} z, {found.images} posteriors", math.log(found.images)
    information, correlation = found.mutual_information, found.total_correlation
    error, note = found.mutual_information_error, f"{how}; {most:.1f} at most"
    m.add("mutual_information", information, error, "nats", note)
    m.add("total_correlation", correlation, found.total_correlation_error, "nats", how)


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


def _add_aggregate_kl(m: Measurement, kl: Tensor, found: Decomposition) -> None:
    rest = aggregate(kl, found)
    note = "KL(q(z) || p(z)), kl less mutual_information; this prior has no KL of each variable"
    m.add("aggregate_kl", rest.kl, rest.error, "nats", note)


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


def _relaxed_gap(m: Measurement, estimator: Estimator) -> None:
    """The gap in the ELBO of an estimator that trains at points between those that z can take."""
    relaxed = ELBO()

    def terms(vae: VAE, x: Tensor) -> tuple[Tensor]:
        return (relaxed(vae, estimator.below, x).elbo - vae.elbo(x).elbo,)

    m.measure(
        "relaxed", m.settled, m.x, terms, ("relaxed_gap",), m.batch(decoded=estimator.num_samples)
    )
    m.mean("relaxed_gap", "nats", "ELBO of relaxed samples less that of exact ones")


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
