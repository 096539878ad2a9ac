"""The explorer's page: for this machine only, and with nothing from outside of it.

NiceGUI: a moved slider and its picture travel over one open socket, its scripts and fonts come with
it, and it asks nothing of the versions of other packages that vae_lab needs.
"""

import asyncio
import base64
import os
import random
import socket
import sys
import webbrowser
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from pathlib import Path

import uvicorn
from fastapi import FastAPI
from nicegui import background_tasks, events, ui
from nicegui.elements.mixins.text_element import TextElement
from nicegui.elements.mixins.value_element import ValueElement
from starlette.middleware.trustedhost import TrustedHostMiddleware
from torch import Tensor

from .explorer import STEPS, Explorer, png
from .image_files import MAX_BYTES

HOST = "127.0.0.1"
STYLE = Path(__file__).with_name("explorer.css")
STRIP = 8  # small pictures in a row
FIRST = {"numbers": 20, "codes": 400, "bits": 200}  # sliders or cells that come before "more"


def serve(explorer: Explorer, title: str, port: int) -> None:
    """Serves the page until Ctrl-C, and opens it where there is a display.

    Args:
        explorer: of the model.
        title: the model's name.
        port: where it is taken, a free one instead.
    """
    listener = _listen(port)
    address = f"http://{HOST}:{listener.getsockname()[1]}/"
    app = FastAPI(openapi_url=None)
    # A name from elsewhere that was made to point here stays outside.
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=[HOST, "localhost"])
    root = partial(Page, explorer, title)
    ui.run_with(app, root=root, title=title, dark=None, tailwind=False, show_welcome_message=False)
    print(f"explore  {address} (Ctrl-C ends)", flush=True)
    if sys.platform in ("darwin", "win32") or {"DISPLAY", "WAYLAND_DISPLAY"} & os.environ.keys():
        webbrowser.open(address)
    config = uvicorn.Config(
        app, log_level="warning", ws_per_message_deflate=False, timeout_graceful_shutdown=1
    )
    uvicorn.Server(config).run(sockets=[listener])


def _listen(port: int) -> socket.socket:
    try:
        return socket.create_server((HOST, port))
    except OSError:
        return socket.create_server((HOST, 0))


