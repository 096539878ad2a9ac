"""The function that trains a model on what the caller has."""

import math
import sys
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch

from ..description import undisturbed
from ..estimators import Estimator, Exact
from ..inputs import check_count
from ..latents import Latent
from ..levels import Levels
from ..likelihoods import Likelihood
from ..networks import Network
from ..objectives import Objective
from ..optimization import Decay, labelled_share, rehearse
from ..priors import Prior
from ..priors.base import start as start_prior
from ..seeding import seeded
from ..threads import watched
from ..vae import VAE
from .examples import EVAL_BATCH_SIZE, Examples
from .given import read
from .interruption import interruptible
from .parts import estimator_for, latent_for, network_for, part
from .progress import Progress
from .saving import File, settings_of
from .training import Plan, Training

STEPS = 4000  # of the default training
EPOCHS = 20, 1000  # at least and at most, in the default training
PRIOR_STARTS_OF = 1000  # data
PATIENCE = 20, 0.2  # epochs at least, and of all epochs, in the default training


def fit(
    x: Any,
    *,
    y: Any = None,
    val: Any = None,
    columns: Any = None,
    model: VAE | None = None,
    network: Network | str | None = None,
    latent: Latent | str | None = None,
    likelihood: Likelihood | str | None = None,
    prior: Prior | str | None = None,
    estimator: Estimator | str | None = None,
    objective: Objective | str = "elbo",
    epochs: int | None = None,
    batch_size: int = 128,
    lr: float = 3e-3,
    weight_decay: float = 0.01,
    lr_warmup_steps: int = 100,
    lr_decay: Decay = "cosine",
    likelihood_lr: float | None = None,
    estimator_lr: float | None = None,
    gradient_clip_val: float | None = None,
    ema: float | None = None,
    val_size: float = 0.1,
    patience: int | None = None,
    seed: int = 0,
    device: torch.device | str | None = None,
    file: str | Path | None = None,
    progress: bool = True,
) -> VAE:
    r"""Trains a VAE on your data.

    .. code-block:: python

        vae = vae_lab.fit(x)
        vae = vae_lab.fit(x, latent=Categorical(20, 10), estimator="rebar", epochs=50)

    It needs torch only. The steps are those of train.py, where the settings have the same names:
    from the same seed, settings and data come the same weights. What needs several processes, other
    optimizers or mixed precision is train.py's.

    A part is an object, of which a copy is trained, or the name of one that needs no arguments, as
    `"gumbel_softmax"`. What is left open suits the data.

    Pictures are bytes [N, C, H, W], with 0 for black and 255 for white, or bits, which are such
    bytes; the model sees them divided by 255. All else is numbers or columns, in any unit, of which
    NaN are missing; the likelihood is then chosen by their looks, a kind for each column, and
    `vae.likelihood.columns` tells it.

    After each epoch the ELBO of the data that is held out is measured, and the weights that had the
    highest are those of the model. Ctrl-C ends the training early: what is returned is the best
    model until then. A second one is an ordinary KeyboardInterrupt.

    Args:
        x: the data: a numpy array or a tensor [N, \*X]; a pandas or polars frame, or arrays by the
            names of columns; or a torch Dataset of x or (x, y), which is read once, but for y.
        y: what the model is conditioned on: labels, [N] integers, of which those that are -1 are
            inferred; attributes, [N, A] floats; or the name of a frame's column, or a list of
            several, which are attributes.
        val: data to validate on, like x, or (x, y); None: a random part of x.
        columns: what is not as it looks, by the columns' names: `{"age": "lognormal", "id": None}`
            makes one log-normal and leaves one out. Columns of an array are called "0", "1", ...
        model: goes on with a copy of this model, which has all parts and says what columns there
            are; None: a new one.
        network: the encoder and the decoder; see :mod:`vae_lab.networks`.
        latent: the family of q(z|x); see :mod:`vae_lab.latents`. None: Gaussian, and
            CorrelatedGaussian where values are missing.
        likelihood: p(x|z); see :mod:`vae_lab.likelihoods`.
        prior: p(z); see :mod:`vae_lab.priors`. None: the latent's own.
        estimator: of the gradient; see :mod:`vae_lab.estimators`. None: one without bias.
        objective: what is maximised: elbo, iwae or monte_carlo_elbo; see :mod:`vae_lab.objectives`.
            Of pictures also perceptual or adversarial; see :mod:`vae_lab.losses`.
        epochs: how often all data are seen; None: so often that it is about 4000 steps, but 20
            times at least and 1000 at most.
        batch_size: data in a step.
        lr: the learning rate of AdamW; train.py's is lower, 1e-3, for any network.
        weight_decay: of AdamW.
        lr_warmup_steps: the learning rate rises linearly over so many steps.
        lr_decay: then it falls to zero at the last epoch ("cosine"), stays ("none"), or is
            multiplied by a schedule of the steps since; see :mod:`vae_lab.schedules`.
        likelihood_lr: the learning rate of the likelihood's own parameters; None: `lr`.
        estimator_lr: that of the estimator's own; None: `lr`.
        gradient_clip_val: the largest norm of a gradient; None: any.
        ema: the decay of a moving average of the weights, as 0.999; None: no average.
        val_size: how much of x is held out: a fraction below 1, or a count; 0: nothing, and the
            last weights are the model's.
        patience: stop after so many epochs without a better ELBO, past a KL warm-up; None: a fifth
            of all, but 20 at least. Perceptual and adversarial objectives never stop early.
        seed: decides the first weights, the order of the data and all noise. The random state of
            the caller stays as it is.
        device: where to train, and where the model will be; None: on a GPU if there is one.
        file: where to keep the training, every ten minutes and at its end. If the file exists, the
            training goes on with it, bit for bit as if it had not been interrupted. It is also a
            source for :meth:`vae_lab.VAE.from_pretrained`.
        progress: show a bar, or lines where none can be drawn.

    Returns:
        The model, in evaluation mode. Its `history` is a list of one dictionary for each epoch:
        `epoch`, `step`, `train/elbo` and `val/elbo`, in nats.

    Raises:
        ValueError: the data or the parts do not fit; one line that says what to pass.
        FloatingPointError: the objective became infinite or NaN.

    Eight bits that have something in common, and two epochs:

    >>> import torch, vae_lab
    >>> from vae_lab.likelihoods import Bernoulli
    >>> _ = torch.manual_seed(0)
    >>> x = (torch.randn(500, 8) + torch.randn(500, 1) > 0).float()
    >>> vae = vae_lab.fit(x, likelihood=Bernoulli(), epochs=2, progress=False)
    >>> vae.encode(x).mean.shape, len(vae.history)
    (torch.Size([500, 4]), 2)
    """
    batch_size = check_count("batch_size", batch_size)
    chosen = {"network": network, "latent": latent, "likelihood": likelihood, "prior": prior}
    if model is not None:
        if named := [kind for kind, value in chosen.items() if value is not None]:
            raise ValueError(f"the model has a {named[0]} already: leave out {named[0]}, or model")
    data, held = read(x, y, val, val_size, columns, model, likelihood)
    if held is None and patience is not None:
        raise ValueError(f"patience={patience} needs data that is held out: pass val or val_size")
    place = _device(device)
    if epochs is not None:
        epochs = check_count("epochs", epochs)
    else:
        epochs = _epochs(len(data.stored), batch_size)
    if held is not None and patience is None:
        least, share = PATIENCE
        patience = max(least, round(share * epochs))
    plan = Plan(
        epochs=epochs,
        seed=seed,
        lr=lr,
        weight_decay=weight_decay,
        lr_warmup_steps=lr_warmup_steps,
        lr_decay=lr_decay,
        likelihood_lr=likelihood_lr,
        estimator_lr=estimator_lr,
        gradient_clip_val=gradient_clip_val,
        ema=ema,
        patience=patience,
    )
    seed = plan.seed
    with seeded(seed, place), torch.inference_mode(False), torch.enable_grad():
        vae, goal, gradient = _model(data, model, chosen, objective, estimator)
        training = Training(
            vae.to(place),
            goal.to(place),
            gradient.to(place),
            data.loader("train", batch_size, seed, place, labelled_share(vae)),
            None if held is None else held.loader("val", EVAL_BATCH_SIZE, seed, place),
            plan,
        )
        settings = {} if file is None else settings_of(training, data, held)
        _run(training, File(file, settings), progress)
    return _finished(training)


