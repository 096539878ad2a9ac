import gzip
import os
import pickle
import struct
import tarfile
import warnings
from contextlib import nullcontext
from functools import partial
from hashlib import md5
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image

from datamodules.cifar10 import CIFAR10
from datamodules.fashion_mnist import FashionMNIST
from datamodules.folders import contents
from datamodules.idx import NAMES, read_idx
from datamodules.image_folder import ImageFolder
from datamodules.mnist import MNIST
from vae_lab.data.image_files import read, read_upload

DEBIAN = FashionMNIST.system[0]


def ready(datamodule):
    datamodule.prepare_data()
    datamodule.setup()
    return datamodule


def images(loader):
    return torch.cat([batch.x for batch in loader])


def in_memory(root, **settings):
    """All images of a folder, and their labels."""
    parts = ready(ImageFolder(root=str(root), batch_size=1, **settings))._splits.values()
    return [torch.cat([getattr(part, n) for part in parts]) for n in ("images", "labels")]


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A folder, and the address under which this machine serves it to itself."""
    monkeypatch.setenv("no_proxy", "*")
    folder = tmp_path / "server"
    folder.mkdir()
    handler = partial(Quiet, directory=folder)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as http:
        Thread(target=http.serve_forever, args=(0.01,), daemon=True).start()
        yield folder, f"http://127.0.0.1:{http.server_port}/"
        http.shutdown()


def idx_bytes(values):
    return (
        bytes((0, 0, 8, values.ndim))
        + struct.pack(f">{values.ndim}I", *values.shape)
        + bytes(values.astype(np.uint8))
    )


def write_idx(folder, train=20, test=7, gz=False):
    """Image number i of the training set, and -i of the test, has all pixels i and label i % 10."""
    folder.mkdir(parents=True, exist_ok=True)
    for names, numbers in (
        (NAMES[:2], np.arange(train)),
        (NAMES[2:], 255 - np.arange(test)),
    ):
        pictures = np.broadcast_to(numbers[:, None, None], (len(numbers), 28, 28))
        for name, values in zip(names, (np.ascontiguousarray(pictures), numbers % 10), strict=True):
            raw = idx_bytes(values)
            path = folder / (f"{name}.gz" if gz else name)
            path.write_bytes(gzip.compress(raw) if gz else raw)


def write_cifar(folder, per_file=4):
    """torchvision's files with a few images each, and the checksums that it shall ask for."""
    folder.mkdir(parents=True)
    sums = {}
    for number, name in enumerate([*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]):
        data = np.full((per_file, 3072), number, dtype=np.uint8)
        data[:, :1024] += 100  # the red channel
        sums[name] = pickle.dumps({"data": data, "labels": [number] * per_file})
    sums["batches.meta"] = pickle.dumps({"label_names": [*"abcdefghij"]})
    for name, raw in sums.items():
        (folder / name).write_bytes(raw)
    return {name: md5(raw).hexdigest() for name, raw in sums.items()}


@pytest.fixture
def small_cifar(tmp_path, monkeypatch):
    source = torchvision.datasets.CIFAR10
    sums = write_cifar(tmp_path / source.base_folder)
    listed = [[name, total] for name, total in sums.items()]
    monkeypatch.setattr(source, "train_list", listed[:5])
    monkeypatch.setattr(source, "test_list", listed[5:6])
    monkeypatch.setattr(source, "meta", {**source.meta, "md5": sums["batches.meta"]})
    return tmp_path


def write_pictures(folder, count=30):
    """Pictures of many sizes, formats and modes, in two subfolders and their subfolders."""
    kinds = [("png", "RGB"), ("jpg", "RGB"), ("png", "L"), ("bmp", "RGB"), ("webp", "RGBA")]
    for number in range(count):
        suffix, mode = kinds[number % len(kinds)]
        path = folder / ("cats" if number % 2 else "dogs/small") / f"{number}.{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        size = (20 + number, 40 - number)
        Image.new("L", size, color=8 * number).convert(mode).save(path)
    (folder / "notes.txt").write_text("no picture")


