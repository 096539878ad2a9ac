"""What a second stage is worth: the ELBO before and after, of the same posteriors."""

import json
from contextlib import closing
from pathlib import Path

import torch
from omegaconf import DictConfig

from vae_lab import VAE
from vae_lab.seeding import seeded
from vae_lab.storage import files

from . import build
from .show import say, table

NAME = "second_stage.json"
SAMPLES = 4  # of z, for each datum of what is reported


def tell(config: DictConfig) -> None:
    """The ELBO of the test data before and after, and the difference that the priors make; nothing,
    where the model from before is no longer there, or was trained on."""
    folder = Path(config.run_dir)
    after = VAE.from_pretrained(folder)
    before = _still_there(config.init.model, after)
    if before is None:
        (folder / NAME).unlink(missing_ok=True)  # of an earlier epoch
        return
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
    files.write(folder / NAME, content.encode())
    table("the second stage, in nats", found)
    say("         difference = E_q[log p'(z) - log p(z)], of the new prior p' and the old p")


def _still_there(source: str, after: VAE) -> VAE | None:
    """The model of the first stage, if it is that which the second one has."""
    try:
        before = VAE.from_pretrained(source)
    except (OSError, ValueError):
        return None
    state = after.state_dict()
    own = {n: t for n, t in before.state_dict().items() if not n.startswith("prior.")}
    same = all(n in state and torch.equal(t, state[n]) for n, t in own.items())
    return before if same else None


def _elbo_and_gain(before: VAE, after: VAE, x: torch.Tensor) -> torch.Tensor:
    """The sums over data x of the ELBO before, and of log p'(z) - log p(z), by the same draws z."""
    bound = before.elbo(x, SAMPLES)
    z = bound.q.sample((SAMPLES,))
    gain = (after.p_z().log_prob(z) - before.p_z().log_prob(z)).mean(0)
    return torch.stack([bound.elbo.double().sum(), gain.double().sum()])
