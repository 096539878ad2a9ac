"""Names what may be wrong with a model, with the numbers that say so and what to type."""

import inspect
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from torch import Tensor, nn

from ..latents import FSQ, Latent
from ..latents.base import ACTIVE
from ..likelihoods import Likelihood
from ..schedules import schedules
from .evidence import can_anneal

if TYPE_CHECKING:
    from ..vae import VAE

Severity = Literal["problem", "warning", "fine"]
Finding = tuple[Severity, str, str]  # the level, the numbers in words, what to type

LEVELS: tuple[Severity, ...] = ("problem", "warning", "fine")
MIN_KL = 0.1  # nats a datum
MIN_CODES = 0.1  # of the way from one code in use to all alike
MAX_DOMINATED = 0.1  # of the images, by one weight each
MAX_PRIOR_GAP = 5.0  # nats: one z of the prior in 150
MIN_GAIN = 1.0  # nats that are worth a second stage
SECOND_STAGE = "task=prior checkpoint=runs/NAME prior=autoregressive"
OF_LABELS = "in Python, call vae_lab.fit_prior(vae, x, 'autoregressive', y=y)"  # that task has none
LOW_TEMPERATURE = 0.05  # below it the library warns when an estimator is made


class Diagnosis(NamedTuple):
    """One thing that was looked at.

    Attributes:
        name: the same for every model.
        level: "problem": the model does not do what it is for; "warning": something is wasted, or a
            number is not to be believed; "fine": it was looked at.
        because: the numbers that led to it, in words.
        advice: what to type, settings as KEY=VALUE; empty where all is fine.
        numbers: by name.
    """

    name: str
    level: Severity
    because: str
    advice: str
    numbers: dict[str, float]


def diagnose(
    numbers: Mapping[str, float | None],
    prefix: str = "",
    min_kl: float = MIN_KL,
    min_codes: float = MIN_CODES,
) -> list[Diagnosis]:
    """Looks at all that the numbers allow to look at; the worst comes first.

    Args:
        numbers: by name the metrics of :func:`vae_lab.evaluation.evaluate`, and also `latents` L,
            `categories` K, `places` of a grid, at each of which there are L, `samples` of the
            importance weights, `temperature`, `closed_kl` (has the KL a closed form), `fixed` (is
            q(z|x) one code), `levels` (so many numbers make a code of FSQ), `grey` (are there
            pixels that are no bits, under a likelihood of bits). Unknown is what is absent or None.
        prefix: of the metrics' names where they are shown, such as `val/`.
        min_kl: in nats a datum; less is a collapse.
        min_codes: dead are codes of perplexity P where :math:`(P - 1) / (K - 1)` is less.
    """
    measured = {name: number for name, number in numbers.items() if number is not None}
    known: dict[str, Any] = {"prefix": prefix, "min_kl": min_kl, "min_codes": min_codes}
    found = []
    for name, check in CHECKS.items():
        parameters = inspect.signature(check).parameters.values()
        if any(p.default is p.empty and p.name not in {**known, **measured} for p in parameters):
            continue
        used = {p.name: measured[p.name] for p in parameters if p.name in measured}
        settings = {p.name: known[p.name] for p in parameters if p.name in known}
        found.append(Diagnosis(name, *check(**used, **settings), used))
    return sorted(found, key=lambda diagnosis: LEVELS.index(diagnosis.level))


def own_temperature(module: nn.Module) -> dict[str, float]:
    """The `temperature` of a training module's own estimator, which `model.temperature` sets."""
    found = schedules(module).get("temperature")
    chosen = getattr(module, "config", {}).get("estimator")
    if found is None or chosen is not None or found.value.item() == 0:  # that of nearest codes
        return {}
    return {"temperature": found.value.item()}


def has_grey_pixels(likelihood: Likelihood, x: Tensor) -> bool:
    """Are there pixels between 0 and 1 under a likelihood of bits."""
    return likelihood.binary and bool(((x != 0) & (x != 1)).any())


