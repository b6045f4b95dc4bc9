"""What a run that goes on can keep: the notebooks that are done with the same inputs. And who else is at it."""

from __future__ import annotations

import hashlib
import json
import os
import platform
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from hcm_helpers.acdc import DataError
from hcm_helpers.files import refusal

PLACES = ("run_dir", "data_dir", "resume")  # parameters that say where and how, not what
CUT_OFF = "was cut off"


def inputs(notebook: Path, parameters: Mapping[str, Any]) -> dict[str, str]:
    """What decides about a notebook's results beside its parameters: digests of its code, the package's and the data's.

    Args:
        notebook: the file.
        parameters: all its parameters; those of notebook 01 name the data.
    """
    code = hashlib.sha256()
    for source in sorted(Path(__file__).parent.rglob("*.py")):
        code.update(source.read_bytes())
    for cell in json.loads(notebook.read_text(encoding="utf-8"))["cells"]:
        if cell["cell_type"] == "code":
            code.update("".join(cell["source"]).encode())
    found = {"code": code.hexdigest()}
    if parameters.get("data_dir"):
        root, data = Path(parameters["data_dir"]), hashlib.sha256()
        for path in sorted(root.rglob("*")):
            facts = path.stat()
            if path.is_file():  # a hash of the voxels would read them all
                data.update(f"{path.relative_to(root)} {facts.st_size} {facts.st_mtime_ns}\n".encode())
        found["data"] = data.hexdigest()
    return found


def reasons(
    order: Iterable[list[str]],
    before: Mapping[str, Mapping[str, Any]],
    parameters: Mapping[str, Mapping[str, Any]],
    now: Mapping[str, Mapping[str, str]],
) -> dict[str, str]:
    """Why each notebook that must run again must; those that need not are left out.

    Args:
        order: notebooks in their order, together those of which none reads what another one writes.
        before: of each that has been begun, what run.json says of it: state, parameters, inputs.
        parameters: of each, all that it would get.
        now: of each, its `inputs`.
    """
    why: dict[str, str] = {}
    for together in order:
        earlier = next(iter(why), None)
        for notebook in together:
            reason = _difference(before.get(notebook), parameters[notebook], now[notebook])
            if earlier and notebook in before:
                reason = f"{earlier} runs again"
            if reason:
                why[notebook] = reason
    return why


def _difference(before: Mapping[str, Any] | None, parameters: Mapping[str, Any], now: Mapping[str, str]) -> str | None:
    if before is None:
        return "has not been run"
    was, places = before["parameters"], set(PLACES)
    changed = [name for name in parameters.keys() - places if parameters[name] != was.get(name)]
    if changed:
        return "; ".join(f"{name} is {parameters[name]!r}, was {was.get(name)!r}" for name in sorted(changed))
    other = [what for what, digest in now.items() if before.get("inputs", {}).get(what) != digest]
    if other:
        return f"other {' and '.join(other)} than before"
    return None if before["state"] == "done" else CUT_OFF


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Keep a run's folder for this process; the system gives it back when the process ends, however it does.

    Args:
        folder: of the run, which is made if it is missing; its run.json says which process has it.

    Raises:
        DataError: another process has it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / ".lock", timeout=0)
        lock.acquire()
    except Timeout:
        try:
            owner = json.loads((folder / "run.json").read_text(encoding="utf-8"))["process"]
            who = f"process {owner['pid']} on {owner['host']}"
        except (OSError, ValueError, KeyError, TypeError):  # it has only just begun
            who = "another process"
        raise DataError(f"{folder.name} is being run by {who}: wait for it, or choose another --run") from None
    except OSError as error:
        raise refusal(folder, error) from error
    try:
        yield
    finally:
        lock.release()


def this_process() -> dict[str, Any]:
    """Number of this process and name of the machine."""
    return {"pid": os.getpid(), "host": platform.node()}
