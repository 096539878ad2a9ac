"""Distinct states of independent discrete variables: the best of them, and draws that all differ.

Log-probabilities of the variables' categories are [*B, L, K], states [k, *B, L]. Inside, the states
of one datum stand side by side, [*B, k, L].
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from .relaxations import gumbel, uniform


def most_probable(log_pi: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """The `size` most probable states, the best first.

    Of the best k states none differs from the very best but in those k - 1 variables whose first
    two categories are the closest: to change another one costs more than each of these changes
    alone. The best states of both halves of these variables pair up to the best of them all; so
    upwards from single variables, each level in one step.

    Returns: The states, [size, *B, L]; their log-probabilities, [size, *B].
    """
    best, category = log_pi.topk(min(2, log_pi.shape[-1]))
    gap = best[..., 0] - best[..., -1]  # [*B, L]
    closest = gap.topk(min(max(size - 1, 1), gap.shape[-1]), largest=False).indices
    log_p, changes = _merged(_rows(log_pi, closest), size)
    decided = best[..., 0].scatter(-1, closest, 0).sum(-1, keepdim=True)
    shape = (*changes.shape[:-1], gap.shape[-1])
    states = category[..., :1].movedim(-1, -2).expand(shape)
    states = states.scatter(-1, closest.unsqueeze(-2).expand_as(changes), changes)
    return states.movedim(-2, 0), (log_p + decided).movedim(-1, 0)


def _merged(log_pi: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """The best states of few variables, [*B, k] and [*B, k, L]."""
    *batch, variables, categories = log_pi.shape
    levels = (variables - 1).bit_length()
    certain = torch.full_like(log_pi[..., :1, :], -torch.inf)  # fills up to a power of two
    certain[..., 0] = 0
    padding = certain.expand(*batch, 2**levels - variables, categories)
    log_p, best = _top(torch.cat([log_pi, padding], -2), size)
    states = best.unsqueeze(-1)  # [*B, groups, k, variables of a group]
    for _ in range(levels):
        log_p, left, right = _best_pairs(log_p[..., ::2, :], log_p[..., 1::2, :], size)
        halves = _rows(states[..., ::2, :, :], left), _rows(states[..., 1::2, :, :], right)
        states = torch.cat(halves, -1)
    return log_p.squeeze(-2), states.squeeze(-3)[..., :variables]


def _best_pairs(left: Tensor, right: Tensor, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """The largest sums of two falling lists, [*, m] and [*, n]; where in each their terms stand.

    The pair (i, j) comes after (i + 1)(j + 1) - 1 others, so that few of all m n can be wanted.
    """
    m, n = left.shape[-1], right.shape[-1]
    numbers = torch.arange(m * n, device=left.device).reshape(m, n)
    sums, pairs, start = [], [], 0
    while start < m:
        stop, width = 2 * start + 1, size // (start + 1)
        sums.append((left[..., start:stop, None] + right[..., None, :width]).flatten(-2))
        pairs.append(numbers[start:stop, :width].flatten())
        start = stop
    best, index = _top(torch.cat(sums, -1), size)
    pair = torch.cat(pairs)[index]
    return best, pair // n, pair % n


def draw_distinct(log_pi: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """`size` draws without replacement; returns as :func:`most_probable` does.

    Where fewer states than that have a probability, what is drawn after them has none either.
    """
    states = _free(log_pi, size)  # until it is their turn, [*B, k, L]
    tree = _Tree(log_pi, states)
    for number in range(1, size):
        path, variable, category = tree.leave(1)
        row = states[..., number : number + 1, :]
        row.copy_(tree.departed(row, path, variable, category))
        tree.add(number, path, variable)
    return states.movedim(-2, 0), tree.log_p.movedim(-1, 0)


def draw_outside(seen: Tensor, log_pi: Tensor, num_samples: int) -> Tensor:
    """Independent draws of what is none of the distinct states `seen`, [num_samples, *B, L]."""
    states = seen.movedim(0, -2)
    states = _rows(states, _lexicographic(states, log_pi.shape[-1]))
    tree = _Tree(log_pi, states)
    tree.add(1, *_forks(states))
    states = tree.departed(_free(log_pi, num_samples), *tree.leave(num_samples))
    return states.movedim(-2, 0)


class _Tree:
    """Distinct states as paths from one root, through a node a variable.

    Each path but the first leaves a node of an earlier one, its parent, by a category that no path
    has taken there. The nodes up to that one belong to earlier paths; those after it are its own.

    Args:
        states: all paths that there will be, [*B, k, L]; the first is there from the beginning.
    """

    def __init__(self, log_pi: Tensor, states: Tensor) -> None:
        self.log_pi, self.log_others, self.states = log_pi, _log_others(log_pi), states
        self.parent = torch.zeros_like(states[..., 0])  # [*B, k]
        self.variable = self.parent - 1  # at which the path leaves its parent
        self.category = self.parent.clone()  # by which
        nothing = torch.full_like(states, -torch.inf, dtype=log_pi.dtype)  # [*B, k, L]
        self.log_reached, self.log_left = nothing, nothing.clone()  # the node; what leaves it
        self.log_leaves, self.log_p = nothing[..., 0].clone(), nothing[..., 0].clone()
        self._own_nodes(slice(0, 1), _along(log_pi, states[..., :1, :]))

    def add(self, number: int, parent: Tensor, variable: Tensor) -> None:
        """The paths from `number` on, which leave `parent` at `variable`, both [*B, m]."""
        new = slice(number, number + parent.shape[-1])
        states = self.states[..., new, :]
        self.parent[..., new], self.variable[..., new] = parent, variable
        self.category[..., new] = states.gather(-1, variable.unsqueeze(-1)).squeeze(-1)
        nothing_left = self.log_leaves.amax(-1, keepdim=True) == -torch.inf
        along = _along(self.log_pi, states).masked_fill(nothing_left.unsqueeze(-1), -torch.inf)
        self._own_nodes(new, along)
        self._take(parent, variable)

    def _own_nodes(self, new: slice, along: Tensor) -> None:
        """Sets the probabilities of reaching and of leaving each node of the new paths.

        Paths that leave these nodes later are not yet taken into account: `_take` does that.
        """
        reached = F.pad(along[..., :-1], (1, 0)).cumsum(-1)
        position = torch.arange(along.shape[-1], device=along.device)
        others = position <= self.variable[..., new, None]
        left = reached + _along(self.log_others, self.states[..., new, :])
        left = left.masked_fill(others, -torch.inf)
        self.log_reached[..., new, :], self.log_left[..., new, :] = reached, left
        self.log_leaves[..., new], self.log_p[..., new] = left.logsumexp(-1), along.sum(-1)

    def _take(self, path: Tensor, variable: Tensor) -> None:
        """Weighs nodes anew that paths have left, [*B, m]."""
        node = path * self.states.shape[-1] + variable
        reached = self.log_reached.flatten(-2).gather(-1, node)
        left = reached + self.untaken(path, variable).logsumexp(-1)
        flat = self.log_left.view(-1, self.log_left.shape[-2] * self.log_left.shape[-1])
        datum = torch.arange(len(flat), device=flat.device).unsqueeze(-1)
        flat[datum, node.reshape(len(flat), node.shape[-1])] = left.reshape(
            len(flat), node.shape[-1]
        )
        leaves = _rows(self.log_left, path).logsumexp(-1)
        self.log_leaves = self.log_leaves.scatter(-1, path, leaves)

    def untaken(self, path: Tensor, variable: Tensor) -> Tensor:
        """Log-probabilities of the categories that no path takes at these nodes, [*B, m, K]."""
        own = _rows(self.states, path).gather(-1, variable.unsqueeze(-1))
        leaves = self.parent.unsqueeze(-2) == path.unsqueeze(-1)  # [*B, m, k]
        leaves = leaves & (self.variable.unsqueeze(-2) == variable.unsqueeze(-1))
        taken = torch.where(leaves, self.category.unsqueeze(-2), own)
        return _rows(self.log_pi, variable).scatter(-1, taken, -torch.inf)

    def leave(self, num_samples: int) -> tuple[Tensor, Tensor, Tensor]:
        """Draws paths, nodes of theirs, and categories that no path takes there, [*B, S] each."""
        path = _draw(_repeated(self.log_leaves, num_samples, -2))
        variable = _draw(_rows(self.log_left, path))
        return path, variable, _draw(self.untaken(path, variable))

    def departed(self, free: Tensor, path: Tensor, variable: Tensor, category: Tensor) -> Tensor:
        """The states that follow a path, leave it there, and go on as `free`, [*B, S, L]."""
        variable = variable.unsqueeze(-1)
        followed = _rows(self.states, path).scatter(-1, variable, category.unsqueeze(-1))
        position = torch.arange(free.shape[-1], device=free.device)
        return torch.where(position <= variable, followed, free)


def _lexicographic(states: Tensor, categories: int) -> Tensor:
    """The order that sorts states [*B, k, L], so that common paths are next to each other."""
    digits = int(62 / math.log2(max(categories, 2)))  # that an int64 holds
    order = torch.arange(states.shape[-2], device=states.device).expand(states.shape[:-1])
    for part in reversed(states.split(digits, -1)):
        place = torch.arange(part.shape[-1] - 1, -1, -1, device=states.device)
        key = (part * categories**place).sum(-1).gather(-1, order)
        order = order.gather(-1, key.argsort(dim=-1, stable=True))
    return order


def _forks(states: Tensor) -> tuple[Tensor, Tensor]:
    """Parents of all sorted states but the first, and the variables where they part, [*B, k - 1].

    A state's parent is the last one before it that has branched off higher up.
    """
    variable = (states[..., 1:, :] != states[..., :-1, :]).byte().argmax(-1)  # [*B, k - 1]
    higher = F.pad(variable, (1, 0), value=-1).unsqueeze(-2) < variable.unsqueeze(-1)
    number = torch.arange(states.shape[-2], device=states.device)
    before = number[1:].unsqueeze(-1) > number
    return (higher & before).mul(number).amax(-1), variable


def _log_others(log_pi: Tensor) -> Tensor:
    """log(1 - pi) of each category, also where pi is nearly 1."""
    likeliest = log_pi.argmax(-1, keepdim=True)
    others = log_pi.scatter(-1, likeliest, -torch.inf).logsumexp(-1, keepdim=True)
    return (-log_pi.exp()).log1p().scatter(-1, likeliest, others)


def _free(log_pi: Tensor, size: int) -> Tensor:
    """Independent draws, [*B, size, L]."""
    if log_pi.shape[-1] > 2:
        return _draw(_repeated(log_pi, size, -3))
    log_odds = _repeated(log_pi[..., 1] - log_pi[..., 0], 1, -2)
    shape = torch.Size((*log_odds.shape[:-2], size, log_odds.shape[-1]))
    u = uniform(shape, log_pi)
    return (u < log_odds.to(u.dtype).sigmoid()).long()


def _draw(log_p: Tensor) -> Tensor:
    """Categories by unnormalised log-probabilities, [*, K] -> [*]."""
    return (log_p + gumbel(log_p.shape, log_p)).argmax(-1)


def _top(x: Tensor, size: int) -> tuple[Tensor, Tensor]:
    return x.topk(min(size, x.shape[-1]))


def _rows(x: Tensor, index: Tensor) -> Tensor:
    """x[..., index, :], [*, k, n] at [*, m] -> [*, m, n]."""
    return x.gather(-2, index.unsqueeze(-1).expand(*index.shape, x.shape[-1]))


def _along(x: Tensor, states: Tensor) -> Tensor:
    """The entries of x [*B, L, K] at the categories of the states, [*B, m, L]."""
    each = _repeated(x, states.shape[-2], -3)
    return each.gather(-1, states.unsqueeze(-1)).squeeze(-1)


def _repeated(x: Tensor, size: int, dim: int) -> Tensor:
    """x with one more axis of this size, at the negative index `dim`."""
    shape = list(x.unsqueeze(dim).shape)
    shape[dim] = size
    return x.unsqueeze(dim).expand(shape)
