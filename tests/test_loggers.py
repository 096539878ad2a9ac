import csv
from unittest import mock

import pytest
import torch
import wandb
from stand_ins import Model, batches, trainer

from vae_lab import loggers
from vae_lab.loggers import CSVLogger, wandb_logger


@pytest.fixture
def path(tmp_path):
    return tmp_path / "run" / "metrics.csv"


def table(path):
    with path.open(newline="") as file:
        return [{k: v for k, v in row.items() if v} for row in csv.DictReader(file)]


def test_nothing_on_disk_before_the_first_metric(path):
    CSVLogger(path).save()
    assert not path.parent.exists()


def test_row_is_on_disk_after_the_call(path):
    CSVLogger(path).log_metrics({"epoch": 0, "train/elbo": torch.tensor(-1.5)}, step=3)
    assert path.read_text() == "step,epoch,train/elbo\n3,0,-1.5\n"


def test_one_step_is_one_row(path):
    logger = CSVLogger(path)
    for step, metrics in [
        (1, {"a": 1.0}),
        (2, {"a": 2.0}),
        (2, {"a": 2.5, "b": 9.0}),
        (3, {"b": 0.1}),
    ]:
        logger.log_metrics(metrics, step)
    assert table(path) == [
        {"step": "1", "a": "1.0"},
        {"step": "2", "a": "2.5", "b": "9.0"},
        {"step": "3", "b": "0.1"},
    ]


def test_merging_into_a_longer_row_leaves_nothing_behind(path):
    logger = CSVLogger(path)
    logger.log_metrics({"a": -0.123456789}, 1)
    logger.log_metrics({"a": 1.0}, 1)
    assert path.read_text() == "step,epoch,a\n1,,1.0\n"


def test_new_columns_keep_the_rows_and_leave_no_partial_file(path):
    logger = CSVLogger(path)
    logger.log_metrics({"a": 1.0}, 1)
    logger.log_metrics({'odd, "name"': 2.0}, 2)
    assert table(path) == [{"step": "1", "a": "1.0"}, {"step": "2", 'odd, "name"': "2.0"}]
    assert list(path.parent.iterdir()) == [path]


def test_step_defaults_to_the_last_row(path):
    logger = CSVLogger(path)
    logger.log_metrics({"a": 1.0}, 7)
    logger.log_metrics({"b": 2.0})
    assert table(path) == [{"step": "7", "a": "1.0", "b": "2.0"}]


def test_rewound_run_equals_an_uninterrupted_one(path, tmp_path):
    whole, first = CSVLogger(tmp_path / "whole.csv"), CSVLogger(path)
    for step in range(1, 9):
        whole.log_metrics({"a": step / 3}, step)
    for step in range(1, 7):
        first.log_metrics({"a": step / 3}, step)
    resumed = CSVLogger(path)
    resumed.rewind(4)
    for step in range(5, 9):
        resumed.log_metrics({"a": step / 3}, step)
    assert path.read_bytes() == whole.path.read_bytes()


def test_without_rewinding_the_rows_would_be_there_twice(path):
    for _ in range(2):
        logger = CSVLogger(path)
        for step in (1, 2):
            logger.log_metrics({"a": 1.0}, step)
    assert [row["step"] for row in table(path)] == ["1", "2", "1", "2"]


def test_rewinding_nothing_is_nothing(path):
    CSVLogger(path).rewind(4)
    assert not path.exists()


def test_line_cut_short_by_a_kill_is_dropped(path):
    CSVLogger(path).log_metrics({"a": -103.5}, 1)
    path.write_text(path.read_text() + "2,,-10")
    CSVLogger(path).log_metrics({"a": -103.0}, 2)
    assert table(path) == [{"step": "1", "a": "-103.5"}, {"step": "2", "a": "-103.0"}]


@pytest.mark.parametrize("cut", [0, 3, 8, 10])
def test_rows_wait_for_room_on_the_disk(tmp_path, monkeypatch, cut):
    """Also where the last row was to grow, and only a part of it has reached the file."""
    logged = [
        ({"a": 1 / 3, "b": 0.5, "epoch": 0}, 1),
        ({"a": 2.0}, 2),
        ({"b": 3.5}, 2),
        ({"a": 4.0}, 3),
    ]
    whole, full = CSVLogger(tmp_path / "whole.csv"), CSVLogger(tmp_path / "full.csv")
    for metrics, step in logged:
        whole.log_metrics(metrics, step)
    put = CSVLogger._put

    def no_room(self, row, replace_last):
        with self.path.open("r+b") as file:  # in the middle of the line
            file.seek(self._offset if replace_last else self.path.stat().st_size)
            file.write(loggers._line(row.get(name, "") for name in self._columns)[:cut])
        raise OSError(28, "No space left on device")

    full.log_metrics(*logged[0])
    full.log_metrics(*logged[1])
    monkeypatch.setattr(CSVLogger, "_put", no_room)
    with pytest.warns(UserWarning, match="No space left .*; the rows of .*full.csv wait for room"):
        full.log_metrics(*logged[2])
    full.log_metrics(*logged[3])  # warned of once
    with pytest.warns(UserWarning, match="no room for the last rows of .*full.csv"):
        full.finalize("success")
    monkeypatch.setattr(CSVLogger, "_put", put)
    full.finalize("success")
    assert full.path.read_text() == whole.path.read_text()


@pytest.mark.parametrize(
    ("method", "arguments"),
    [
        ("log_metrics", [{"a": 1.0}, 3]),
        ("log_image", ["samples", [torch.zeros(1, 2, 2)], 3]),
        ("log_hyperparams", [{"seed": 1}]),
    ],
)
def test_wandb_that_fails_is_warned_of_once_and_left(tmp_path, method, arguments):
    logger = wandb_logger(str(tmp_path))
    logger._experiment = run = mock.create_autospec(wandb.Run, instance=True)
    gone = ConnectionResetError("its process is gone")
    run.log.side_effect = run.config.update.side_effect = gone
    with pytest.warns(UserWarning, match="W&B: its process is gone; nothing more") as warned:
        getattr(logger, method)(*arguments)
        getattr(logger, method)(*arguments)
    assert len(warned) == 1
    assert run.log.call_count + run.config.update.call_count == 1
    assert logger.experiment.disabled


def test_wandb_that_fails_at_the_end_is_warned_of(monkeypatch):
    monkeypatch.setattr(wandb, "finish", mock.Mock(side_effect=OSError("its process is gone")))
    with pytest.warns(UserWarning, match="W&B: its process is gone; metrics.csv has everything"):
        loggers.end(0)


def test_as_the_trainers_logger(path):
    trainer(logger=CSVLogger(path)).fit(Model(), batches(), batches(1))
    rows = table(path)
    assert [row["epoch"] for row in rows] == ["0", "1", "2"]
    assert all(float(row["val/elbo"]) < 0 for row in rows)
    assert [p.name for p in path.parent.iterdir()] == ["metrics.csv"]  # no hparams.yaml
