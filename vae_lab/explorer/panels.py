"""The page's panel of latent variables: all of them, or on a grid those of one place."""

from collections.abc import Callable
from functools import partial

from torch import Tensor

from ..optional import needs
from .edits import Explorer
from .widgets import Bit, Canvas, Code, Slider, button, data_url, quiet, section

with needs("explore", "the explorer's page"):
    from nicegui import ui

WIDE = 100  # values of a latent variable that are too many for cells
WIDEST = 1024  # cells of a place
CELLS, SLIDER = 400, 20  # cells that come before "more", and how many of them a slider stands for
PAST = 100  # edits that can be undone

Control = Slider | Code | Bit
Edit = Callable[[Tensor], None]  # is given the edited z


class Variables:
    """Controls of the latent variables, by decreasing use.

    Args:
        explorer: of the model.
        current: gives the z that is edited.
        edit: takes what became of it.
        built: is called after more controls were made, which show nothing yet.
    """

    def __init__(
        self,
        explorer: Explorer,
        current: Callable[[], Tensor],
        edit: Edit,
        built: Callable[[], None],
    ) -> None:
        self.explorer, self.current, self.edit, self.built = explorer, current, edit, built
        self.controls: dict[int, Control] = {}
        self.cells = _cells(explorer, WIDE)
        with section("Latent variables"):
            use = explorer.use
            unit = f" in{use.unit}" if use.unit else ""
            quiet(
                f"sorted by their {use.measure}{unit} over {len(explorer.images)} of the test data"
            )
            if use.note:
                quiet(use.note)
            self.latents = ui.element("div").classes(explorer.kind)
            with ui.element("div").classes("row"):
                self.more = button("", self._build_more)
        self._build_more()

    def show(self, values: list[float]) -> None:
        """Shows the value of every latent variable."""
        for latent, control in self.controls.items():
            control.show(values[latent])

    def forget(self) -> None:
        """Nothing here is about the z that was edited before."""

    def _build_more(self) -> None:
        """Controls of the next most active latent variables."""
        order, built = self.explorer.order, len(self.controls)
        each = sum(cells or SLIDER for cells in self.cells) / len(self.cells)
        shown = order[built : built + max(int(CELLS / each), 1)]
        with self.latents:
            self.controls |= {latent: self._control(latent) for latent in shown}
        rest = len(order) - len(self.controls)
        self.more.set_text(f"{rest} more")
        self.more.set_visibility(rest > 0)
        self.built()

    def _control(self, latent: int) -> Control:
        use = self.explorer.use.each[latent].item()
        changed = partial(self._change, latent)
        return _control(self.explorer, latent, f"z{latent}", use, self.cells[latent], changed)

    def _change(self, latent: int, value: float) -> None:
        self.edit(self.explorer.edited(self.current(), latent, value))