def sizes(latent: Latent) -> dict[str, float]:
    """`latents`, of one place of a grid, `categories` where they can be listed, `places`, and what
    decides which advice can be followed."""
    places = latent.num_places
    known: dict[str, float | None] = {"latents": latent.num_variables // places}
    known["categories"] = latent.categories
    known["places"] = places if places > 1 else None
    known["closed_kl"] = None if latent.closed_kl else 0
    known["levels"] = len(latent.levels) if isinstance(latent, FSQ) else None
    known["fixed"] = 1 if getattr(latent, "deterministic", False) else None
    return {name: number for name, number in known.items() if number is not None}


def facts(vae: "VAE") -> dict[str, float]:
    """The :func:`sizes` of its latent, and what else decides which advice can be followed:
    `conditional`, is it so, and `annealed`, can annealed importance sampling be had."""
    known = sizes(vae.latent)
    if vae.condition is not None:
        known["conditional"] = 1
    if can_anneal(vae.latent) and not vae.infers_labels:
        known["annealed"] = 1
    return known


# What a check needs to know are its arguments; without those that have a default it can do.


def _posterior_collapse(
    kl: float,
    latents: float,
    prefix: str,
    min_kl: float,
    active_units: float | None = None,
    places: float = 1,
    closed_kl: float = 1,
) -> Finding:
    because = f"{prefix}kl is {kl:.3g} nats"
    if active_units is not None:
        because += f", {active_units:.0f} of {latents * places:.0f} latent variables are active"
    if kl >= min_kl and active_units != 0:
        return "fine", because, ""
    return (
        "problem",
        because,
        "type objective=elbo_warmup (its beta rises from 0), or objective.beta=0.5"
        + ", or objective.free_bits=0.1" * bool(closed_kl),
    )


def _inactive_units(
    active_units: float,
    latents: float,
    active_channels: float | None = None,
    closed_kl: float = 1,
) -> Finding:
    named = "latent variables have a KL"
    if active_channels is not None:
        active_units, named = active_channels, "channels have, over all places, a mean KL"
    because = f"{active_units:.0f} of {latents:.0f} {named} above {ACTIVE} nats"
    if not active_units or 2 * active_units >= latents:
        return "fine", because, ""
    return (
        "warning",
        because,
        f"type model.latents={active_units:.0f}, which does the same with less"
        + ", or objective.free_bits=0.1 for the others to be used" * bool(closed_kl),
    )


def _dead_codes(
    code_perplexity: float,
    categories: float,
    latents: float,
    prefix: str,
    min_codes: float,
    temperature: float | None = None,
    places: float = 1,
    levels: float = 0,
) -> Finding:
    who = "a latent variable uses" if places == 1 else "the places use"
    because = (
        f"of {categories:.0f} categories {who} {code_perplexity:.3g} ({prefix}code_perplexity)"
    )
    if (code_perplexity - 1) / (categories - 1) >= min_codes:
        return "fine", because, ""
    fewer = (
        "smaller model.levels"
        if levels
        else f"model.categories={max(round(2 * code_perplexity), 2)}"
        if categories > 2
        else f"model.latents={max(round(latents / 2), 1)}"
    )
    higher = "" if temperature is None else f"model.temperature={max(2 * temperature, 1):.2g}, "
    return (
        "problem",
        because,
        f"type objective.aggregate_kl=20, {higher}model.optimizer.lr=3e-4, or {fewer}",
    )


def _decoder_ignores_z(
    kl: float, reconstruction_gain: float, min_kl: float, fixed: float = 0
) -> Finding:
    because = (
        f"z costs {kl:.3g} nats of KL; with a z of the prior instead the reconstruction is "
        f"{reconstruction_gain:.3g} nats worse"
    )
    if kl < min_kl or reconstruction_gain >= kl or fixed:  # the KL of a code is what it is
        return "fine", because, ""
    return (
        "problem",
        because,
        (
            "type trainer.max_epochs=200 to train longer, objective=elbo_warmup, or "
            "objective.free_bits=0 if the KL is forced"
        ),
    )


def _overfitting(elbo: float, train_elbo: float, train_elbo_error: float) -> Finding:
    gap = train_elbo - elbo
    because = f"the ELBO is {train_elbo:.4g} on training images and {elbo:.4g} on these"
    if gap < 3 * train_elbo_error or gap < 0.03 * abs(elbo):
        return "fine", because, ""
    return (
        "warning",
        because,
        ("type early_stopping=10, ema=0.999, or model.optimizer.weight_decay=0.1"),
    )


def _importance_weights(
    dominated: float,
    effective_samples: float,
    samples: float,
    ais_gain: float | None = None,
    places: float = 1,
    annealed: float = 0,
) -> Finding:
    because = (
        f"in {dominated:.0%} of the images one of {samples:.0f} weights is more than half of all; "
        f"on average they are worth {effective_samples:.3g}"
    )
    if dominated < MAX_DOMINATED:
        return "fine", because, ""
    if ais_gain is not None:
        because += f"; annealed importance sampling finds {ais_gain:.3g} nats more"
    if places > 1:
        because += f": z of {places:.0f} places is never drawn twice alike"
        return (
            "warning",
            because,
            "log p(x) is not known, log_likelihood hardly more than the ELBO: compare models "
            "by elbo" + ", or type evaluate.ais_images=10, which takes long" * bool(annealed),
        )
    return (
        "warning",
        because,
        (f"log p(x) may be higher than the bound: type evaluate.samples={10 * samples:.0f}"),
    )


def _relaxed_gap(
    relaxed_gap: float, elbo: float, categories: float, temperature: float | None = None
) -> Finding:
    because = f"relaxed samples promise {relaxed_gap:.3g} nats more than exact ones give"
    if relaxed_gap < max(1.0, 0.01 * abs(elbo)):
        return "fine", because, ""
    lower = (
        ""
        if temperature is None
        else f"model.temperature={max(temperature / 2, 0.1):.2g}, model.hard=true, or "
    )
    return "warning", because, f"type {lower}estimator=rebar, which has no bias"


def _poor_samples(
    prior_gap: float, latents: float, places: float = 1, conditional: float = 0
) -> Finding:
    because = f"the images' q(z) and the prior are at least {prior_gap:.3g} nats apart"
    if prior_gap < MAX_PRIOR_GAP:
        return "fine", because, ""
    fewer = f"model.latents={round(latents / 2)}, " if latents > 1 else ""
    alone = ", whose places know nothing of each other," if places > 1 else ""
    second = OF_LABELS if conditional else f"type {SECOND_STAGE}"
    return (
        "warning",
        f"{because}: samples from the prior{alone} will look unlike them",
        f"{second}, or train on more images, with {fewer}objective.beta=4",
    )


def _second_stage(mixture_gap: float, mixture_gap_error: float) -> Finding:
    because = (
        f"a mixture fitted to z of other images is {mixture_gap:.3g} +- {mixture_gap_error:.2g} "
        "nats better than the prior"
    )
    if mixture_gap - 2 * mixture_gap_error < MIN_GAIN:
        return "fine", because, ""
    return (
        "warning",
        f"{because}, so that another prior would raise the ELBO by as many at least",
        f"type {SECOND_STAGE}",
    )


def _temperature(temperature: float) -> Finding:
    because = f"the relaxation's temperature is {temperature:.3g}"
    if temperature >= LOW_TEMPERATURE:
        return "fine", because, ""
    return (
        "warning",
        f"{because}: the gradient's variance grows as its inverse",
        ("type model.temperature=0.5"),
    )


def _grey_pixels(grey: float) -> Finding:
    if not grey:
        return "fine", "all pixels are 0 or 1", ""
    return (
        "warning",
        "there are pixels between 0 and 1: their cross-entropy is no likelihood",
        ("type data.binarize=stochastic, or likelihood=continuous_bernoulli"),
    )


CHECKS: dict[str, Callable[..., Finding]] = {
    "posterior collapse": _posterior_collapse,
    "inactive units": _inactive_units,
    "dead codes": _dead_codes,
    "decoder ignores z": _decoder_ignores_z,
    "overfitting": _overfitting,
    "importance weights": _importance_weights,
    "relaxed gap": _relaxed_gap,
    "poor samples": _poor_samples,
    "second stage": _second_stage,
    "temperature": _temperature,
    "grey pixels": _grey_pixels,
}