def _device(device: torch.device | str | None) -> torch.device:
    found = torch.accelerator.current_accelerator(check_available=True)
    if device is None and found is not None and found.type != "mps":  # which has no float64
        return found
    chosen = torch.device(device or "cpu")
    try:
        torch.empty(0, device=chosen)
    except (RuntimeError, AssertionError) as error:  # of a torch without CUDA
        said = str(error).splitlines()[0]
        raise ValueError(f"device={str(chosen)!r} cannot be had: {said}") from None
    return chosen


def _epochs(count: int, batch_size: int) -> int:
    least, most = EPOCHS
    return min(most, max(least, STEPS // math.ceil(count / batch_size)))


def _model(
    data: Examples,
    model: VAE | None,
    chosen: dict[str, Any],
    objective: Objective | str,
    estimator: Estimator | str | None,
) -> tuple[VAE, Objective, Estimator]:
    """The model and what trains it, with what was left open, before the first step."""
    with undisturbed():
        vae = _new(data, chosen) if model is None else deepcopy(model).cpu().train()
        goal = part("objective", objective)
        if estimator is None:
            gradient = estimator_for(vae.latent, goal)
        else:
            gradient = part("estimator", estimator)
        if vae.infers_labels:
            gradient = Levels(Exact(), gradient)
        rehearse(vae, goal, gradient)
        if model is None:
            data.start(vae)
        start_prior(vae, *data.seen(PRIOR_STARTS_OF))
    return vae, goal, gradient


def _new(data: Examples, chosen: dict[str, Any]) -> VAE:
    """A model with what was left open."""
    defaults = {
        "network": network_for(data.shape, len(data.stored)),
        "latent": latent_for(data.shape, data.missing),
        "likelihood": data.likelihood,
    }
    given = {kind: part(kind, value) for kind, value in chosen.items() if value is not None}
    made: dict[str, Any] = defaults | given | {"condition": data.condition}
    return VAE(data.shape, **made)


def _run(training: Training, file: File, progress: bool) -> None:
    """Trains, shows it and saves it."""
    file.restore(training)
    shown = Progress(training, progress)

    with interruptible() as ctrl_c, watched():

        def pause(training: Training) -> bool:
            shown.update(training)
            file.save_if_due(training)
            return ctrl_c.asked

        try:
            training.run(pause)
        finally:
            shown.close(training)
    file.save(training)
    if not training.finished:
        where = f"epoch {training.at.epoch + 1} of {training.plan.epochs}"
        then = "; the same call goes on" if file.path else ""
        print(f"vae_lab.fit: interrupted in {where}: the best model so far{then}", file=sys.stderr)


def _finished(training: Training) -> VAE:
    vae = training.vae
    vae.load_state_dict(training.weights)
    vae.zero_grad()
    vae.history = training.at.history
    return vae.eval()
