"""How many images fit into memory at once: by what torch allocates for one of them."""

import weakref
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.distributions import Distribution
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from .distributions import full_precision

if TYPE_CHECKING:
    from .vae import VAE

MEMORY = 1e9  # bytes
INSIDE = 1.5  # of what is counted: kernels have tensors of their own, 1.0 to 1.9 times was measured
COPIES = 10  # of a posterior's parameters, when its densities are evaluated in double precision


def images_at_once(vae: "VAE", memory: float, graph: bool = False) -> int:
    """Number of images to decode at once: good for a cache or an accelerator, within memory.

    Args:
        memory: in bytes.
        graph: see :func:`bytes_to_decode`.
    """
    most = 512 if vae.device.type == "cpu" else 16384
    return max(min(most, int(memory / bytes_to_decode(vae, graph))), 1)


def bytes_to_decode(vae: "VAE", graph: bool = False) -> float:
    """The memory for log p(x|z) of one image.

    Args:
        graph: and for its derivative with respect to z.
    """
    x, vae = torch.zeros(1, *vae.shape, device=vae.device), vae.blank()
    z = vae.latent.mode(vae.latent.prior()).detach().unsqueeze(0)

    def decode() -> None:
        with torch.set_grad_enabled(graph):
            point = z.clone().requires_grad_(graph)
            log_px_z = vae.likelihood.log_prob(vae.decode(point), x)
            if graph:
                torch.autograd.grad(log_px_z.sum(), point)

    return allocated(decode)


def encoded_at_once(vae: "VAE", memory: float = MEMORY) -> int:
    """Number of images to encode at once, within memory in bytes."""
    x, vae = torch.zeros(1, *vae.shape, device=vae.device), vae.blank()
    return max(int(memory / allocated(lambda: vae.latent.kl(vae.encode(x)))), 1)


def posteriors_at_once(vae: "VAE", memory: float = MEMORY) -> int:
    """Number of posteriors whose densities are evaluated within memory in bytes."""
    parameters = vae.latent.parameter_size * vae.latent.num_places
    return max(int(memory / (COPIES * 8 * parameters)), 2)


@torch.no_grad()
def encode_in_parts(
    vae: "VAE", x: Tensor, memory: float = MEMORY, most: int | None = None
) -> Distribution:
    """q(z|x) of many images [N, *X], which may lie on another device, batch shape [N].

    Args:
        memory: in bytes, for the encoder; the posteriors themselves come on top.
        most: images at once; None: all that the memory allows.
    """
    size = min(encoded_at_once(vae, memory), most or len(x))
    parts = [part.head(part.features(some)) for part, some in in_parts(vae, x, size)]
    return vae.latent.distribution(full_precision(torch.cat(parts)))


def in_parts(vae: "VAE", x: Tensor, size: int) -> Iterator[tuple["VAE", Tensor]]:
    """So many of the data at a time, where the model is, each with the model that was given their
    own y if it was given that of all."""
    for start in range(0, len(x), size):
        part = slice(start, start + size)
        yield vae.rows(part), x[part].to(vae.device)


def allocated(work: Callable[[], object]) -> float:
    """The most bytes that are alive at once of all tensors that torch makes in `work`."""
    with torch.no_grad(), _Allocations() as seen:
        work()
    return INSIDE * max(seen.peak, 1)


class _Allocations(TorchDispatchMode):
    """Counts the bytes of new tensors from the operation that makes them until they are freed."""

    def __init__(self) -> None:
        super().__init__()
        self.alive: dict[int, int] = {}
        self.peak = 0

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Nothing is compiled in it: torch need not import its compiler, which takes seconds."""
        return False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        found = func(*args, **(kwargs or {}))
        given = {id(storage) for storage in _storages((args, kwargs))}
        for storage in _storages(found):
            if id(storage) not in given and id(storage) not in self.alive:  # neither a view
                self.alive[id(storage)] = storage.nbytes()
                weakref.finalize(storage, self.alive.pop, id(storage))
        self.peak = max(self.peak, sum(self.alive.values()))
        return found


def _storages(tree: Any) -> list[torch.UntypedStorage]:
    return [leaf.untyped_storage() for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]
