"""task=prior: a second stage, which trains a prior on the posteriors of a model that is frozen."""

import inspect
import json
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from commandline.places import CONFIGS
from commandline.refusals import checkpoint_of
from models.base import VAEModule
from vae_lab import VAE, pretrained
from vae_lab.description import blueprint
from vae_lab.seeding import seeded
from vae_lab.storage import files, sources
from vae_lab.storage.runs import default_folder

from . import build
from .as_trained import data_of_release
from .fit import train_run
from .names import name_of
from .show import say, table
from .start import is_first, start
from .trained import data_of_run

SAMPLES = 4  # of z, for each datum of what is reported
PACKAGES = {"network": "networks", "latent": "latents", "likelihood": "likelihoods"}


def run(config: DictConfig) -> float:
    """Trains the prior, and says what it is worth. Returns the test ELBO."""
    source = checkpoint_of(config)
    vae = VAE.from_pretrained(source)
    config = second_stage(config, vae, source)
    with ExitStack() as held:
        if config.run_dir is None and is_first():
            chosen = HydraConfig.get().runtime.choices.prior
            config.run_dir = str(held.enter_context(default_folder(name_of(source), chosen)))
        begun = start(config, held)
        elbo = train_run(begun.settings(config), begun)
    if is_first():
        _tell(config, vae, begun.folder)
    return elbo


def second_stage(config: DictConfig, vae: VAE, source: str) -> DictConfig:
    """What is typed as the config of a run that trains the prior of a model alone."""
    if vae.condition is not None:
        raise ValueError(f"{source} is conditional: a second stage is for models without labels")
    config, plan = config.copy(), blueprint(vae)
    config.task, config.checkpoint = "fit", None
    config.data = _data(config, source)
    for kind, package in PACKAGES.items():
        described = dict(plan[kind])
        config[kind] = {"_target_": f"vae_lab.{package}.{described.pop('class')}"} | described
    if "learn_prior" in config.latent:
        config.latent.learn_prior = False
    shared = inspect.signature(VAEModule).parameters
    model = OmegaConf.to_container(config.model)
    kept = {name: node for name, node in model.items() if name in shared and name != "condition"}
    config.model = {"_target_": "models.SecondStage", **kept}
    config.init.model, config.init.freeze = source, ["model"]
    if config.estimator is None:
        config.estimator = OmegaConf.load(CONFIGS / "estimator" / f"{_estimator(vae)}.yaml")
    return config


def _estimator(vae: VAE) -> str:
    if vae.latent.deterministic:
        return "vector_quantization"
    return "reparameterization" if vae.latent.prior().has_rsample else "score_function"


def _data(config: DictConfig, source: str) -> Any:
    path = sources.resolve(source)
    if (of_run := data_of_run(config, path)) is not None:
        return of_run
    return data_of_release(config, pretrained.card(path), source)


def _tell(config: DictConfig, before: VAE, folder: Path) -> None:
    """The ELBO of the test data before and after, and the difference that the priors make."""
    after = VAE.from_pretrained(folder)
    datamodule = build.decided_by_data(config)
    datamodule.prepare_data()
    datamodule.setup("test")
    sums, count = torch.zeros(2, dtype=torch.float64), 0
    with closing(datamodule.test_dataloader()) as loader, torch.no_grad(), seeded(0, before.device):
        for x, *_ in loader:
            sums += _elbo_and_gain(before, after, x)
            count += len(x)
    elbo, gain = (sums / count).tolist()
    found = {"elbo_before": elbo, "elbo_after": elbo + gain, "difference": gain}
    content = json.dumps({"model": config.init.model, "nats": found}, indent=2) + "\n"
    files.write(folder / "second_stage.json", content.encode())
    table("the second stage, in nats", found)
    say("         difference = E_q[log p'(z) - log p(z)], of the new prior p' and the old p")


def _elbo_and_gain(before: VAE, after: VAE, x: torch.Tensor) -> torch.Tensor:
    """The sums over data x of the ELBO before, and of log p'(z) - log p(z), by the same draws z."""
    bound = before.elbo(x, SAMPLES)
    z = bound.q.sample((SAMPLES,))
    gain = (after.p_z().log_prob(z) - before.p_z().log_prob(z)).mean(0)
    return torch.stack([bound.elbo.double().sum(), gain.double().sum()])
