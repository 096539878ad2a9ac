"""Loggers: a CSV file that survives a resume, and Weights & Biases with or without an account."""

import contextlib
import csv
import functools
import io
import os
import re
import secrets
import sys
from argparse import Namespace
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from .lightning import begin_offline, turn_off
from .optional import needs
from .storage import files
from .storage.sources import UPLOAD_SECONDS, artifact, first_line

with needs("train", __name__):
    from pytorch_lightning.loggers import Logger, WandbLogger
    from pytorch_lightning.utilities.rank_zero import rank_zero_only, rank_zero_warn

INIT_SECONDS = 30  # that a W&B server has for its first answer

Row = dict[str, Any]


class CSVLogger(Logger):
    """One table of all metrics: `step`, `epoch`, then a column per metric in the order of arrival.

    Every call reaches the file at once. Consecutive calls with the same step share a row; a metric
    seen for the first time adds a column, for which the file is written anew and replaced. An
    existing file is continued: a resumed run first calls `rewind` with the step it resumes from.
    Rows for which the disk has no room wait in memory.
    (Lightning's CSVLogger deletes the metrics.csv that it finds, in `_check_log_dir_exists`.)

    Args:
        path: The file to write; its folder is created with the first metric, not before.
    """

    def __init__(self, path: str | Path) -> None:
        super().__init__()
        self.path = Path(path)
        self._waiting: list[tuple[Mapping[str, Any], int | None]] = []  # for room on the disk
        self._warned = False
        self._columns: list[str] = []  # of the file; empty until the file has been looked at
        self._last: Row = {}  # the file's last row,
        self._offset = 0  # and the byte it begins at

    @property
    def name(self) -> str:
        """Empty, so that Lightning derives no subfolder from it."""
        return ""

    @property
    def version(self) -> str:
        """Empty, so that Lightning derives no subfolder from it."""
        return ""

    @property
    def save_dir(self) -> str:
        """The run's folder."""
        return str(self.path.parent)

    @property
    def log_dir(self) -> str:
        """The run's folder."""
        return self.save_dir

    @rank_zero_only
    def log_hyperparams(
        self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any
    ) -> None:
        """Nothing: the run keeps its resolved config beside the file."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Writes scalars; a step of None means the step of the last row."""
        self._waiting.append((metrics, step))
        self._write_waiting()

    def finalize(self, status: str) -> None:
        self._write_waiting()
        if self._waiting:
            rank_zero_warn(f"there is no room for the last rows of {self.path}")

    def _write_waiting(self) -> None:
        try:
            while self._waiting:
                self._write(*self._waiting[0])
                del self._waiting[0]
            self._warned = False
        except OSError as error:
            if not self.path.exists():
                raise
            self._keep_last()
            self._columns = []  # the file is read again, without a line that was cut short
            if not self._warned:
                self._warned = True
                rank_zero_warn(f"{error.strerror}; the rows of {self.path} wait for room")

    def _keep_last(self) -> None:
        """The file's last row waits, too: a part of what was to replace it may be there instead."""
        metrics, step = self._waiting[0]
        last = int(self._last.get("step", 0))
        if self._last and step in (None, last):
            self._waiting[0] = (self._last | dict(metrics), last)
        elif self._last:
            self._waiting.insert(0, (self._last, last))

    def _write(self, metrics: Mapping[str, Any], step: int | None) -> None:
        if not self._columns:
            self._rewrite(*self._read())
        last_step = int(self._last.get("step", 0))
        row = {name: _plain(value) for name, value in metrics.items()}
        row["step"] = last_step if step is None else step
        merge = bool(self._last) and row["step"] == last_step
        self._put(self._last | row if merge else row, replace_last=merge)

    @rank_zero_only
    def rewind(self, step: int) -> None:
        """Drops the rows later than `step`: the resumed run is going to write them again."""
        if self.path.exists():
            columns, rows = self._read()
            self._rewrite(columns, [row for row in rows if int(row["step"]) <= step])

    def _put(self, row: Row, replace_last: bool) -> None:
        new = [name for name in row if name not in self._columns]
        if new:
            columns, rows = self._read()
            self._rewrite(columns + new, rows)
        if not replace_last:
            self._offset = self.path.stat().st_size
        with self.path.open("r+b") as file:
            file.seek(self._offset)
            file.write(_line(row.get(name, "") for name in self._columns))
            file.truncate()
        self._last = row

    def _read(self) -> tuple[list[str], list[Row]]:
        """Columns and rows on disk, without a last line that a kill or a full disk cut short."""
        whole = self.path.read_bytes().rpartition(b"\n")[0] if self.path.exists() else b""
        reader = csv.DictReader(io.StringIO(whole.decode()))
        return list(reader.fieldnames or ["step", "epoch"]), list(reader)

    def _rewrite(self, columns: list[str], rows: list[Row]) -> None:
        lines = [_line(columns), *(_line(row.get(name, "") for name in columns) for row in rows)]
        files.write(self.path, b"".join(lines))
        self._columns, self._last = columns, rows[-1] if rows else {}
        self._offset = sum(map(len, lines[:-1]))