@pytest.mark.parametrize("gz", [False, True])
@pytest.mark.parametrize("subfolder", ["", "MNIST/raw"])
def test_mnist_reads_plain_and_gzipped_files(tmp_path, gz, subfolder):
    write_idx(tmp_path / subfolder, gz=gz)
    datamodule = ready(MNIST(root=str(tmp_path), batch_size=4, val_size=5))
    for stage, count in (("train", 15), ("val", 5), ("test", 7)):
        (x, y, size), *_ = getattr(datamodule, f"{stage}_dataloader")()
        assert x.shape[1:] == datamodule.shape == (1, 28, 28)
        assert torch.equal((x[:, 0, 3, 4] * 255).round().long() % 10, y)
        assert size == min(count, 4 if stage == "train" else 512)


def test_idx_files_are_read_as_written(tmp_path):
    values = np.random.default_rng(0).integers(0, 256, (5, 3, 2))
    (tmp_path / "x").write_bytes(idx_bytes(values))
    assert read_idx(tmp_path / "x", axes=3).tolist() == values.tolist()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda raw: raw[:-1], r"must hold \(20,\) bytes of data, got 19"),
        (lambda raw: raw + b"x", r"must hold \(20,\) bytes of data, got 21"),
        (lambda raw: b"<html>" + raw, r"must begin with the bytes 0 0 8 1, got \[60"),
        (lambda raw: b"", r"must begin with the bytes 0 0 8 1, got \[\]"),
        (lambda raw: idx_bytes(np.zeros(19)), "must hold 19 images of"),
    ],
)
def test_a_damaged_file_is_named(tmp_path, damage, message):
    write_idx(tmp_path)
    path = tmp_path / NAMES[1]
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match=message) as error:
        ready(MNIST(root=str(tmp_path)))
    assert path.name in str(error.value)


@pytest.mark.parametrize("damage", [lambda raw: raw[:-20], lambda raw: b"<html>" + raw])
def test_a_damaged_gzip_file_is_named(tmp_path, damage):
    write_idx(tmp_path, gz=True)
    path = tmp_path / f"{NAMES[0]}.gz"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match=f"{path} is not a complete gzip file"):
        ready(MNIST(root=str(tmp_path)))


def test_missing_idx_files(tmp_path):
    write_idx(tmp_path)
    (tmp_path / NAMES[2]).unlink()
    with pytest.raises(FileNotFoundError) as error:
        ready(FashionMNIST(root=str(tmp_path), download=False))
    for part in (NAMES[2], f"{tmp_path} holds 3 files", "apt-get install dataset-fashion-mnist"):
        assert part in str(error.value)


def test_mnist_downloads_what_is_missing(tmp_path, server, monkeypatch):
    folder, url = server
    write_idx(folder, gz=True)
    names = [f"{name}.gz" for name in NAMES]
    sums = [md5((folder / name).read_bytes()).hexdigest() for name in names]
    source = torchvision.datasets.MNIST
    monkeypatch.setattr(source, "mirrors", [url])
    monkeypatch.setattr(source, "resources", [*zip(names, sums, strict=True)])
    datamodule = ready(MNIST(root=str(tmp_path / "here"), batch_size=4, val_size=5))
    assert len(images(datamodule.test_dataloader())) == 7


def test_a_failed_download_says_what_to_type(tmp_path, monkeypatch):
    monkeypatch.setattr(torchvision.datasets.MNIST, "mirrors", ["http://127.0.0.1:9/"])  # discard
    with pytest.raises(FileNotFoundError, match="data.root=FOLDER.*Connection refused"):
        MNIST(root=str(tmp_path)).prepare_data()


