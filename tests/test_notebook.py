"""What only a notebook needs."""

from hcm_helpers import notebook
from hcm_helpers.acdc import DataError
from hcm_helpers.slices import Slices


def test_a_slider_shows_what_its_function_returns(monkeypatch, capsys):
    panels = []
    monkeypatch.setattr(notebook, "display", panels.append)
    notebook.slider(lambda at: f"heart {at}", at=(0, 4))
    assert "heart 2" in capsys.readouterr().out, "at first, with the slider in the middle"
    panels[0].children[0].value = 3
    assert "heart 3" in capsys.readouterr().out


def test_show_source_is_the_source_of_a_method(monkeypatch):
    shown = []
    monkeypatch.setattr(notebook, "display", shown.append)
    notebook.show_source(Slices.__len__, DataError)
    method, error = (markdown.data for markdown in shown)
    assert method == "```python\ndef __len__(self) -> int:\n    return len(self.images)\n```"
    assert error.startswith("```python\nclass DataError(ValueError):\n")


def test_slider_waits_until_it_is_let_go(monkeypatch):
    shown, calls = [], []
    monkeypatch.setattr(notebook, "display", shown.append)
    notebook.slider(lambda beta, kind: calls.append((beta, kind)), beta=(0.0, 4.0, 0.5), kind=["mean", "sample"])
    beta, kind = shown[0].children[:2]
    assert beta.continuous_update is False
    beta.value = 3.5
    kind.value = "sample"
    assert calls[-1] == (3.5, "sample")
