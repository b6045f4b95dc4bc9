"""What only a notebook needs."""

from hcm_helpers import notebook


def test_a_slider_shows_what_its_function_returns(monkeypatch, capsys):
    panels = []
    monkeypatch.setattr(notebook, "display", panels.append)
    notebook.slider(lambda at: f"heart {at}", at=(0, 4))
    assert "heart 2" in capsys.readouterr().out, "at first, with the slider in the middle"
    panels[0].children[0].value = 3
    assert "heart 3" in capsys.readouterr().out
