"""The notebooks in JupyterLab in a real browser, from a copy of their folder.

All open with their stored outputs, the solutions too; 04 and 07 run from top to bottom, and each slider and menu in
them moves its picture. HCM_SCREENSHOTS names a folder to keep the screenshots in.
"""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hcm_helpers import run

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install playwright")

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here (Debian: apt install chromium)"),
]
QUIET = ["--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
QUIET += ["--disable-component-update", "--disable-sync"]  # this browser calls nobody but the server
NAMES = [
    path.relative_to(run.NOTEBOOKS).with_suffix("").as_posix()
    for path in sorted(run.NOTEBOOKS.rglob("*.ipynb"))
    if ".ipynb_checkpoints" not in path.parts
]
CELL_SECONDS = 900  # a whole notebook on a busy machine, far above what it takes

# In the page: the addresses of the pictures beside the controls of a cell; a new picture has a new one.
PICTURES = "cell => [...cell.querySelectorAll('.jp-Cell-outputWrapper img')].map(picture => picture.src).join()"
# Whether no formula has been set since the last time that this was asked.
TYPESET = """() => {
    const before = window.typeset;
    window.typeset = document.querySelectorAll('.jp-Notebook mjx-container').length;
    return before === window.typeset;
}"""
PANEL = "jupyterapp.shell.currentWidget"


def plain(name: str) -> str:
    return name.replace("/", "-")


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """A copy of the notebooks, with room for data/ and runs/ beside it."""
    home = tmp_path_factory.mktemp("home")
    shutil.copytree(run.NOTEBOOKS, home / "notebooks", ignore=shutil.ignore_patterns(".ipynb_checkpoints"))
    return home


@pytest.fixture(scope="module")
def lab(home) -> str:
    """The address of a JupyterLab on that copy, to be filled in with path and workspace, until the tests end."""
    places = {f"JUPYTER_{kind}_DIR": str(home / f"jupyter-{kind.lower()}") for kind in ("CONFIG", "DATA", "RUNTIME")}
    places |= {f"JUPYTERLAB_{kind}_DIR": str(home / f"lab-{kind.lower()}") for kind in ("SETTINGS", "WORKSPACES")}
    for place in places.values():
        Path(place).mkdir()
    news = home / "lab-settings" / "@jupyterlab" / "apputils-extension"
    news.mkdir(parents=True)
    (news / "notification.jupyterlab-settings").write_text('{"fetchNews": "false", "checkForUpdates": false}')
    options = ["--no-browser", "--allow-root", "--expose-app-in-browser", "--ServerApp.port=0"]
    environment = {name: value for name, value in os.environ.items() if name != "HCM_HEADLESS"} | places
    with (home / "lab.log").open("w") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", "jupyterlab", *options, str(home / "notebooks")],
            env=environment,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    try:
        yield address(server, home)
    finally:
        server.terminate()  # it ends its kernels
        try:
            server.wait(30)
        except subprocess.TimeoutExpired:
            server.kill()


def address(server: subprocess.Popen, home: Path) -> str:
    """Where the server listens, from the file that it writes once it does."""
    for _ in range(1200):
        for file in (home / "jupyter-runtime").glob("jpserver-*.json"):
            told = json.loads(file.read_text() or "{}")
            if told.get("port"):
                return f"http://127.0.0.1:{told['port']}/lab/workspaces/{{1}}/tree/{{0}}.ipynb?token={told['token']}"
        assert server.poll() is None, (home / "lab.log").read_text()
        time.sleep(0.1)
    raise AssertionError((home / "lab.log").read_text())


@pytest.fixture
def open_notebook(lab):
    """A function that opens a notebook by name and returns its page once kernel and outputs are there."""
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=QUIET, chromium_sandbox=False)
        page = browser.new_page(viewport={"width": 1400, "height": 1000})
        page.set_default_timeout(120_000)
        thrown = []
        page.on("pageerror", lambda error: thrown.append(str(error)))

        def opened(name: str):
            page.goto(lab.format(name, plain(name)))
            page.wait_for_function(
                f"window.jupyterapp && {PANEL}?.context?.isReady"
                f" && {PANEL}.sessionContext.session?.kernel?.status === 'idle'"
            )
            page.evaluate(f"{PANEL}.revealed.then(() => true)")
            return page

        yield opened
        page.evaluate("jupyterapp.serviceManager.sessions.shutdownAll()")
        browser.close()
        assert not thrown


@pytest.fixture
def shoot(tmp_path):
    """A function that keeps a screenshot of a page or a part of it under a name."""
    folder = Path(os.environ.get("HCM_SCREENSHOTS", tmp_path))
    folder.mkdir(parents=True, exist_ok=True)
    return lambda seen, name: seen.screenshot(path=folder / f"{name}.png", animations="disabled")