class Places:
    """A picture in which a place is chosen, and the controls of that place's variables.

    While it paints, what is held is painted over the places under the pointer, and the controls
    are those of what is held: at first what there is at the chosen place.

    Args:
        explorer: of the model.
        current: gives the z that is edited.
        edit: takes what became of it.
    """

    def __init__(self, explorer: Explorer, current: Callable[[], Tensor], edit: Edit) -> None:
        self.explorer, self.current, self.edit = explorer, current, edit
        rows, columns = explorer.grid
        self.place = rows // 2, columns // 2
        self.painting, self.held = False, [0.0]
        self.past: list[tuple[object, Tensor]] = []  # what was edited, and the z before
        with section("Places"):
            count = len(explorer.variables(self.place))
            quiet(f"{rows} x {columns} places of {count} latent variable{'s' * (count > 1)} each")
            if explorer.use.note:
                quiet(explorer.use.note)
            self.canvas = Canvas("edited", explorer.cells_across, self._point)
            with ui.element("div").classes("row"):
                self.paint = button("Paint with this place", self._switch)
                button("Undo", self._undo)
                self.where = ui.label().classes("quiet")
            with ui.element("div").classes(explorer.kind):
                self.controls = self._build()

    def show(self, values: list[float]) -> None:
        """Shows the chosen place, or what is held."""
        explorer, (row, column) = self.explorer, self.place
        variables = explorer.variables(self.place)
        shown = self.held if self.painting else [values[latent] for latent in variables]
        for index, control in self.controls.items():
            control.show(shown[index])
        use, total = explorer.use, explorer.use.each[variables].sum()
        said = f"{use.name} {total:.2f}{use.unit}"
        self.where.set_text(f"row {row + 1}, column {column + 1}: {said}")
        self.canvas.enclose(self.place)

    def forget(self) -> None:
        """There is nothing to undo of a z that came from elsewhere."""
        self.past.clear()

    def _build(self) -> dict[int, Control]:
        """A control of each variable of a place, by its mean use over the places."""
        explorer, variables = self.explorer, self.explorer.variables(self.place)
        use = explorer.latent.at_places(explorer.use.each).mean((0, 1))
        cells = _cells(explorer, max(WIDE, WIDEST // len(variables)))
        patches = []
        if cells[variables[0]]:  # a slider shows none
            patches = [data_url(patch) for patch in explorer.code_patches(explorer.y_of(0))]
        controls = {}
        for index in use.argsort(descending=True).tolist():
            latent, name, shown = variables[index], f"z{index}", use[index].item()
            changed = partial(self._change, index)
            controls[index] = _control(
                explorer, latent, name, shown, cells[latent], changed, patches
            )
        return controls

    def _point(self, pressed: bool, row: int, column: int) -> None:
        """The pointer was pressed at a place, or moved there."""
        rows, columns = self.explorer.grid
        start = self.place
        self.place = min(max(row, 0), rows - 1), min(max(column, 0), columns - 1)
        z = self.current()
        if self.painting:
            if pressed:
                self._keep(object())
            for place in [self.place] if pressed else _between(start, self.place):
                z = self.explorer.painted(z, place, self.held)
        self.edit(z)

    def _change(self, index: int, value: float) -> None:
        """A control was moved."""
        latent, z = self.explorer.variables(self.place)[index], self.current()
        if self.painting:
            self.held[index] = value
            self.edit(z)
            return
        self._keep(latent)
        self.edit(self.explorer.edited(z, latent, value))

    def _switch(self) -> None:
        values = self.explorer.values(self.current())
        self.held = [values[latent] for latent in self.explorer.variables(self.place)]
        self.painting = not self.painting
        self.paint.set_text("Choose a place" if self.painting else "Paint with this place")
        self.canvas.classes(toggle="painting")
        self.edit(self.current())

    def _keep(self, what: object) -> None:
        """Remembers the z, once for a whole stroke or for all moves of one control."""
        if not self.past or self.past[-1][0] != what:
            self.past = [*self.past[1 - PAST :], (what, self.current())]

    def _undo(self) -> None:
        if self.past:
            self.edit(self.past.pop()[1])


def _between(start: tuple[int, int], end: tuple[int, int]) -> list[tuple[int, int]]:
    """The places after one, along the straight line to another."""
    down, right = end[0] - start[0], end[1] - start[1]
    steps = max(abs(down), abs(right))
    return [
        (start[0] + round(down * step / steps), start[1] + round(right * step / steps))
        for step in range(1, steps + 1)
    ]


def _cells(explorer: Explorer, most: int) -> list[int]:
    """How many cells the control of each variable has; 0: it is a slider."""
    whole = explorer.kind != "numbers"
    return [int(high) + 1 if whole and high < most else 0 for high in explorer.high]


def _control(
    explorer: Explorer,
    latent: int,
    name: str,
    use: float,
    cells: int,
    changed: Callable[[float], None],
    patches: list[str] | None = None,
) -> Control:
    """The control of a latent variable.

    Args:
        patches: a picture for each of its cells.
    """
    said = f"{explorer.use.name} {use:.2f}"
    if explorer.kind == "bits":
        return Bit(name, said, changed)
    with ui.element("div").classes("latent"):
        ui.label(name)
        ui.label(said)
        if cells:
            return Code(name, cells, changed, patches)
        low, high = explorer.low[latent].item(), explorer.high[latent].item()
        return Slider(name, low, high, 0.01 if explorer.kind == "numbers" else 1, changed)
