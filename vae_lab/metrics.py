"""Metrics: sums that stay on the device until somebody reads them."""

import time
from collections.abc import Callable
from typing import Any, Self

import torch
from torch import Tensor

from .distributed import all_sum, each, rank, world_size
from .distributions import full_precision
from .latents.base import ACTIVE
from .optional import needs
from .vae import VAE, Bound

with needs("train", __name__):
    from torchmetrics import Metric


class BoundMetrics(Metric):
    r"""Means over a split of the ELBO and its terms, and how much of the latent is in use.

    * `elbo`, `reconstruction`, `kl`, and `elbo_relaxed` where it is given: in nats.
    * `active_units`: latent variables whose mean KL exceeds 0.01 nats, if each has one; on a grid
      also `active_channels`, of which the mean over the data and the places does.
    * `code_perplexity`, of discrete latents: :math:`\exp H(\bar\pi_l)`, where :math:`\bar\pi_l`
      is the mean of q(z_l|x) over the data; mean over the variables. 1 is a dead variable, K is one
      that uses all categories alike.

    Args:
        latents: L.
        categories: K, or None where they cannot be listed.
        relaxed: is there a relaxed ELBO beside the true one.
        places: of a grid, on which there are so many data where it is about single variables; see
            :meth:`.Latent.places_as_data`.
        each: is the KL of each variable known, and not only their sum.
    """

    full_state_update = False
    terms: Tensor
    kl: Tensor
    codes: Tensor
    count: Tensor

    def __init__(
        self,
        latents: int,
        categories: int | None,
        relaxed: bool,
        places: int = 1,
        each: bool = True,
    ) -> None:
        super().__init__()
        self.categories, self.relaxed = categories, relaxed
        self.places, self.each = places, each
        codes = (latents // places, categories or 1)
        shapes = {"terms": (3,), "kl": (latents,), "codes": codes, "count": ()}
        for name, shape in shapes.items():
            # Sums of 10^5 numbers of size 10^3 need more than float32.
            zeros = torch.zeros(shape, dtype=torch.float64)
            self.add_state(name, zeros, dist_reduce_fx="sum")

    @classmethod
    def of(cls, vae: VAE, relaxed: bool) -> "BoundMetrics":
        """Metrics for the latents of a VAE.

        With `relaxed`, it is trained at points that it will not meet again: its ELBO at these is
        shown beside the true one.
        """
        latent, each = vae.latent, vae.prior is None
        kind = LabelMetrics if vae.infers_labels else cls
        return kind(latent.num_variables, latent.categories, relaxed, latent.num_places, each)

    def _apply(self, fn: Callable[[Tensor], Tensor], *arguments: Any, **named: Any) -> Self:
        """To another device only: in a model of 16 bits the sums keep their precision."""
        super()._apply(lambda x: x.to(fn(x).device), *arguments, **named)
        return self

    def update(self, bound: Bound, codes: Tensor | None, elbo_relaxed: Tensor | None) -> None:
        """Adds a batch; `codes` are the probabilities of discrete latents, [B, L, K], on a grid
        [B * places, L of a place, K]."""
        relaxed = bound.elbo if elbo_relaxed is None else elbo_relaxed
        terms = torch.stack([bound.elbo, bound.reconstruction, relaxed])
        self.terms += terms.sum(1, dtype=self.terms.dtype)
        self.kl += bound.kl.sum(0, dtype=self.kl.dtype)
        self.count += len(bound.elbo)
        if codes is not None:
            self.codes += codes.sum(0, dtype=self.codes.dtype)

    def compute(self) -> dict[str, Tensor]:
        elbo, reconstruction, relaxed = self.terms / self.count
        kl = self.kl / self.count
        metrics = {"elbo": elbo, "reconstruction": reconstruction, "kl": kl.sum()}
        if self.relaxed:
            metrics["elbo_relaxed"] = relaxed
        if self.each:
            metrics["active_units"] = (kl > ACTIVE).sum().to(kl)
        if self.each and self.places > 1:
            channels = kl.unflatten(0, (self.places, -1)).mean(0)
            metrics["active_channels"] = (channels > ACTIVE).sum().to(kl)
        if self.categories is not None:
            usage = self.codes / (self.count * self.places)
            metrics["code_perplexity"] = torch.special.entr(usage).sum(-1).exp().mean()
        return metrics


class LabelMetrics(BoundMetrics):
    """Those of a model that infers labels.

    * `kl`: with that of the label.
    * `accuracy`: the share of the data with a label whose label is the most probable one; left out
      where no label is known.
    """

    label_kl: Tensor
    labels: Tensor

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        for name, shape in {"label_kl": (), "labels": (2,)}.items():
            zeros = torch.zeros(shape, dtype=torch.float64)
            self.add_state(name, zeros, dist_reduce_fx="sum")

    def update(self, bound: Bound, codes: Tensor | None, elbo_relaxed: Tensor | None) -> None:
        super().update(bound, codes, elbo_relaxed)
        if bound.label_kl is not None:
            self.label_kl += bound.label_kl.sum(dtype=self.label_kl.dtype)

    def update_labels(self, found: Tensor, y: Tensor) -> None:
        """Adds the labels that were found, [B], and the true ones, -1 where there is none."""
        known = y >= 0
        self.labels += torch.stack([(known & (found == y)).sum(), known.sum()])

    def compute(self) -> dict[str, Tensor]:
        metrics = super().compute()
        metrics["kl"] = metrics["kl"] + self.label_kl / self.count
        right, known = self.labels
        return metrics | ({"accuracy": right / known} if known else {})


def sums_and_count(terms: tuple[Tensor, ...]) -> Tensor:
    """The sums of per-datum terms, each [B], and how many data there are, shape [terms + 1]; of 16
    bits in 32."""
    parts = [full_precision(term.detach()) for term in terms]
    return torch.stack([*parts, torch.ones_like(parts[0])]).sum(1)


class Window:
    """Means of named terms over the batches since the last reading, and the speed.

    Adding a batch syncs nothing; :meth:`read` does, once. The clock runs between :meth:`resume` and
    :meth:`pause`, and its first reading, with all that is done only once, gives no speed.
    """

    def __init__(self) -> None:
        self._sums: list[Tensor] = []
        self._images = 0
        self._seconds = 0.0  # since the last reading
        self._total_seconds = 0.0  # until the last reading
        self._resumed: float | None = None
        self._warm = False

    def add(self, sums: Tensor, images: int) -> None:
        """Adds a batch by its :func:`sums_and_count`; zeroed in place later, it does not count.

        `images` were processed, in all processes together.
        """
        self._sums.append(sums)
        self._images += images

    def resume(self) -> None:
        self._resumed = time.perf_counter()

    def pause(self) -> None:
        if self._resumed is not None:
            self._seconds += time.perf_counter() - self._resumed
            self._resumed = None

    def read(self, names: tuple[str, ...]) -> dict[str, float]:
        """The means by name, over all processes, and `perf/...`; then starts anew.

        `perf/images_per_second` since the last reading, `perf/seconds` on the clock in all.
        """
        *sums, count = self._total().tolist()
        metrics = {n: total / count for n, total in zip(names, sums, strict=True) if count}
        running = self._resumed is not None
        self.pause()
        if self._warm and self._seconds:
            metrics["perf/images_per_second"] = self._images / self._seconds
        self._total_seconds += self._seconds
        metrics["perf/seconds"] = self._total_seconds
        self._sums, self._images, self._seconds, self._warm = [], 0, 0.0, True
        if running:
            self.resume()
        return metrics

    def _total(self) -> Tensor:
        return all_sum(torch.stack(self._sums).sum(0))

    def state_dict(self) -> dict[str, Any]:
        """The terms of every batch in every process; to be called by all of them.

        Not their total: a sum that is interrupted and resumed would round differently.
        """
        terms = each(torch.stack(self._sums)) if self._sums else None  # [processes, batches, terms]
        return {"terms": terms, "seconds": self._total_seconds}

    def load_state_dict(self, state: dict[str, Any], device: torch.device) -> None:
        """Goes on from there; with another number of processes, from the last reading."""
        terms, self._total_seconds = state.get("terms"), state["seconds"]  # 0.1.0 has none
        self._sums = []
        if terms is not None and len(terms) == world_size():
            self._sums = list(terms[rank()].to(device))
