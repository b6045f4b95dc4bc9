"""What only a notebook needs: the package's source beside the text, and sliders."""

import inspect
import textwrap
from collections.abc import Callable

from IPython.display import Markdown, display
from ipywidgets import interactive


def show_source(*objects: object) -> None:
    """Show the source of functions, methods, classes or modules in the output, as the package has it.

    Raises:
        TypeError: an object was not written in Python, or is a value: give its class or function.
    """
    for thing in objects:
        source = textwrap.dedent(inspect.getsource(thing)).rstrip()
        display(Markdown(f"```python\n{source}\n```"))


def slider(function: Callable, **ranges) -> None:
    """Call a function with values that the reader sets by sliders, and show what it returns.

    As ipywidgets.interact, but only when a slider is let go: sampling takes longer than a mouse moves.

    Args:
        function: called with one value a slider, by name.
        ranges: parameter → (low, high) or (low, high, step) for a slider, a list for a menu.
    """
    controls = interactive(function, {"auto_display": True}, **ranges)  # or what it returns is not shown
    for control in controls.children:
        if hasattr(control, "continuous_update"):
            control.continuous_update = False
    display(controls)