@pytest.mark.parametrize("kind", [MNIST, CIFAR10])
def test_a_failed_download_leaves_what_was_there(kind, tmp_path, server, monkeypatch):
    """MNIST's second file is damaged, and so is CIFAR10's archive."""
    folder, url = server
    write_idx(folder, gz=True)
    first, second, *_ = (f"{name}.gz" for name in NAMES)
    sums = [(first, md5((folder / first).read_bytes()).hexdigest()), (second, "0" * 32)]
    monkeypatch.setattr(torchvision.datasets.MNIST, "mirrors", [url])
    monkeypatch.setattr(torchvision.datasets.MNIST, "resources", sums)
    monkeypatch.setattr(torchvision.datasets.CIFAR10, "url", url + first)
    own = tmp_path / "mine" / "note.txt"
    own.parent.mkdir()
    own.write_text("mine")
    before = sorted(tmp_path.rglob("*"))
    for root in (tmp_path / "wrong" / "place", own.parent):
        with pytest.raises(FileNotFoundError):
            kind(root=str(root)).prepare_data()
        assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.skipif(
    not DEBIAN.is_dir() and os.environ.get("CI") != "true", reason="dataset-fashion-mnist"
)
def test_fashion_mnist_from_debians_package():
    datamodule = ready(FashionMNIST(download=False))
    assert [len(images(datamodule.val_dataloader())), len(datamodule.test_dataloader())] == [
        10000,
        20,
    ]
    (x, y, _), *_ = datamodule.train_dataloader()
    assert 0.2 < x.mean() < 0.4
    assert y.unique().tolist() == [*range(10)]


def test_cifar10_reads_torchvisions_files(small_cifar):
    datamodule = ready(CIFAR10(root=str(small_cifar), batch_size=16, val_size=4))
    (x, y, _), *_ = datamodule.train_dataloader()
    assert x.shape == (16, 3, 32, 32)
    assert torch.equal((x[:, 0, 0, 0] * 255).round().long(), y + 100)  # red
    assert torch.equal((x[:, 2, 5, 7] * 255).round().long(), y)  # blue
    assert next(iter(datamodule.test_dataloader())).y.tolist() == [5] * 4


def test_cifar10_downloads_what_is_missing(small_cifar, server, monkeypatch):
    source = torchvision.datasets.CIFAR10
    folder, url = server
    archive = folder / source.filename
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(small_cifar / source.base_folder, source.base_folder)
    monkeypatch.setattr(source, "url", url + archive.name)
    monkeypatch.setattr(source, "tgz_md5", md5(archive.read_bytes()).hexdigest())
    datamodule = ready(CIFAR10(root=str(small_cifar / "new"), batch_size=16, val_size=4))
    assert len(images(datamodule.test_dataloader())) == 4


@pytest.mark.parametrize("damaged", [True, False])
def test_cifar10_missing_or_damaged(small_cifar, damaged):
    folder = small_cifar / torchvision.datasets.CIFAR10.base_folder
    (folder / "data_batch_3").write_bytes(b"") if damaged else (folder / "data_batch_3").unlink()
    with pytest.raises(FileNotFoundError) as error:
        ready(CIFAR10(root=str(small_cifar), download=False))
    assert f"{folder} holds {7 if damaged else 6} files" in str(error.value)
    assert "data.download=true" in str(error.value)


def test_image_folder(tmp_path):
    write_pictures(tmp_path)
    datamodule = ready(ImageFolder(root=str(tmp_path), image_size=[16, 24], batch_size=4))
    batches = [getattr(datamodule, f"{s}_dataloader")() for s in ("train", "val", "test")]
    assert [len(images(loader)) for loader in batches] == [24, 3, 3]
    assert datamodule.shape == (3, 16, 24)
    x = torch.cat([images(loader) for loader in batches])
    numbers = (x.mean((1, 2, 3)) * 255 / 8).round().long()  # the colour tells which picture it was
    assert numbers.sort().values.tolist() == [*range(30)]


def test_image_folder_labels_are_the_first_subfolders(tmp_path):
    write_pictures(tmp_path)
    Image.new("L", (8, 8), color=255).save(tmp_path / "top.png")
    x, y = in_memory(tmp_path, image_size=8)
    numbers = (x.double().mean((1, 2, 3)) / 8).round().long()
    expected = {number: 1 - number % 2 for number in range(30)} | {32: -1}  # cats 0, dogs 1
    assert {int(number): int(label) for number, label in zip(numbers, y, strict=True)} == expected


