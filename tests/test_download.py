"""Getting ACDC: from a local server that serves, breaks off, knows no ranges or lies; no network is needed."""

import hashlib
import io
import re
import stat
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import numpy as np
import pytest
from click.testing import CliRunner
from patients import write_patient

from hcm_helpers import cli, download
from hcm_helpers.acdc import DataError, find_patients
from hcm_helpers.download import BLOCK, SHA256, URL


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """Two patients, as they are to arrive, one of them with a cine."""
    root = tmp_path_factory.mktemp("source")
    write_patient(root, 1, "NOR")
    cine = np.random.default_rng(0).bytes(10 * BLOCK)
    (write_patient(root, 101, "RV", "testing") / "patient101_4d.nii.gz").write_bytes(cine)
    return root


def tree(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def archive(source):
    """A zip in the official layout, with the junk that such zips have."""
    return make_zip(source, {"ACDC/.DS_Store": b"?", "ACDC/database/MANDATORY_CITATION.md": b"cite"})


def make_zip(source, more):
    """The bytes of a zip of the two patients and more members, name or ZipInfo: content."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as members:
        members.mkdir("ACDC/database/training")
        for name, content in tree(source).items():
            members.writestr(f"ACDC/database/{name}", content)
            members.writestr(f"__MACOSX/ACDC/database/{name}", b"junk")
        for split in ("training/patient001", "testing/patient101"):
            for name in ("MANDATORY_CITATION.md", ".DS_Store", "._Info.cfg"):
                members.writestr(f"ACDC/database/{split}/{name}", b"junk")
        for name, content in more.items():
            members.writestr(name, content)
    return buffer.getvalue()


class Handler(BaseHTTPRequestHandler):
    """Serves server.content; each of server.faults spoils one request, in turn."""

    def do_GET(self):
        content, asked = self.server.content, self.headers.get("Range")
        fault = self.server.faults.pop(0) if self.server.faults else None
        start = int(re.fullmatch(r"bytes=(\d+)-", asked)[1]) if asked and not self.server.knows_no_ranges else 0
        self.server.log.append(SimpleNamespace(range=asked, sent=0))
        if isinstance(fault, int):
            self.send_error(fault)
            return
        if start >= len(content):
            self.send_error(416)
            return
        body = content[start:]
        if fault == "page":
            body, start = b"<html>log in first</html>", 0
        self.send_response(206 if start else 200)
        self.send_header("Content-Type", "text/html; charset=utf-8" if fault == "page" else "application/zip")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if fault == "breaks":
            body = body[: len(body) // 2]
        self.wfile.write(body)
        self.server.log[-1].sent = len(body)

    def log_message(self, *arguments):
        pass


@pytest.fixture
def server(archive, monkeypatch):
    """A web server on this machine; no waiting between tries."""
    waits = []
    monkeypatch.setattr(download, "sleep", waits.append)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.content, server.faults, server.log, server.knows_no_ranges, server.waits = archive, [], [], False, waits
    server.url = f"http://127.0.0.1:{server.server_port}/download"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def fetch(server, folder, content=None):
    """Download from the server; the sha256 is that of the content it should have."""
    sha256 = hashlib.sha256(server.content if content is None else content).hexdigest()
    download.download(folder, url=server.url, sha256=sha256, space=0)


def refusal(server, folder, content=None) -> str:
    with pytest.raises(DataError) as error:
        fetch(server, folder, content)
    assert "\n" not in str(error.value)
    return str(error.value)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_official_address_and_checksum():
    assert URL.startswith("https://humanheart-project.creatis.insa-lyon.fr/database/")
    assert re.fullmatch("[0-9a-f]{64}", SHA256)
    assert download.download.__kwdefaults__ == {"url": URL, "sha256": SHA256, "space": 5 * 10**9}


def test_the_patients_arrive_and_nothing_else(server, source, tmp_path):
    fetch(server, tmp_path / "data" / "acdc")
    assert tree(tmp_path / "data" / "acdc") == tree(source)
    assert [patient.name for patient in find_patients(tmp_path / "data" / "acdc")] == ["patient001", "patient101"]
    assert names(tmp_path / "data") == ["acdc"]
    assert [request.range for request in server.log] == [None]


def test_an_empty_folder_is_filled(server, source, tmp_path):
    (tmp_path / "acdc").mkdir()
    fetch(server, tmp_path / "acdc")
    assert tree(tmp_path / "acdc") == tree(source)


def test_a_link_to_an_empty_folder_is_followed(server, source, tmp_path):
    (tmp_path / "disk" / "empty").mkdir(parents=True)
    (tmp_path / "acdc").symlink_to(tmp_path / "disk" / "empty")
    fetch(server, tmp_path / "acdc")
    assert tree(tmp_path / "disk" / "empty") == tree(source)
    assert names(tmp_path) == ["acdc", "disk"]


def test_a_broken_transfer_goes_on_where_it_broke(server, source, archive, tmp_path):
    server.faults = ["breaks", "breaks"]
    fetch(server, tmp_path / "acdc")
    assert tree(tmp_path / "acdc") == tree(source)
    first = len(archive) // 2
    kept = first // BLOCK * BLOCK
    second = (len(archive) - kept) // 2
    kept_again = kept + second // BLOCK * BLOCK
    assert 0 < kept < kept_again
    assert [(request.range, request.sent) for request in server.log] == [
        (None, first),
        (f"bytes={kept}-", second),
        (f"bytes={kept_again}-", len(archive) - kept_again),
    ]
    assert server.waits == [2, 4]


def test_a_later_call_goes_on_too(server, source, archive, tmp_path):
    server.faults = ["breaks"] + 4 * [503]
    message = refusal(server, tmp_path / "acdc")
    reason = "the server says 503 Service Unavailable"
    assert message == f"{server.url}: {reason}; call again later, the 0.3 MB that came are kept"
    assert names(tmp_path) == [".acdc.download"]
    part = tmp_path / ".acdc.download" / "archive.zip.part"
    kept = len(archive) // 2 // BLOCK * BLOCK
    assert part.read_bytes() == archive[:kept]

    fetch(server, tmp_path / "acdc")
    assert tree(tmp_path / "acdc") == tree(source)
    assert names(tmp_path) == ["acdc"]
    assert server.log[-1].sent == len(archive) - kept


def test_a_server_without_ranges_starts_over(server, source, archive, tmp_path):
    server.knows_no_ranges, server.faults = True, ["breaks"]
    fetch(server, tmp_path / "acdc")
    assert tree(tmp_path / "acdc") == tree(source)
    assert server.log[1].range is not None
    assert server.log[1].sent == len(archive)


@pytest.mark.parametrize("whole", [True, False])
def test_a_part_as_long_as_the_file_is_judged_by_its_checksum(server, archive, tmp_path, whole):
    part = tmp_path / ".acdc.download" / "archive.zip.part"
    part.parent.mkdir()
    part.write_bytes(archive if whole else bytes(len(archive)))
    if whole:
        fetch(server, tmp_path / "acdc")
        assert names(tmp_path) == ["acdc"]
    else:
        assert "corrupt" in refusal(server, tmp_path / "acdc")
        assert names(tmp_path) == []
    assert [request.sent for request in server.log] == [0]


def test_a_server_that_refuses_is_asked_once(server, tmp_path):
    server.faults = [404]
    assert refusal(server, tmp_path / "acdc") == f"{server.url}: the server says 404 Not Found; call again later"
    assert len(server.log) == 1
    assert names(tmp_path) == []


def test_a_web_page_in_place_of_the_archive_does_not_cost_what_has_come(server, source, archive, tmp_path):
    server.faults += ["breaks", "page", "page"]
    assert "sent a web page, not the archive" in refusal(server, tmp_path / "acdc")
    kept = (tmp_path / ".acdc.download/archive.zip.part").stat().st_size
    assert archive.startswith((tmp_path / ".acdc.download/archive.zip.part").read_bytes())
    assert kept > BLOCK
    assert "what has come before is kept" in refusal(server, tmp_path / "acdc")
    fetch(server, tmp_path / "acdc")
    assert server.log[-1].range == f"bytes={kept}-"
    assert tree(tmp_path / "acdc") == tree(source)


def test_no_server_at_all(server, tmp_path):
    server.url = "http://127.0.0.1:1/download"
    assert refusal(server, tmp_path / "acdc") == f"{server.url}: the connection failed; call again later"
    assert server.waits == [2, 4, 8, 16]


def test_a_corrupt_archive_is_deleted(server, archive, tmp_path):
    server.content = archive[:-1] + b"?"
    message = refusal(server, tmp_path / "acdc", archive)
    assert message == f"{server.url}: the archive that came is corrupt, so it is deleted; call again"
    assert names(tmp_path) == []


def special(kind=0, compression=zipfile.ZIP_STORED):
    """A member that no archive of ACDC has."""
    member = zipfile.ZipInfo("ACDC/database/training/patient001/special.nii.gz")
    member.external_attr, member.compress_type = (kind | 0o777) << 16, compression
    return member


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("../evil", b"x", "the member '../evil' could be written outside the folder"),
        ("ACDC/database/training/patient001/../../../../evil", b"x", "outside the folder"),
        ("/tmp/evil", b"x", "the member '/tmp/evil' could be"),
        ("C:/evil", b"x", "the member 'C:/evil' could be"),
        ("ACDC\\..\\evil", b"x", "outside the folder"),
        (special(stat.S_IFLNK), b"/etc", "is a link or device, not a file"),
        (special(stat.S_IFIFO), b"", "is a link or device, not a file"),
        (special(compression=zipfile.ZIP_LZMA), b"x", "is packed in another way"),
        ("ACDC/database/training/patient001/bomb.nii.gz", bytes(10**7), "bytes would become"),
    ],
    ids=["parent", "far parent", "absolute", "drive", "backslash", "link", "pipe", "lzma", "bomb"],
)
def test_an_evil_archive_is_not_unpacked(server, source, tmp_path, monkeypatch, name, content, words):
    def forbidden(*arguments):
        raise AssertionError("a member was opened before all were checked")

    server.content = make_zip(source, {name: content})
    monkeypatch.setattr(zipfile.ZipFile, "open", forbidden)
    message = refusal(server, tmp_path / "below" / "acdc")
    assert words in message
    assert message.endswith("; it is not unpacked and deleted")
    assert names(tmp_path / "below") == []
    assert names(tmp_path) == ["below"]


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ((10**7).to_bytes(4, "little"), (10).to_bytes(4, "little"), "Bad CRC-32"),
        (b"PK\1\2\x14\3\x14\0\0\0", b"PK\1\2\x14\3\x14\0\1\0", "is packed in another way"),
        ("ÿ".encode(), b"\xff\xff", "can't decode byte"),
    ],
    ids=["a bomb that says it is small", "encrypted", "a name that is no UTF-8"],
)
def test_an_archive_that_lies_is_not_unpacked(server, source, tmp_path, old, new, words):
    content = make_zip(source, {"ACDC/database/training/patient001/ÿ.nii.gz": bytes(10**7)})
    assert old in content
    server.content = content.replace(old, new)
    message = refusal(server, tmp_path / "below" / "acdc")
    assert words in message
    assert message.endswith("; it is not unpacked and deleted")
    assert names(tmp_path / "below") == []


@pytest.mark.parametrize("content", [b"<html>later</html>", b"PK\x05\x06" + bytes(18)])  # no zip, an empty zip
def test_an_archive_without_patients(server, tmp_path, content):
    server.content = content
    assert refusal(server, tmp_path / "acdc").endswith("; it is not unpacked and deleted")
    assert names(tmp_path) == []


def test_a_member_that_fails_leaves_nothing(server, source, tmp_path):
    broken = bytearray(make_zip(source, {"ACDC/database/testing/patient101/z.nii.gz": b"0123456789" * 3}))
    place = broken.index(b"z.nii.gz") + len(b"z.nii.gz")
    broken[place + 3] ^= 0xFF  # the last member's content, below its checksum
    server.content = bytes(broken)
    assert refusal(server, tmp_path / "acdc").endswith("; it is not unpacked and deleted")
    assert names(tmp_path) == []


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_something_else_in_the_place_is_left_alone(server, tmp_path, kind):
    place = tmp_path / "acdc"
    if kind == "folder":
        place.mkdir()
        (place / "thesis.tex").touch()
    else:
        place.touch()
    assert "is not an empty folder" in refusal(server, place)
    assert server.log == []
    assert names(tmp_path) == ["acdc"]


def test_a_full_disk_is_told_before_the_start(server, tmp_path, monkeypatch):
    monkeypatch.setattr(download.shutil, "disk_usage", lambda path: SimpleNamespace(free=3_400_000_000))
    with pytest.raises(DataError, match=r"the disk lacks 1\.6 GB; make room"):
        download.download(tmp_path / "acdc", url=server.url)
    assert server.log == []
    assert names(tmp_path) == []


# --- the command


@pytest.fixture
def hcm(server, tmp_path, monkeypatch):
    """Calls `hcm` in a folder of its own, with the local server in the place of the official one."""
    official = {"url": server.url, "sha256": hashlib.sha256(server.content).hexdigest(), "space": 0}
    monkeypatch.setattr(download.download, "__kwdefaults__", official)
    monkeypatch.chdir(tmp_path)
    return lambda *arguments, **more: CliRunner().invoke(cli.cli, [str(each) for each in arguments], **more)


def test_command_shows_the_terms_and_downloads_to_data_acdc(hcm, server, source, tmp_path):
    result = hcm("download", "--accept-license")
    assert result.exit_code == 0, result.output
    for words in ("10.1109/TMI.2018.2837502", "Bernard", "CC BY-NC-SA 4.0", "non-commercial"):
        assert words in result.output
    assert result.output.endswith("2 patients in data/acdc; `hcm check data/acdc` reads them all\n")
    assert tree(tmp_path / "data" / "acdc") == tree(source)

    result = hcm("download")
    assert result.exit_code == 0
    assert result.output.endswith("data/acdc holds ACDC already\n")
    assert len(server.log) == 1


def test_without_a_terminal_the_licence_needs_the_flag(hcm, server, tmp_path):
    result = hcm("download", "acdc")
    assert result.exit_code == 2
    assert "CC BY-NC-SA 4.0" in result.stdout
    assert result.stderr == "hcm: the licence is not accepted yet; read it and call with --accept-license\n"
    assert (server.log, names(tmp_path)) == ([], [])


@pytest.mark.parametrize(("answer", "requests"), [("y\n", 1), ("n\n", 0), ("\n", 0)])
def test_in_a_terminal_the_licence_is_asked_for(hcm, server, tmp_path, monkeypatch, answer, requests):
    class Terminal(io.BytesIO):
        def isatty(self):
            return True

    result = hcm("download", "acdc", input=Terminal(answer.encode()))
    assert result.exit_code == 1 - requests
    assert len(server.log) == requests
    assert names(tmp_path) == ["acdc"] * requests


def test_a_fault_is_one_sentence(hcm, server):
    server.faults = [403]
    result = hcm("download", "acdc", "--accept-license")
    assert result.exit_code == 2
    assert result.stderr.startswith(f"hcm: {server.url}: the server says 403 Forbidden")
    assert result.stderr.count("\n") == 1
