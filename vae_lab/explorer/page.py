"""The explorer's page: for this machine only, and with nothing from outside of it.

NiceGUI: a moved slider and its picture travel over one open socket, its scripts and fonts come with
it, and it asks nothing of the versions of other packages that vae_lab needs.
"""

import gc
import os
import socket
import sys
import webbrowser
from functools import partial
from types import FrameType

from ..inputs import is_picture
from ..optional import needs
from .edits import Explorer
from .plots import PlotWindow
from .window import Window

with needs("explore", "the explorer's page"):
    import uvicorn
    from fastapi import FastAPI
    from nicegui import ui
    from starlette.middleware.trustedhost import TrustedHostMiddleware

HOST = "127.0.0.1"


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
    window = Window if is_picture(explorer.vae.shape) else PlotWindow
    root = partial(window, explorer, title)
    ui.run_with(app, root=root, title=title, dark=None, tailwind=False, show_welcome_message=False)
    print(f"explore  {address} (Ctrl-C ends)", flush=True)
    if sys.platform in ("darwin", "win32") or {"DISPLAY", "WAYLAND_DISPLAY"} & os.environ.keys():
        webbrowser.open(address)
    config = uvicorn.Config(
        app, log_level="warning", ws_per_message_deflate=False, timeout_graceful_shutdown=1
    )
    # What is loaded by now stays to the end. Frozen, it is not taken apart when Python ends, which
    # takes seconds; and NiceGUI, which searches all objects for its server, meets none of torch's,
    # some of which warn.
    gc.freeze()
    Server(config).run(sockets=[listener])


def _listen(port: int) -> socket.socket:
    try:
        return socket.create_server((HOST, port))
    except OSError:
        return socket.create_server((HOST, 0))


class Server(uvicorn.Server):
    """Ends once: a second Ctrl-C would break off the ending, with a traceback."""

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if not self.should_exit:
            super().handle_exit(sig, frame)