def test_image_folder_follows_links_once_around(tmp_path):
    write_pictures(tmp_path / "disk")
    root = tmp_path / "root"
    root.mkdir()
    for name in ("cats", "dogs"):
        (root / name).symlink_to(tmp_path / "disk" / name)
    (tmp_path / "disk" / "dogs" / "back").symlink_to(root)
    (root / "all").symlink_to("../root")
    x, y = in_memory(root, image_size=8)
    assert y.bincount().tolist() == [15, 15]
    assert contents(root) == f"{root} holds 30 files"


def test_image_folder_cuts_out_the_middle(tmp_path):
    stripes = np.repeat([10, 200, 30], 8)[None].repeat(8, 0).astype(np.uint8)  # 8 x 24
    Image.fromarray(stripes).save(tmp_path / "stripes.png")
    assert read(tmp_path / "stripes.png", (1, 8, 8)).unique().tolist() == [200]


def test_the_test_images_depend_on_split_seed_only(tmp_path):
    write_pictures(tmp_path)
    first, again, other = (
        images(
            ready(ImageFolder(root=str(tmp_path), batch_size=1, **settings)).test_dataloader()
        ).tolist()
        for settings in ({}, {"seed": 3, "val_size": 7}, {"split_seed": 1})
    )
    assert first == again != other


def test_the_first_images_of_test_and_validation_are_of_all_kinds(tmp_path):
    """The files come folder by folder, and an evaluation may take the first images only."""
    for number in range(200):
        folder = tmp_path / f"{number // 40}"
        folder.mkdir(exist_ok=True)
        Image.new("L", (4, 4), color=number).save(folder / f"{number:03}.png")
    settings = {"image_size": 4, "batch_size": 8, "test_size": 0.4, "val_size": 0.5}
    datamodule = ready(ImageFolder(root=str(tmp_path), **settings))
    for loader in (datamodule.test_dataloader(), datamodule.val_dataloader()):
        labels = torch.cat([batch.y for batch in loader])
        assert len(labels) > 50 and len(labels[:20].unique()) == 5


def test_a_corrupted_picture_is_named(tmp_path):
    write_pictures(tmp_path)
    bad = tmp_path / "cats" / "bad.jpg"
    bad.write_bytes((tmp_path / "cats" / "1.jpg").read_bytes()[:100])
    with pytest.raises(ValueError, match=f"{bad} is not a readable picture .*on_corrupt=skip"):
        in_memory(tmp_path)


def noted(folder, total, bad):
    """Pictures of which some cannot be read, and what is said of them with on_corrupt=skip."""
    folder.mkdir()
    for number in range(total):
        Image.new("L", (4, 4), color=number % 256).save(folder / f"{number:03}.png")
    for number in range(bad):
        (folder / f"{7 * number:03}.png").write_bytes(b"")
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        images, _ = in_memory(folder, on_corrupt="skip", image_size=4)
    assert len(images) == total
    return sorted(str(warning.message) for warning in said)


@pytest.mark.parametrize(("total", "allowed"), [(20, 1), (57, 1), (199, 1), (250, 2)])
def test_few_corrupted_pictures_are_named_and_others_stand_in(tmp_path, total, allowed):
    rule = f"of {total} pictures cannot be read, at most {allowed} may be skipped"
    said = noted(tmp_path / "few", total, allowed)
    assert len(said) == allowed and "000.png (cannot identify image file" in said[0]
    assert any(line.endswith(f": the next picture stands in; {allowed} {rule}") for line in said)
    message = f"^{allowed + 1} {rule} .1 % of all, or one.; the first is .*png .cannot identify"
    with pytest.raises(ValueError, match=message):
        noted(tmp_path / "many", total, allowed + 1)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_pictures_that_are_not_kept_give_the_same_batches(tmp_path, num_workers):
    """Also where others stand in for corrupted ones, here for one whose next is validated on."""
    for number in range(120):
        Image.effect_noise((9, 9), 50).save(tmp_path / f"{number:03}.png")
    (tmp_path / "072.png").write_bytes(b"")
    settings = {"root": str(tmp_path), "image_size": 8, "batch_size": 7, "on_corrupt": "skip"}
    found = []
    settings |= {"flip": True, "crop": 0.7}
    for own in ({}, {"memory_gb": 0, "num_workers": num_workers}):
        datamodule = ImageFolder(**settings, **own, binarize="stochastic", eval_batch_size=5)
        with pytest.warns(UserWarning, match="072.png .cannot.*the next picture") as said:
            datamodule.setup()
            x = [datamodule.train_mean()]
            for stage in ("train", "val", "test"):
                x += [batch.x for batch in getattr(datamodule, f"{stage}_dataloader")()]
        assert len(said) == 1
        datamodule.teardown("fit")
        found.append(x)
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


