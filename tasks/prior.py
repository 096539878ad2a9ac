"""task=prior: a second stage, which trains a prior on the posteriors of a model that is frozen."""

import inspect
import re
from contextlib import ExitStack
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from commandline.places import CONFIGS
from commandline.refusals import checkpoint_of
from models.base import VAEModule
from vae_lab import VAE, pretrained
from vae_lab.description import blueprint
from vae_lab.estimators.suited import suited
from vae_lab.storage import sources
from vae_lab.storage.runs import default_folder

from .as_trained import data_of_release
from .fit import train_run
from .names import name_of
from .start import is_first, start
from .trained import data_of_run

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
        return train_run(begun.settings(config), begun)


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
        name = re.sub(r"\B([A-Z])", r"_\1", type(suited(vae.latent)).__name__).lower()
        config.estimator = OmegaConf.load(CONFIGS / "estimator" / f"{name}.yaml")
    return config


def _data(config: DictConfig, source: str) -> Any:
    path = sources.resolve(source)
    if (of_run := data_of_run(config, path)) is not None:
        return of_run
    return data_of_release(config, pretrained.card(path), source)
