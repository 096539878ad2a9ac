"""Weights that are shared out among processes (FSDP2)."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytorch_lightning as pl
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.nn import Module

from vae_lab.latents.codes import Codes

STEPS = ("training_step", "validation_step", "test_step")


def shard(module: pl.LightningModule, parts: tuple[Module, ...]) -> None:
    """Shards the parts, and then the rest of the module, where its strategy has a mesh of devices;
    once."""
    if module.device_mesh is None or isinstance(module, FSDPModule):
        return
    if any(isinstance(part, Codes) and part.decay is None for part in module.modules()):
        raise ValueError(
            "codes that follow the gradient, as drawn ones always do, cannot be sharded, for they "
            "also begin anew: type trainer=ddp; nearest codes can, with model.decay=0.9"
        )
    for part in (*parts, module):
        fully_shard(part, mesh=module.device_mesh)  # [machines: copies, processes: shares]
    for step in STEPS:
        register_fsdp_forward_method(module, step)  # gathers what no part holds


@contextmanager
def gathered(module: pl.LightningModule) -> Iterator[None]:
    """Keeps a sharded module together where an estimator takes derivatives of its own."""
    if isinstance(module, FSDPModule):
        module.set_reshard_after_backward(False)
    yield
    if isinstance(module, FSDPModule):
        module.set_reshard_after_backward(True)
