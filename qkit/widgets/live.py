"""What every widget shares: its study, long work beside the page, errors in place, and a static stand-in.

Where there is no front end (a code host, nbconvert, a test) and in a saved notebook without a kernel, a picture and a table
stand in. They are outputs of their own beside the live widget, since a front end that finds no kernel shows nothing of
an output that holds a widget; the live widget hides them, and they follow its state.
"""

from __future__ import annotations

import contextlib
import functools
import html
import io
import traceback
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar, cast

import matplotlib.style
import pandas as pd
from matplotlib.figure import Figure

from qkit.closing import Closeable
from qkit.errors import QkitError
from qkit.style import STYLE
from qkit.widgets import cells
from qkit.widgets.work import STATE, Worker

if TYPE_CHECKING:
    from qkit.study import Study

P = ParamSpec("P")
S = TypeVar("S", bound="Live")

#: Seconds without a change after which the static stand-in is drawn anew.
_QUIET = 1.5
_DPI = 110
#: Characters from which a cell is a sentence rather than a figure, and begins at the left.
_SENTENCE = 60
#: Hides the output before the stand-in, the one that holds the widget, where no widget came to life: JupyterLab would say
#: there that it found no model.
_NO_WIDGET = ".jp-OutputArea:not(.qkit-live) > .jp-OutputArea-child:has(+ * + * .qkit-static) { display: none; }"
#: Where no kernel has the widget any more.
_AGAIN = '<p class="qkit-again"><i>Picture and table of a widget as it was left. Run the cell again to use it.</i></p>'


def shown(method: Callable[Concatenate[S, P], Any]) -> Callable[Concatenate[S, P], None]:
    """A callback whose exceptions appear in the widget; elsewhere the front end would swallow them."""

    @functools.wraps(method)
    def call(self: S, *args: P.args, **kwargs: P.kwargs) -> None:
        try:
            with STATE:
                self.clear_error()
                method(self, *args, **kwargs)
        except Exception as error:  # a callback has no caller who could see it
            self.show_error(error)

    return cast("Callable[Concatenate[S, P], None]", call)


