"""The data that were passed to :func:`vae_lab.fit`, read and checked, in the caller's order."""

from collections.abc import Mapping
from typing import Any

from ..conditions import Labels
from ..data.columns import OF_VALUES
from ..description import undisturbed
from ..inputs import wrong_shape
from ..likelihoods import Likelihood
from ..vae import VAE
from .examples import Examples, examples, held_out, names_columns
from .parts import part


def read(
    x: Any,
    y: Any,
    val: Any,
    val_size: float,
    columns: Any,
    model: VAE | None = None,
    likelihood: Likelihood | str | None = None,
) -> tuple[Examples, Examples | None]:
    """The data to train on, and the data to validate on; for the arguments see :func:`.fit`.

    Raises:
        ValueError: they do not fit the parts or each other, or would be left aside.
    """
    chosen = likelihood if model is None else model.likelihood
    schema = getattr(chosen, "columns", [])
    if columns is not None and (schema or model is not None):
        owner = "likelihood" if model is None else "model"
        raise ValueError(f"the {owner} says what columns there are: leave out columns, or {owner}")
    condition = None if model is None else model.condition
    fits = isinstance(condition, Labels) == isinstance(y, str)  # or they name attributes
    names = getattr(condition, "names", None) if fits else None
    data = examples(x, y, columns, classes=names or (), schema=schema)
    if likelihood is not None:
        _check_kinds(columns, likelihood)
    if model is not None and data.shape != model.shape:
        got = (len(data.stored), *data.given)
        raise ValueError(wrong_shape(got, model.shape, bool(model.latent.grid), schema))
    held = None
    if val is not None:
        val, y_val = val if isinstance(val, tuple) else (val, y if names_columns(y) else None)
        held = examples(val, y_val, data.columns or columns, "val", data.classes, schema)
        data, held = _alike(data, held)
    _check_labels(data, held, y, model)
    if not data.are_bytes:
        _check_values(chosen, data, held)
    return held_out(data, val_size) if held is None else (data, held)


def _alike(data: Examples, held: Examples) -> tuple[Examples, Examples]:
    if held.given != data.given or held.are_bytes != data.are_bytes:
        raise ValueError(
            f"val must be data like x, {data.stored.dtype} of shape {list(data.given)} each, got "
            f"{held.stored.dtype} of shape {list(held.given)}"
        )
    missing = data.missing or held.missing
    return data._replace(missing=missing), held._replace(missing=missing)


def _check_kinds(columns: Any, likelihood: Likelihood | str) -> None:
    """Refuses kinds that say nothing of how a column is read, beside a likelihood without kinds."""
    kinds = columns.values() if isinstance(columns, Mapping) else ()
    if lost := [kind for kind in kinds if kind not in (None, *OF_VALUES)]:
        raise ValueError(
            f"columns={columns!r} has the kind {lost[0]!r}, and likelihood={likelihood!r} has no "
            "kinds: leave out one of them"
        )


def _check_labels(data: Examples, held: Examples | None, y: Any, model: VAE | None) -> None:
    """Refuses labels that nothing would be done with, and a lack of those that are needed."""
    condition = data.condition if model is None else model.condition
    if condition is None:
        if not data.unlabelled:
            raise ValueError("the model is not conditioned on y: leave out y, or model")
        if held is not None and not held.unlabelled:
            raise ValueError("val has labels, and x has none: pass y too, or leave them out")
    elif model is not None and not condition.inferred and data.unlabelled:
        condition.vector(None, None)  # which says what y is to be
    classes = getattr(condition, "classes", 0)
    if model is not None and isinstance(y, str) and len(data.classes) != classes:
        raise ValueError(
            f"y={y!r} has {len(data.classes)} classes, the model {classes}: pass labels as numbers"
        )


def _check_values(
    likelihood: Likelihood | str | None, data: Examples, held: Examples | None
) -> None:
    """Refuses what the likelihood does not take, by the row where the caller has it."""
    with undisturbed():
        chosen = part("likelihood", data.likelihood if likelihood is None else likelihood).cpu()
        chosen.bind(data.shape)
    for name, some in {"x": data, "val": held}.items():
        try:
            if some is not None:
                chosen.check(some.stored)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