def _line(values: Iterable[Any]) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(values)
    return text.getvalue().encode()


def _plain(value: Any) -> int | float | str:
    return value if isinstance(value, int | str) else float(value)  # text is the file's own


def _while_it_lasts(method: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(method)
    def guarded(self: "_WandbLogger", *args: Any, **kwargs: Any) -> None:
        try:
            method(self, *args, **kwargs)
        except Exception as error:  # whatever is wrong over there
            self.give_up(error)

    return guarded


class _WandbLogger(WandbLogger):
    """Lightning's; where W&B fails in mid-run, there is one warning and training goes on."""

    log_hyperparams = _while_it_lasts(WandbLogger.log_hyperparams)
    log_metrics = _while_it_lasts(WandbLogger.log_metrics)
    log_image = _while_it_lasts(WandbLogger.log_image)

    def give_up(self, error: Exception) -> None:
        """From here on nothing more is logged to W&B, nor tried."""
        import wandb

        rank_zero_warn(
            f"W&B: {first_line(error)}; nothing more is logged to it, metrics.csv has everything"
        )
        with contextlib.suppress(Exception):  # its process may be gone
            wandb.teardown()
        turn_off(self)


def wandb_logger(
    run_dir: str,
    project: str = "vae_lab",
    entity: str | None = None,
    name: str | None = None,
    group: str | None = None,
    tags: Sequence[str] = (),
    mode: Literal["online", "offline", "disabled", "shared"] | None = None,
) -> WandbLogger:
    """A W&B logger that asks no question: without credentials it works offline.

    Args:
        run_dir: the run's folder; a run that is resumed there goes on as the same W&B run.
        project: the project in W&B; entity, group and tags are W&B's words, too.
        name: of the run in W&B; None (null): that of the folder.
        mode: None (null): WANDB_MODE if that is set, else online with credentials and offline
            without.
    """
    with needs("train", "logger=wandb"):
        import wandb  # here, as the import takes over a second

    wandb.setup(wandb.Settings(silent=True))  # here, so that it is silent from the beginning
    chosen = mode or os.environ.get("WANDB_MODE")
    if not chosen and not wandb.login(prompt=False, verify=False):
        chosen = "offline"
        rank_zero_only(print)(
            "W&B: no credentials found, logging offline; upload with `wandb sync`"
        )
    folder = Path(run_dir)
    return _WandbLogger(
        name=name or folder.name,
        save_dir=folder,
        project=project,
        id=_wandb_id(folder),
        entity=entity,
        group=group,
        tags=list(tags),
        mode=chosen or "online",
        resume="allow",
        settings=wandb.Settings(
            silent=True, init_timeout=INIT_SECONDS, finish_timeout=UPLOAD_SECONDS
        ),
    )


def begin(logger: WandbLogger) -> None:
    """Begins the W&B run; offline, with one warning, where the server or the key is no good."""
    import wandb

    try:
        logger.experiment  # noqa: B018  it is made by being looked at
    except wandb.errors.Error as error:
        wandb.teardown()  # or the failed run would hold on to its id
        wandb.setup(wandb.Settings(silent=True))
        if not begin_offline(logger):
            raise ValueError(f"W&B: {first_line(error)}; type logger.wandb.mode=offline") from error
        rank_zero_warn(f"W&B: {first_line(error)}; logging offline, upload with `wandb sync`")


def end(exit_code: int) -> None:
    """Ends the W&B run if there is one, or the jobs of a sweep would be one run."""
    if wandb := sys.modules.get("wandb"):
        try:
            wandb.finish(exit_code)
        except Exception as error:  # whatever is wrong over there
            rank_zero_warn(f"W&B: {first_line(error)}; metrics.csv has everything")
            with contextlib.suppress(Exception):
                wandb.teardown()


def upload_release(logger: WandbLogger, folder: Path) -> str:
    """Gives a release to W&B, as an artifact of the run with the card as its metadata.

    Its name is the run's, its alias `best`. Offline it is staged, for `wandb sync` to upload.

    Returns:
        A line that says where it went. It never raises: the run that is logged has done its work.
    """
    run = logger.experiment
    if run.disabled:
        return "W&B is disabled: the release stays here"
    name = re.sub(r"[^\w.-]", "-", run.name or run.id)
    try:
        logged = run.log_artifact(artifact(folder, name), aliases=["latest", "best"])
        if run.offline:
            offline = Path(run.dir).parent
            return f"W&B: release staged as {name}; upload with `wandb sync {offline}`"
        version = logged.wait(UPLOAD_SECONDS).version
    except Exception as error:  # whatever is wrong over there
        reason = " ".join(str(error).split())
        return f"W&B: the release was not uploaded ({reason}); it is in {folder}"
    return f"W&B: release uploaded, wandb:{run.entity}/{run.project}/{name}:{version}"


def _wandb_id(folder: Path) -> str:
    """The id of the folder's W&B run, new ones included."""
    path = folder / "wandb-id.txt"
    if path.is_file():
        return path.read_text().strip()
    return secrets.token_hex(4)
