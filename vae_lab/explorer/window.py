"""A window of a browser in which the z of an image is edited."""

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from ..data.image_files import MAX_BYTES
from ..optional import needs
from .edits import STEPS, Explorer, Y
from .panels import Places, Variables
from .widgets import (
    Code,
    Picture,
    Slider,
    button,
    data_url,
    figure,
    quiet,
    refuse,
    section,
    strip,
)

with needs("explore", "the explorer's page"):
    from nicegui import background_tasks, events, ui

STYLE = Path(__file__).with_name("explorer.css")
STRIP = 8  # small pictures in a row


class Shown(NamedTuple):
    """A datum, its label or attributes, and its number among those of the test, if it is one."""

    x: Tensor
    y: Y
    number: int | None = None


class Window:
    """An image, and a z that began as its encoding."""

    def __init__(self, explorer: Explorer, title: str) -> None:
        self.explorer = explorer
        self.seed, self.temperature = 0, 1.0
        self.draw, self.draw_samples = Latest(self._draw), Latest(self._draw_samples)
        self.shown = self._datum(0)
        self.y = self.shown.y  # with which z is decoded, which may be another one
        self.other = self._datum(len(explorer.images) - 1)
        self.start = self.z = explorer.encode(self.shown.x, self.y)
        ui.add_css(STYLE.read_text())
        ui.colors(primary="#2a78d6")
        ui.label(title).classes("title")
        with ui.element("main").classes("page"):
            with ui.element("div").classes("left"):
                self._build_pictures()
                self._build_choice()
                self._build_labels()
                self._build_path()
                self._build_samples()
            self.latents = self._panel()
        self._choose(self.shown)
        self.draw_samples()

    def _build_pictures(self) -> None:
        with ui.element("div").classes("pictures"):
            self.original = figure("original")
            self.reconstruction = figure("reconstruction")
            if not self.explorer.grid:
                self.edited = figure("edited")

    def _build_choice(self) -> None:
        with section("Picture"):
            self.strip = strip("test image", STRIP, lambda n: self._choose(self.offered[n]))
            with ui.element("div").classes("row"):
                button("Other test images", lambda: self._offer(self._random(STRIP)))
                self.uploads = ui.upload(
                    auto_upload=True,
                    max_file_size=MAX_BYTES,
                    on_upload=self._upload,
                    on_rejected=lambda: refuse(f"at most {MAX_BYTES >> 20} MB are read"),
                ).classes("hidden")
                # In the browser: only a click there may ask for a file.
                pick = f"() => runMethod({self.uploads.id}, 'pickFiles', [])"
                button("Upload").on("click", js_handler=pick)
                button("Reset", lambda: self._take(self.start))
        count = len(self.explorer.images)
        self._offer([self._datum(n % count) for n in range(STRIP)])

    def _build_labels(self) -> None:
        """The labels to choose from, of a model that has some."""
        self.labels: Code | None = None
        if self.explorer.classes:
            with section("Label"):
                names = self.explorer.class_names
                self.labels = Code("label", self.explorer.classes, self._relabel, values=names)

    def _build_path(self) -> None:
        with section("Interpolation"):
            with ui.element("div").classes("path"):
                self.way = Slider("interpolation", 0, STEPS, 1, self._walk, " %")
                self.end = Picture("interpolation to")
            with ui.element("div").classes("row"):
                button("To another test image", lambda: self._aim(self._random(1)[0]))
                button("To the picture above", lambda: self._aim(self.shown._replace(y=self.y)))

    def _build_samples(self) -> None:
        with section("Samples of the prior"):
            self.samples = strip("sample", STRIP, lambda n: self._take(self.sampled[n]))
            with ui.element("div").classes("row"):
                button("New samples", self._resample)
                self._build_temperature()

    def _build_temperature(self) -> None:
        if self.explorer.uniform:
            quiet("the prior is uniform, at any temperature")
        elif self.explorer.has_temperature:
            quiet("temperature")
            Slider("temperature", 0.1, 2, 0.05, self._heat).classes("short").show(1)

    def _panel(self) -> Variables | Places:
        if not self.explorer.grid:
            return Variables(self.explorer, lambda: self.z, self._edit, self.draw)
        places = Places(self.explorer, lambda: self.z, self._edit)
        self.edited = places.canvas.picture
        return places

    def _datum(self, number: int) -> Shown:
        return Shown(self.explorer.images[number], self.explorer.y_of(number), number)

    def _random(self, count: int) -> list[Shown]:
        data = len(self.explorer.images)
        return [self._datum(random.randrange(data)) for _ in range(count)]

    def _offer(self, images: Sequence[Shown]) -> None:
        """Test images to choose from."""
        self.offered = images
        for picture, shown in zip(self.strip, images, strict=True):
            picture.show(self.explorer.intensity(shown.x))

    def _choose(self, shown: Shown) -> None:
        """Begins with a datum, and its label."""
        self.shown, self.y = shown, shown.y
        self.start = self.explorer.encode(shown.x, shown.y)
        self._show_start()
        if self.labels is not None and shown.y is not None:
            self.labels.show(int(shown.y))
        self._take(self.start)
        self._aim(self.other)
        if shown.y is not None:
            self.draw_samples()

    def _show_start(self) -> None:
        self.original.show(self.explorer.intensity(self.shown.x))
        self.reconstruction.load(self._drawn(self.start))

    def _relabel(self, label: float) -> None:
        """Another label, with the z as it is."""
        self.y = int(label)
        if self.labels is not None:
            self.labels.show(label)
        self.draw()
        self.draw_samples()

    def _aim(self, other: Shown) -> None:
        """Chooses the other end of the interpolation."""
        self.other = other
        self.path = self.explorer.path(self.start, self.explorer.encode(other.x, other.y))
        self._show_end()
        self.way.show(0)

    def _show_end(self) -> None:
        self.end.show(self.explorer.intensity(self.other.x))

    async def _upload(self, event: events.UploadEventArguments) -> None:
        self.uploads.reset()
        try:
            x = self.explorer.upload(await event.file.read())
            self._choose(Shown(x, self.explorer.label_of(x, self.y)))
        except ValueError as error:
            refuse(f"{event.file.name}: {error}")

    def _take(self, z: Tensor) -> None:
        """Goes on with a z from elsewhere."""
        self.latents.forget()
        self._edit(z)

    def _edit(self, z: Tensor) -> None:
        self.z = z
        self.draw()

    def _walk(self, step: float) -> None:
        self._take(self.path[int(step)])

    def _resample(self) -> None:
        self.seed += 1
        self.draw_samples()

    def _heat(self, temperature: float) -> None:
        self.temperature = temperature
        self.draw_samples()

    async def _draw(self) -> None:
        """The edited image and the controls, which reach the browser together."""
        picture = await asyncio.to_thread(self._drawn, self.z)
        self.edited.load(picture)
        self.latents.show(self.explorer.values(self.z))

    async def _draw_samples(self) -> None:
        self.sampled = self.explorer.samples(STRIP, self.temperature, self.seed, self.y)
        for picture, z in zip(self.samples, self.sampled, strict=True):
            picture.load(await asyncio.to_thread(self._drawn, z))

    def _drawn(self, z: Tensor) -> str:
        return data_url(self.explorer.intensity(self.explorer.decode(z, self.y)))


class Latest:
    """Runs a piece of work for the newest state, and skips states that came while it was busy."""

    def __init__(self, work: Callable[[], Awaitable[None]]) -> None:
        self.work, self.due, self.busy = work, False, False

    def __call__(self) -> None:
        self.due = True
        if not self.busy:
            self.busy = True
            background_tasks.create(self._run())

    async def _run(self) -> None:
        try:
            while self.due:
                self.due = False
                await self.work()
        finally:
            self.busy = False