class Page:
    """One window of a browser: an image, and a z that began as its encoding."""

    def __init__(self, explorer: Explorer, title: str) -> None:
        self.explorer = explorer
        self.controls: dict[int, Slider | Code | Bit] = {}
        self.seed, self.temperature = 0, 1.0
        self.draw, self.draw_samples = Latest(self._draw), Latest(self._draw_samples)
        images = explorer.images
        self.x, self.other = images[0], images[-1]
        self.start = self.z = explorer.encode(self.x)
        self.values = explorer.values(self.z)
        ui.add_css(STYLE.read_text())
        ui.colors(primary="#2a78d6")
        ui.label(title).classes("title")
        with ui.element("main").classes("page"):
            with ui.element("div").classes("left"):
                self._build_pictures()
                self._build_choice()
                self._build_path()
                self._build_samples()
            self._build_latents()
        self._offer([images[n % len(images)] for n in range(STRIP)])
        self._choose(self.x)
        self.draw_samples()

    def _build_pictures(self) -> None:
        with ui.element("div").classes("pictures"):
            self.original = _figure("original")
            self.reconstruction = _figure("reconstruction")
            self.edited = _figure("edited")

    def _build_choice(self) -> None:
        with _section("Picture"):
            self.strip = _strip("test image", lambda n: self._choose(self.offered[n]))
            with ui.element("div").classes("row"):
                _button("Other test images", lambda: self._offer(self._random(STRIP)))
                self.uploads = ui.upload(
                    auto_upload=True,
                    max_file_size=MAX_BYTES,
                    on_upload=self._upload,
                    on_rejected=lambda: _refuse(f"at most {MAX_BYTES >> 20} MB are read"),
                ).classes("hidden")
                # In the browser: only a click there may ask for a file.
                pick = f"() => getElement({self.uploads.id}).pickFiles()"
                _button("Upload").on("click", js_handler=pick)
                _button("Reset", lambda: self._take(self.start))

    def _build_path(self) -> None:
        with _section("Interpolation"):
            with ui.element("div").classes("path"):
                self.way = Slider("interpolation", 0, STEPS, 1, self._walk)
                self.end = Picture("interpolation to")
            with ui.element("div").classes("row"):
                _button("To another test image", lambda: self._aim(self._random(1)[0]))
                _button("To the picture above", lambda: self._aim(self.x))

    def _build_samples(self) -> None:
        with _section("Samples of the prior"):
            self.samples = _strip("sample", lambda n: self._take(self.sampled[n]))
            with ui.element("div").classes("row"):
                _button("New samples", self._resample)
                if self.explorer.uniform:
                    _quiet("the prior is uniform, at any temperature")
                else:
                    _quiet("temperature")
                    Slider("temperature", 0.1, 2, 0.05, self._heat).classes("short").show(1)

    def _build_latents(self) -> None:
        with _section("Latent variables"):
            _quiet(f"by their KL in nats, a mean over {len(self.explorer.images)} test images")
            kind = self.explorer.kind
            self.latents = ui.element("div").classes("cells" if kind == "bits" else "latents")
            with ui.element("div").classes("row"):
                self.more = _button("", self._build_more)
        self._build_more()

    def _build_more(self) -> None:
        """Controls of the next most active latent variables."""
        explorer, built = self.explorer, len(self.controls)
        each = int(explorer.high.max()) + 1 if explorer.kind == "codes" else 1
        shown = explorer.order[built : built + max(FIRST[explorer.kind] // each, 1)]
        with self.latents:
            self.controls |= {latent: self._control(latent) for latent in shown}
        rest = len(explorer.order) - len(self.controls)
        self.more.set_text(f"{rest} more")
        self.more.set_visibility(rest > 0)
        self.draw()

    def _control(self, latent: int) -> "Slider | Code | Bit":
        explorer, changed = self.explorer, partial(self._edit, latent)
        name, kl = f"z{latent}", f"KL {explorer.kl[latent]:.2f}"
        if explorer.kind == "bits":
            return Bit(name, kl, changed)
        low, high = explorer.low[latent].item(), explorer.high[latent].item()
        with ui.element("div").classes(f"latent {explorer.kind}"):
            ui.label(f"{name}  {kl}")
            if explorer.kind == "codes":
                return Code(name, int(high) + 1, changed)
            return Slider(name, low, high, 0.01, changed)

    def _random(self, count: int) -> list[Tensor]:
        images = self.explorer.images
        return [images[random.randrange(len(images))] for _ in range(count)]

    def _offer(self, images: Sequence[Tensor]) -> None:
        """Test images to choose from."""
        self.offered = images
        for picture, image in zip(self.strip, images, strict=True):
            picture.show(image)

    def _choose(self, x: Tensor) -> None:
        """Begins with an image."""
        self.x, self.start = x, self.explorer.encode(x)
        self.original.show(x)
        self.reconstruction.show(self.explorer.decode(self.start))
        self._take(self.start)
        self._aim(self.other)

    def _aim(self, x: Tensor) -> None:
        """Chooses the other end of the interpolation."""
        self.other = x
        self.path = self.explorer.path(self.start, self.explorer.encode(x))
        self.end.show(x)
        self.way.show(0)

    async def _upload(self, event: events.UploadEventArguments) -> None:
        self.uploads.reset()
        try:
            self._choose(self.explorer.upload(await event.file.read()))
        except ValueError as error:
            _refuse(f"{event.file.name}: {error}")

    def _take(self, z: Tensor) -> None:
        self.z, self.values = z, self.explorer.values(z)
        self.draw()

    def _edit(self, latent: int, value: float) -> None:
        self.z = self.explorer.edited(self.z, latent, value)
        self.values[latent] = value
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
        for latent, control in self.controls.items():
            control.show(self.values[latent])

    async def _draw_samples(self) -> None:
        self.sampled = self.explorer.samples(STRIP, self.temperature, self.seed)
        for picture, z in zip(self.samples, self.sampled, strict=True):
            picture.load(await asyncio.to_thread(self._drawn, z))

    def _drawn(self, z: Tensor) -> str:
        return _data_url(self.explorer.decode(z))


class Latest:
    """Does a work for the newest state, leaving out those that came and went while it was busy."""

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


class Picture(ui.element):
    """An image of the model, enlarged without smoothing."""

    def __init__(self, name: str) -> None:
        super().__init__("img")
        self.props(f'alt="{name}"').classes("picture")

    def show(self, image: Tensor) -> None:
        self.load(_data_url(image))

    def load(self, source: str) -> None:
        self.props["src"] = source


class Slider(ValueElement):
    """Quasar's slider; NiceGUI's own waits 50 ms between two updates."""

    LOOPBACK = False  # the browser moves it at once

    def __init__(
        self, name: str, low: float, high: float, step: float, moved: Callable[[float], None]
    ) -> None:
        self.moved, self.shown = moved, low
        super().__init__(tag="q-slider", value=low, on_value_change=self._tell, throttle=0.015)
        self.props(f'min={low} max={high} step={step} aria-label="{name}" label')

    def show(self, value: float) -> None:
        """Moves it without a word to `moved`."""
        self.shown = value
        self.set_value(value)

    def _tell(self, event: events.ValueChangeEventArguments) -> None:
        if event.value != self.shown:
            self.shown = event.value
            self.moved(event.value)


class Cell(TextElement):
    """A button that is pressed or not."""

    def __init__(self, name: str, text: str, clicked: Callable[[], None]) -> None:
        super().__init__(tag="button", text=text)
        self.props(f'aria-label="{name}"').classes("cell").on("click", clicked)
        self.pressed = True
        self.press(False)

    def press(self, pressed: bool) -> None:
        if pressed != self.pressed:
            self.pressed = pressed
            self.props["aria-pressed"] = str(pressed).lower()


class Code:
    """Of a latent variable with a few values: a cell for each."""

    def __init__(self, name: str, count: int, changed: Callable[[float], None]) -> None:
        with ui.element("div").classes("cells"):
            cells = [(f"{name} = {k}", str(k), partial(changed, k)) for k in range(count)]
            self.cells = [Cell(*cell) for cell in cells]

    def show(self, value: float) -> None:
        for k, cell in enumerate(self.cells):
            cell.press(k == value)


class Bit:
    """Of a latent variable that is 0 or 1: one cell."""

    def __init__(self, name: str, kl: str, changed: Callable[[float], None]) -> None:
        self.cell = Cell(name, name, lambda: changed(0.0 if self.cell.pressed else 1.0))
        self.cell.props(f'title="{kl}"')

    def show(self, value: float) -> None:
        self.cell.press(value == 1)


def _section(heading: str) -> ui.element:
    section = ui.element("section")
    with section:
        ui.label(heading).classes("heading")
    return section


def _figure(name: str) -> Picture:
    with ui.element("figure"):
        picture = Picture(name)
        with ui.element("figcaption"):
            ui.label(name)
    return picture


def _strip(name: str, clicked: Callable[[int], None]) -> list[Picture]:
    """A row of small pictures to click."""
    pictures = []
    with ui.element("div").classes("strip"):
        for n in range(STRIP):
            with ui.element("button").on("click", partial(clicked, n)):
                pictures.append(Picture(f"{name} {n + 1}"))
    return pictures


def _button(text: str, clicked: Callable[[], None] | None = None) -> ui.button:
    return ui.button(text, on_click=clicked).props("outline no-caps dense padding='2px 10px'")


def _quiet(text: str) -> None:
    ui.label(text).classes("quiet")


def _refuse(message: str) -> None:
    ui.notify(message, type="negative", timeout=10_000, close_button=True)


def _data_url(image: Tensor) -> str:
    return f"data:image/png;base64,{base64.b64encode(png(image)).decode()}"