class Live(Closeable):
    """A widget with a study, for classes that are ipywidgets too; see the module.

    Closed, it is gone from the page but for its picture and table, what runs in the background stops, and it holds neither
    the study nor tensors any more. The plan and what was measured can still be read; all else raises `QkitError`.
    """

    model_id: str
    #: Rows of the static table.
    most_rows = 12
    _given: Study | None = None
    _displays: dict[str, Any]

    def _begin(self) -> None:
        """Before the widget is made."""
        self._displays = {}
        self._age = self._drawn = 0
        self._made_in = cells.running()
        self.worker = Worker(self._progress, self.show_error, self.stopped)

    @property
    def _origin(self) -> Study:
        """The study that the widget was made with."""
        self._check_open()
        assert self._given is not None
        return self._given

    def close(self) -> None:
        """Close the widget with all its children; its picture and table stay on the page, as it is now."""
        # one turn for all of it: a gesture that another thread is answering has not said yet that the picture is old
        with STATE:
            if not self.closed and self._drawn != self._age:
                # what cannot be drawn keeps nothing open
                with contextlib.suppress(Exception):
                    self._draw_stand_in()
            super().close()

    def _release(self) -> None:
        self.worker.close()
        self._given = None
        self._displays = {}

    # what the widgets fill in

    def brief(self) -> str:
        """What it shows, in a few words for the repr."""
        return ""

    def draw(self, figure: Figure) -> None:
        """The static picture, drawn into the figure."""
        raise NotImplementedError

    def summary(self) -> pd.DataFrame:
        """The static table."""
        raise NotImplementedError

    def _say_error(self, words: str) -> None:
        """Show an error, HTML; "" for none."""
        raise NotImplementedError

    def _say_notice(self, words: str) -> None:
        """Show what is no error, HTML; "" for nothing."""
        raise NotImplementedError

    def _say_progress(self, text: str, share: float | None) -> None:
        """Show what runs in the background; "" for nothing."""
        raise NotImplementedError

    @property
    def error(self) -> str:
        """The error that is shown, as HTML; "" for none."""
        raise NotImplementedError

    @property
    def notice(self) -> str:
        """What is said beside errors, as HTML; "" for nothing."""
        raise NotImplementedError

    # progress, cancelling, errors

    def work(self, what: str, function: Callable[[], Any], done: Callable[[Any], None], *, short: bool = False) -> None:
        """Run the function in the background and hand its result to `done`; what is short goes before what is long."""
        with STATE:
            self._check_open()
            self.clear_error()
            self.worker.start(what, function, done, short=short)

    def cancel(self) -> None:
        """Stop what runs in the background."""
        if self.worker.busy:
            self._say_progress("stopping …", None)
        self.worker.cancel()

    def stopped(self, what: str) -> None:
        """Work was cancelled before it had a result."""
        self._say_notice(f'<div class="qkit-note">{html.escape(what)}: stopped, and nothing to keep yet.</div>')
        self._without_result()

    def wait(self, timeout: float = 600.0) -> None:
        """Block until the work in the background is done, as in a script or a notebook that is run as a whole."""
        self.worker.wait(timeout)

    def _progress(self, what: str, share: float | None) -> None:
        self._say_progress(what and (f"{what} …" if share is None else f"{what}: {100 * share:.0f} %"), share)
        if not what:
            self.changed()

    def show_error(self, error: Exception) -> None:
        """Say it under the widget: qkit's own errors as their sentence, others with their traceback to unfold."""
        words = html.escape(str(error) if isinstance(error, QkitError) else f"{type(error).__name__}: {error}")
        trace = ""
        if not isinstance(error, QkitError):
            lines = html.escape("".join(traceback.format_exception(error)))
            trace = f"<details><summary>traceback</summary><pre>{lines}</pre></details>"
        self._say_error(f'<div class="qkit-error" role="alert">{words}{trace}</div>')
        self._without_result()

    def _without_result(self) -> None:
        """Work was cancelled or went wrong: show again what there is."""

    @shown
    def _pressed(self, action: Callable[[], None]) -> None:
        """What a button does."""
        action()

    def clear_error(self) -> None:
        """Nothing is wrong."""
        if self.error:
            self._say_error("")
        if self.notice:
            self._say_notice("")

    # the static stand-in

    def changed(self) -> None:
        """The state is another: the stand-in follows once it is quiet."""
        if not self._displays:
            return
        self._age += 1
        self.worker.later(_QUIET, partial(self._update_stand_in, self._age))

    def png(self) -> bytes:
        """The static picture."""
        self._check_open()
        with matplotlib.style.context(["default", STYLE]):
            figure = Figure(figsize=(8.4, 3.4), layout="constrained", facecolor="white", dpi=_DPI)
            self.draw(figure)
            buffer = io.BytesIO()
            figure.savefig(buffer, format="png")
        return buffer.getvalue()

    def _table(self) -> str:
        whole = self.summary()
        table = whole.head(self.most_rows).to_html(float_format="{:.4g}".format, border=0, na_rep="–")
        if whole.map(lambda cell: len(str(cell)) > _SENTENCE).any(axis=None):
            table = table.replace("<td>", '<td style="text-align:left;white-space:normal">')
        left = len(whole) - self.most_rows
        return f'<div style="overflow:auto;white-space:nowrap">{table}</div>' + (
            f"<p>… and {left} more rows</p>" if left > 0 else ""
        )

    def _bundles(self) -> dict[str, dict[str, Any]]:
        return {
            "picture": {"image/png": self.png(), "text/plain": repr(self)},
            "table": {
                "text/html": f'<style>{_NO_WIDGET}</style><div class="qkit-static">{_AGAIN}{self._table()}</div>',
                "text/plain": self.summary().to_string(),
            },
        }

    def _update_stand_in(self, age: int) -> None:
        with STATE:
            if age == self._age and not self.closed and not self.worker.busy:  # else it has changed since, or will
                self._draw_stand_in()

    def _draw_stand_in(self) -> None:
        bundles, self._drawn = self._bundles(), self._age
        for name, bundle in bundles.items():
            self._displays[name].update(bundle, raw=True)

    def _ipython_display_(self, **_: Any) -> None:
        from IPython.display import display

        if self.closed:
            display({"text/plain": repr(self)}, raw=True)
            return
        cells.showing(self, self._made_in)
        view = {"version_major": 2, "version_minor": 0, "model_id": self.model_id}
        display({"application/vnd.jupyter.widget-view+json": view, "text/plain": repr(self)}, raw=True)
        self._displays = {name: display(bundle, raw=True, display_id=True) for name, bundle in self._bundles().items()}
        self._drawn = self._age

    def _repr_mimebundle_(self, **options: Any) -> Any:
        """Widget, picture, table and text, for whoever asks for a bundle rather than a display."""
        view = {"version_major": 2, "version_minor": 0, "model_id": self.model_id}
        return {
            "application/vnd.jupyter.widget-view+json": view,
            "image/png": self.png(),
            "text/html": self._table(),
            "text/plain": repr(self),
        }

    def __repr__(self) -> str:
        return f"{type(self).__name__}({'closed' if self.closed else self.brief()})"
