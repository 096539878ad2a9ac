"""Seeds as pure functions of where the run stands, so that no random state has to be saved."""

from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import blake2b

import torch


def derive_seed(*parts: int | str) -> int:
    """A 63-bit seed that is the same for the same parts, on every machine and in every process.

    Unlike those of `seed + epoch + rank`, the seeds of neighbouring parts have nothing in common:

    >>> derive_seed(0, "train", 3, 17) == derive_seed(0, "train", 3, 17)
    True
    >>> derive_seed(1, 0) == derive_seed(0, 1)
    False

    Args:
        parts: whatever decides the randomness, such as (seed, stage, epoch, batch, rank).

    Returns:
        The first 63 bits of the BLAKE2b hash of the parts, written out and joined by slashes.
    """
    text = "/".join(map(str, parts))
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def seed_generators(seed: int) -> None:
    """Seeds the default generators of the CPU and of the current accelerator.

    `torch.manual_seed` does so for every kind of accelerator that torch knows, in about 190 us, and
    `torch.accelerator.is_available` asks the driver, in about 300 us: too much for every batch.
    """
    torch.default_generator.manual_seed(seed)
    accelerator = torch.accelerator.current_accelerator()  # that torch was built for
    if accelerator is not None:
        device = torch.get_device_module(accelerator)
        # One that is not there, or that nothing has used yet, would only queue the seed, slowly.
        if not hasattr(device, "is_initialized") or device.is_initialized():
            device.manual_seed(seed)


def seed_step(seed: int, stage: str, epoch: int, batch: int, rank: int = 0) -> None:
    """Seeds the generators for one batch, so that its noise depends on nothing that came before.

    Args:
        seed: the run's.
        stage: "train"; "validation" or "test".
        epoch: of training; in evaluation the number of the loader, and *not* of the epoch: the same
            noise at every validation makes their results comparable.
        batch: its number in the epoch.
        rank: of the process, as each has noise of its own.
    """
    seed_generators(derive_seed(seed, stage, epoch, batch, rank))


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Noise of this seed on a device, after which the generators are where they were."""
    devices = [] if device.type == "cpu" else [device]
    with torch.random.fork_rng(devices, device_type=device.type):
        seed_generators(seed)
        yield