def outputs(page) -> list[dict]:
    """All stored outputs of the open notebook."""
    return page.evaluate(f"[...{PANEL}.content.model.cells].flatMap(cell => cell.toJSON().outputs ?? [])")


def assert_no_errors(page) -> None:
    """No cell shows a traceback, a warning, an image that is broken, a formula or a widget that cannot be drawn."""
    assert [told for told in outputs(page) if told["output_type"] == "error" or told.get("name") == "stderr"] == []
    notebook = page.locator(".jp-Notebook")
    assert notebook.locator("[data-mime-type='application/vnd.jupyter.error']").all_text_contents() == []
    assert notebook.locator("[data-mime-type='application/vnd.jupyter.stderr']").all_text_contents() == []
    assert (
        notebook.locator("mjx-merror, mjx-mtext[style*='red'], .jupyter-widgets-error-widget").all_text_contents() == []
    )
    images = notebook.locator(".jp-OutputArea img, .jp-MarkdownOutput img").evaluate_all(
        "images => Promise.all(images.map(image => image.decode().then(() => null, () => image.outerHTML)))"
    )
    assert [image[:300] for image in images if image] == []


@pytest.mark.parametrize("name", NAMES)
def test_opens_with_its_stored_outputs(name, open_notebook, shoot):
    page = open_notebook(name)
    cells = json.loads((run.NOTEBOOKS / f"{name}.ipynb").read_text())["cells"]
    pictures = sum("image/png" in told.get("data", {}) for cell in cells for told in cell.get("outputs", []))
    page.wait_for_function(
        "count => document.querySelectorAll('.jp-Notebook .jp-OutputArea-output img').length >= count", arg=pictures
    )
    page.wait_for_function(TYPESET, polling=1000)
    texts = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown"]
    assert page.locator(".jp-Notebook .jp-MarkdownCell .jp-MarkdownOutput").count() == len(texts)
    assert (page.locator(".jp-Notebook mjx-container").count() > 0) == any("$" in text for text in texts)
    assert_no_errors(page)
    shoot(page, plain(name))


@pytest.mark.parametrize("name", ["04_dcgan", "07_diffusion"])
def test_runs_and_its_sliders_move_the_picture(name, home, open_notebook, shoot):
    if not (home / "runs").exists():
        run.run_series("quick", only=["01"], home=home)
    page = open_notebook(name)
    page.evaluate(
        "void jupyterapp.commands.execute('notebook:run-all-cells').then(() => document.body.dataset.ran = true)"
    )
    page.wait_for_function("document.body.dataset.ran", timeout=CELL_SECONDS * 1000)
    assert_no_errors(page)
    code = page.evaluate(
        f"[...{PANEL}.content.model.cells].map(cell => cell.toJSON()).filter(cell => cell.cell_type === 'code')"
    )
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))

    cells = page.evaluate(
        f"""{PANEL}.content.widgets.map(cell => {{
            const touched = (cell.model.getMetadata('tags') ?? []).includes('skip-execution');
            if (touched) cell.node.dataset.touched = cell.model.id;
            return touched ? cell.model.id : null;
        }}).filter(id => id)"""
    )
    assert cells
    for cell in cells:
        move_all(page, page.locator(f"[data-touched='{cell}']"), lambda seen, at=cell: shoot(seen, f"{name}-{at}"))
    assert_no_errors(page)
    shoot(page, f"{name}-ran")


def move_all(page, cell, shoot) -> None:
    """Move each slider one step and set each menu to its next entry, and see the picture change with it."""
    area = cell.locator(".jp-Cell-outputWrapper")
    area.scroll_into_view_if_needed()
    sliders, menus = area.locator(".noUi-handle"), area.locator("select")
    sliders.or_(menus).first.wait_for()
    area.locator("img").first.wait_for()
    for control in sliders.all() + menus.all():
        before = cell.evaluate(PICTURES)
        if control.evaluate("control => control.tagName") == "SELECT":
            chosen, entries = control.evaluate("menu => [menu.selectedIndex, menu.length]")
            control.select_option(index=(chosen + 1) % entries)
        else:
            at, most = (float(control.get_attribute(f"aria-value{name}")) for name in ("now", "max"))
            control.press("ArrowLeft" if at == most else "ArrowRight")
        changed = f"([cell, before]) => ![before, ''].includes(({PICTURES})(cell))"
        page.wait_for_function(changed, arg=[cell.element_handle(), before])
        page.wait_for_function(f"{PANEL}.sessionContext.session.kernel.status === 'idle'")
    shoot(area)
