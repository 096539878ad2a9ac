"""The codes of a codebook, and what keeps all of them in use: where they start, what they follow,
and where those that nothing is near to begin anew."""

import torch
from torch import Tensor, nn

from ..distributed import all_sum, each, rank
from ..precision import FullPrecision

USAGE_DECAY = 0.95  # of the usage, where the codes follow the gradient
CHANCES = 10  # how often a code is met, if all are alike, before its usage tells anything
SPREAD = 2654435761  # a prime near 2^32 / g, for the golden ratio g: multiples of it, mod N, spread


class Codes(FullPrecision):
    r"""K codes of D dimensions, and so many books of them.

    Training learns from each batch's h, before they are quantised, in all processes together:

    * At the first one the codes become rows of h.
    * With a `decay` d the codes follow the mean of the h that chose them, no gradient:
      :math:`u_k \leftarrow d \, u_k + (1 - d) \, n_k`,
      :math:`e_k \leftarrow (d \, u_k e_k + (1 - d) \, s_k) / (\text{the new } u_k)`,
      with n_k the share of h that chose code k, and s_k their sum over the number of all h.
    * A code whose usage u_k falls below `revive` / K becomes a row of h, and its usage 1 / K. Where
      a batch has few h, that would happen to codes that are used, by chance: so no code begins anew
      before it could have been chosen ten times.

    Args:
        shape: (books, K, D).
        decay: d; None: the codes follow the gradient.
        revive: 0: no code is revived.

    Attributes:
        usage: u, [books, K].
        batches: how many were learned from; a row is chosen by this number, and not by chance.
        revived: how many codes have begun anew, [books].

    Source: van den Oord, Vinyals & Kavukcuoglu 2017, arXiv:1711.00937, appendix A.1 (averages);
    Dhariwal et al., *Jukebox*, 2020, arXiv:2005.00341, section 3.1 (revival)
    """

    codes: Tensor
    usage: Tensor
    batches: Tensor
    revived: Tensor

    def __init__(self, shape: tuple[int, int, int], decay: float | None, revive: float) -> None:
        super().__init__()
        books, categories, _ = shape
        self.decay, self.revive = decay, revive
        start = torch.randn(shape)  # until it has met data
        if decay is None:
            self.codes = nn.Parameter(start)
        else:
            self.register_buffer("codes", start)
        self.register_buffer("usage", torch.zeros(books, categories))
        self.register_buffer("batches", torch.zeros((), dtype=torch.int64))
        self.register_buffer("revived", torch.zeros(books, dtype=torch.int64))

    @property
    def perplexity(self) -> Tensor:
        """Of the usage: K where all codes are used alike; mean over the books, shape []."""
        usage = self.usage.double()
        shares = usage / usage.sum(-1, keepdim=True).clamp_min(torch.finfo(usage.dtype).tiny)
        return torch.special.entr(shares).sum(-1).exp().mean()

    @torch.no_grad()
    def learn(self, h: Tensor, chosen: Tensor) -> None:
        """Learns from a batch.

        Args:
            h: [N, books, D].
            chosen: the probability of each code, [N, books, K]; a number also where h is none.
        """
        finite = h.isfinite().all(-1, keepdim=True)
        h = h.where(finite, 0.0)
        counts = each(h.new_full((), len(h), dtype=torch.int64))  # [processes]
        total = counts.sum()
        counted = torch.cat([h, finite.to(h)], -1)
        sums = torch.einsum("ngk,ngd->gkd", chosen, counted)  # of h, and how many there are
        packed = torch.cat([sums, self._rows(h, counts)], -1)
        sums, shares, rows = all_sum(packed).tensor_split([h.shape[-1], h.shape[-1] + 1], -1)
        first = self.batches == 0
        self._follow(sums / total, shares.squeeze(-1) / total)
        self._revive(rows, first, total)
        self.batches += 1

    def _follow(self, sums: Tensor, shares: Tensor) -> None:
        decay = self._usage_decay
        before = decay * self.usage
        usage = before + (1 - decay) * shares
        if self.decay is not None:
            moved = before.unsqueeze(-1) * self.codes + (1 - decay) * sums
            met = usage.unsqueeze(-1) > 0
            new = moved / usage.unsqueeze(-1).where(met, 1.0)
            self.codes.copy_(torch.where(met, new, self.codes))
        self.usage.copy_(usage)

    @property
    def _usage_decay(self) -> float:
        return USAGE_DECAY if self.decay is None else self.decay

    def _revive(self, rows: Tensor, first: Tensor, total: Tensor) -> None:
        categories = self.usage.shape[-1]
        batches = CHANCES * categories / total  # without it, until a code is missed
        least = (self._usage_decay ** (batches - 1).clamp_min(0)).clamp_max(self.revive)
        dead = first | (self.usage < least / categories)
        self.codes.copy_(torch.where(dead.unsqueeze(-1), rows, self.codes))
        self.usage.masked_fill_(dead, 1 / categories)
        self.revived += (dead & ~first).sum(-1)

    def _rows(self, h: Tensor, counts: Tensor) -> Tensor:
        """Rows of h that are spread over all processes' batch, one a code, [books, K, D]; zeros of
        those that another process has."""
        total = counts.sum().clamp_min(1)
        own, before = counts[rank()], counts[: rank()].sum()
        code = torch.arange(self.usage.shape[-1], device=h.device)
        wanted = (code * total // len(code) + self.batches * SPREAD) % total - before
        here = (wanted >= 0) & (wanted < own)
        rows = h[wanted.clamp(0, len(h) - 1)].movedim(0, 1)  # [books, K, D]
        return rows * here.unsqueeze(-1)