@pytest.mark.parametrize(
    ("on_corrupt", "message"),
    [
        ("error", "is not a readable picture"),
        ("skip", "2 of 32 pictures cannot be read, at most 1"),
    ],
)
@pytest.mark.filterwarnings("ignore:.*the next picture stands in:UserWarning")
def test_a_corrupted_picture_is_named_when_it_is_met(tmp_path, on_corrupt, message):
    write_pictures(tmp_path)
    for name in ("bad.png", "worse.png"):
        (tmp_path / name).write_bytes(b"")
    settings = {"memory_gb": 0, "num_workers": 2, "on_corrupt": on_corrupt, "batch_size": 8}
    datamodule = ready(ImageFolder(root=str(tmp_path), image_size=8, **settings))
    with pytest.raises(ValueError, match=message) as caught:
        for stage in ("train", "val", "test"):
            list(getattr(datamodule, f"{stage}_dataloader")())
    assert "\n" not in str(caught.value)
    datamodule.teardown("fit")


def test_many_corrupted_pictures_in_a_row_are_not_searched_through(tmp_path):
    for number in range(200):
        (tmp_path / f"{number}.png").write_bytes(b"")
    message = "no picture can stand in for .*png .cannot.*3 others of its split.*at most 2 may be"
    with pytest.raises(ValueError, match=message):
        in_memory(tmp_path, on_corrupt="skip")


def test_image_folder_reads_what_the_explorer_reads(tmp_path):
    """16 bits, transparent parts and floats, with its own settings."""
    deep = np.full((9, 9), 1000, dtype=np.uint16)
    Image.fromarray(deep).save(tmp_path / "png.png")
    Image.fromarray(deep).save(tmp_path / "tiff.tif")
    Image.fromarray(deep.astype(np.float32)).save(tmp_path / "floats.tiff")
    Image.new("RGBA", (9, 9)).save(tmp_path / "transparent.webp")
    settings = {"value_range": [0, 2000], "background": [128, 0, 0], "image_size": 8}
    x, _ = in_memory(tmp_path, **settings, val_size=1, test_size=1)
    assert sorted(x.amin((2, 3)).tolist()) == [[128, 0, 0], *[[128, 128, 128]] * 3]
    folder = ImageFolder(root=str(tmp_path), **settings)
    deep_file = (tmp_path / "floats.tiff").read_bytes()
    assert (read_upload(deep_file, folder.shape, **folder.pixels) == 128).all()


