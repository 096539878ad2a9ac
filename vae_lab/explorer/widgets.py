"""The parts of the explorer's page: pictures, sliders and cells, none of which knows a z."""

import base64
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from torch import Tensor

from ..optional import needs
from .edits import png

with needs("explore", "the explorer's page"):
    from nicegui import events, ui
    from nicegui.elements.mixins.text_element import TextElement
    from nicegui.elements.mixins.value_element import ValueElement

# Says each place once, while the pointer is down.
POINTER = """(event) => {
  const canvas = event.currentTarget, box = canvas.getBoundingClientRect();
  const pressed = event.type == "pointerdown";
  if (pressed) canvas.setPointerCapture(event.pointerId);
  if (!canvas.hasPointerCapture(event.pointerId)) return;
  const row = Math.floor((event.clientY - box.top) / box.height * %(rows)s);
  const column = Math.floor((event.clientX - box.left) / box.width * %(columns)s);
  if (!pressed && canvas.dataset.place == `${row} ${column}`) return;
  canvas.dataset.place = `${row} ${column}`;
  emit(pressed, row, column);
}"""


class Picture(ui.element):
    """An image of the model, enlarged without smoothing."""

    def __init__(self, name: str) -> None:
        super().__init__("img")
        self.props(f'alt="{name}"').classes("picture")

    def show(self, image: Tensor) -> None:
        self.load(data_url(image))

    def load(self, source: str) -> None:
        self.props["src"] = source


class Slider(ValueElement):
    """Quasar's slider, and its value beside it; NiceGUI's own waits 50 ms between two updates."""

    LOOPBACK = False  # the browser moves it at once

    def __init__(
        self,
        name: str,
        low: float,
        high: float,
        step: float,
        moved: Callable[[float], None],
        unit: str = "",
    ) -> None:
        self.moved, self.shown = moved, low
        self.format = f"{{:z.{0 if step >= 1 else 2}f}}{unit}"  # z: no minus before a zero
        super().__init__(tag="q-slider", value=low, on_value_change=self._tell, throttle=0.015)
        self.props(f'min={low} max={high} step={step} aria-label="{name}"')
        self.number = ui.label(self.format.format(low)).classes("number")

    def show(self, value: float) -> None:
        """Moves it without a word to `moved`."""
        self._note(value)
        self.set_value(value)

    def _note(self, value: float) -> None:
        self.shown = value
        self.number.set_text(self.format.format(value))

    def _tell(self, event: events.ValueChangeEventArguments) -> None:
        if event.value != self.shown:
            self._note(event.value)
            self.moved(event.value)


class Cell(TextElement):
    """A button that is pressed or not."""

    def __init__(self, name: str, text: str, clicked: Callable[[], None]) -> None:
        super().__init__(tag="button", text=text)
        self.props["aria-label"] = name
        self.classes("cell").on("click", clicked)
        self.pressed = True
        self.press(False)

    def press(self, pressed: bool) -> None:
        if pressed != self.pressed:
            self.pressed = pressed
            self.props["aria-pressed"] = str(pressed).lower()


class Code:
    """The control of a latent variable with a few values: a cell for each."""

    def __init__(
        self,
        name: str,
        count: int,
        changed: Callable[[float], None],
        patches: Sequence[str] | None = None,
        values: Sequence[Any] | None = None,
    ) -> None:
        """`values` are to be shown in the place of 0, 1, ..., and so are pictures in `patches`."""
        with ui.element("div").classes("cells" if values is None else "cells named"):
            shown = values or range(count)
            cells = [(f"{name} = {v}", str(v), partial(changed, k)) for k, v in enumerate(shown)]
            self.cells = [Cell(*cell) for cell in cells]
        for cell, patch in zip(self.cells, patches or (), strict=False):
            cell.set_text("")
            with cell.classes("patch"):
                Picture("").load(patch)

    def show(self, value: float) -> None:
        for k, cell in enumerate(self.cells):
            cell.press(k == value)


class Canvas(ui.element):
    """A large picture of an image with places: it tells where the pointer is pressed or drawn.

    Args:
        name: of the picture.
        size: how many places the image has, down and across: the last may stand out of it.
        pointed: is told whether the pointer was pressed now, and the row and the column.
    """

    def __init__(
        self,
        name: str,
        size: tuple[float, float],
        pointed: Callable[[bool, int, int], None],
    ) -> None:
        super().__init__("div")
        self.size = size
        self.classes("canvas")
        with self:
            self.picture = Picture(name)
            self.picture.props("draggable=false")
            self.frame = ui.element("div").classes("place")
        script = POINTER % {"rows": size[0], "columns": size[1]}
        for event in ("pointerdown", "pointermove"):
            self.on(event, lambda event: pointed(*event.args), js_handler=script)

    def enclose(self, place: tuple[int, int]) -> None:
        """Draws a frame around a place."""
        top, left = (100 * i / count for i, count in zip(place, self.size, strict=True))
        height, width = (100 / count for count in self.size)
        self.frame.style(f"top:{top}%; left:{left}%; height:{height}%; width:{width}%")


class Bit:
    """The control of a latent variable that is 0 or 1: one cell."""

    def __init__(self, name: str, kl: str, changed: Callable[[float], None]) -> None:
        self.cell = Cell(name, name, lambda: changed(0.0 if self.cell.pressed else 1.0))
        self.cell.props(f'title="{kl}"')

    def show(self, value: float) -> None:
        self.cell.press(value == 1)


def section(heading: str) -> ui.element:
    element = ui.element("section")
    with element:
        ui.label(heading).classes("heading")
    return element


def figure(name: str) -> Picture:
    with ui.element("figure"):
        picture = Picture(name)
        with ui.element("figcaption"):
            ui.label(name)
    return picture


def strip(name: str, count: int, clicked: Callable[[int], None]) -> list[Picture]:
    """A row of small pictures to click."""
    pictures = []
    with ui.element("div").classes("strip"):
        for n in range(count):
            with ui.element("button").on("click", partial(clicked, n)):
                pictures.append(Picture(f"{name} {n + 1}"))
    return pictures


def button(text: str, clicked: Callable[[], None] | None = None) -> ui.button:
    return ui.button(text, on_click=clicked).props("outline no-caps dense padding='2px 10px'")


def quiet(text: str) -> None:
    ui.label(text).classes("quiet")


def refuse(message: str) -> None:
    ui.notify(message, type="negative", timeout=10_000, close_button=True)


def data_url(image: Tensor) -> str:
    return as_url(png(image))


def as_url(content: bytes) -> str:
    """A PNG in an address."""
    return f"data:image/png;base64,{base64.b64encode(content).decode()}"