@pytest.mark.parametrize(
    ("most", "value_range", "message"),
    [
        (4000, None, "hold no value above 4000 of 65535, .* type data.value_range=.0,4095."),
        (255, [0, 1], "data.value_range is for grey .* none of the 8 that were looked at is one"),
        (60_000, None, None),
        (4000, [0, 4095], None),
    ],
)
def test_a_range_that_hardly_fits_is_said(tmp_path, most, value_range, message):
    for number in range(8):
        values = np.full((4, 4), number * most // 7, dtype=np.uint16 if most > 255 else np.uint8)
        Image.fromarray(values).save(tmp_path / f"{number}.png")
    settings = {"image_size": 4, "test_size": 1, "val_size": 1, "value_range": value_range}
    with pytest.warns(UserWarning, match=message) if message else nullcontext():
        in_memory(tmp_path, **settings)


def test_hidden_files_are_left_out_and_counted(tmp_path):
    write_pictures(tmp_path / ".here")
    hidden = ["._a.png", ".DS_Store", "__MACOSX/cats/._1.jpg", "__MACOSX/1.jpg", ".b/c.png"]
    hidden += ["cats/.ipynb_checkpoints/1.png", "cats/Thumbs.db", "dogs/@eaDir/1.jpg/small.jpg"]
    for name in hidden:
        path = tmp_path / ".here" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8)).save(path, "PNG")
    with pytest.warns(UserWarning, match="^8 hidden files are left out, such as .*here$") as said:
        _, y = in_memory(tmp_path / ".here", image_size=8)
    assert len(said) == 1 and y.bincount().tolist() == [15, 15]
    only = tmp_path / ".here" / "__MACOSX"
    (only / ".x").write_text("")
    (only / "1.jpg").unlink()
    with pytest.raises(FileNotFoundError, match="holds 2 files; 2 hidden files are left out$"):
        in_memory(only)


@pytest.mark.parametrize("kind", ["missing", "empty", "text"])
def test_a_folder_without_pictures(tmp_path, kind):
    root = tmp_path / kind
    if kind != "missing":
        root.mkdir()
    if kind == "text":
        (root / "a.txt").write_text("")
    seen = "is not a folder" if kind == "missing" else f"holds {int(kind == 'text')} files"
    with pytest.raises(FileNotFoundError, match=f"data.root must hold pictures .* {root} {seen}"):
        in_memory(root)


@pytest.mark.parametrize(
    ("count", "settings", "advice"),
    [
        (1, {}, "got 1, 0 and 0; more images are needed"),
        (5, {}, "got 5, 0 and 0; type data.val_size=1 data.test_size=1 data.batch_size=1"),
        (20, {}, "got 16, 2 and 2; type data.batch_size=4"),
        (20, {"test_size": 20}, "got 0, 0 and 20; lower data.test_size"),
        (100, {}, "got 81, 9 and 10; type data.batch_size=16"),
    ],
)
def test_too_few_pictures_say_what_to_type(tmp_path, count, settings, advice):
    """And what is typed does."""
    for number in range(count):
        Image.new("L", (9, 9), number).save(tmp_path / f"{number}.png")
    with pytest.raises(ValueError, match=f"{advice}$"):
        folder_of(tmp_path, **settings)
    if "type" in advice:
        typed = dict(word[5:].split("=") for word in advice.split("type ")[1].split())
        folder_of(tmp_path, **{name: int(value) for name, value in typed.items()})


def folder_of(root, **settings):
    return ready(ImageFolder(root=str(root), image_size=8, **settings))


@pytest.mark.parametrize(
    "settings",
    [
        {"image_size": 0},
        {"image_size": [8]},
        {"channels": 2},
        {"on_corrupt": "ignore"},
        {"memory_gb": -1},
        {"background": "grren"},
        {"value_range": [1, 0]},
        {"num_workers": -1},
        {"flip": "horizontal"},
        {"crop": 80},
    ],
)
def test_image_folder_checks_its_settings(settings):
    with pytest.raises(ValueError, match=f"{[*settings][0]} must (not )?be .*, got "):
        ImageFolder(root=".", **settings)


def test_folders_are_classes_by_their_names(tmp_path):
    for name in ("a/1.png", "b/2.png", "b/deep/3.png", "c/4.png"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8)).save(path)
    data = ImageFolder(root=str(tmp_path))
    assert data.label_names == ("a", "b", "c") and data.classes == 3
    other = ImageFolder(root=str(tmp_path), class_names=["c", "x", "b", "a"])
    assert other.classes == 4 and other._pictures().labels.tolist() == [3, 2, 2, 0]
    with pytest.raises(ValueError, match=r"data.root has the folder 'c', data.class_names=.* not"):
        ImageFolder(root=str(tmp_path), class_names=["a", "b"])._pictures()
    Image.new("L", (8, 8)).save(tmp_path / "5.png")
    assert ImageFolder(root=str(tmp_path)).label_names is None
