"""Gets ACDC from its official address: resumed where it broke off, checked by its sha256, unpacked whole or not at all.

All happens in a folder beside the target, `.acdc.download` for `data/acdc`. A broken transfer leaves its `.part` file
there for the next call; at the end the unpacked folder is moved to its place, and the rest is removed.
"""

import os
import re
import shutil
import stat
import zipfile
import zlib
from functools import partial
from pathlib import Path, PurePosixPath
from time import sleep

import pooch
import requests
from tqdm import tqdm

from hcm_helpers.acdc import DataError, one_line

URL = "https://humanheart-project.creatis.insa-lyon.fr/database/api/v1/collection/637218c173e9f0047faa00fb/download"
SHA256 = "2787e08b0d3525cbac710fc3bdf69ee7c5fd7446472e49db8bc78548802f6b5e"
SPACE = 5 * 10**9  # bytes: the archive, its contents and something to spare
BLOCK = 2**16  # bytes written at a time: a broken transfer loses what had come of the last block
TRIES = 5  # of a transfer, before the user has to call again
LARGEST_RATIO = 3  # of the contents to the archive; that of ACDC is near 1, as its files are compressed already
TERMS = """\
ACDC, the Automated Cardiac Diagnosis Challenge. To be cited in any use:
  O. Bernard, A. Lalande, C. Zotti, F. Cervenansky, et al., "Deep Learning Techniques for Automatic MRI Cardiac
  Multi-structures Segmentation and Diagnosis: Is the Problem Solved?", IEEE Transactions on Medical Imaging
  37(11), 2514–2525, 2018, doi 10.1109/TMI.2018.2837502
Licence: CC BY-NC-SA 4.0, https://creativecommons.org/licenses/by-nc-sa/4.0; for research, non-commercial.
"""

# Where the files lie in the archive, and where below the target; not hidden files, nor the copies of the citation.
MEMBER = re.compile(r"(?:ACDC/)?(?:database/)?((?:training|testing)/patient\d+/[^/.][^/]*)(?<!\.md)")


def download(folder: str | Path, *, url: str = URL, sha256: str = SHA256, space: int = SPACE) -> None:
    """Download the archive and unpack it, so that folder/training/patient001 and so on exist.

    Args:
        folder: the folder to make; it may exist if it is empty.
        url: of the archive.
        sha256: of the archive.
        space: bytes that must be free, less what an earlier call left.

    Raises:
        DataError: the folder is not empty, the disk too full, the server does not answer, or the archive is not the
            one expected or not safe to unpack; the folder is then as it was.
    """
    folder = Path(folder).resolve()  # where it is a link, its target is filled
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise DataError(f"{folder} is not an empty folder: name another for ACDC, or remove this one")
    workplace = folder.with_name(f".{folder.name}.download")
    archive, part, unpacked = (workplace / name for name in ("archive.zip", "archive.zip.part", "unpacked"))
    try:
        workplace.mkdir(parents=True, exist_ok=True)
        lacking = space - sum(path.stat().st_size for path in workplace.iterdir()) - shutil.disk_usage(workplace).free
        if lacking > 0:
            raise DataError(f"{folder}: the disk lacks {lacking / 1e9:.1f} GB; make room or name another folder")
        get(url, archive, part, sha256)
        unpack(archive, unpacked)
        if folder.exists():
            folder.rmdir()
        unpacked.rename(folder)
        shutil.rmtree(workplace)
    except OSError as error:
        raise DataError(f"{folder}: cannot be written ({one_line(error)}); make room or name another folder") from error
    finally:
        shutil.rmtree(unpacked, ignore_errors=True)
        if workplace.is_dir() and not any(workplace.iterdir()):
            workplace.rmdir()


def get(url: str, archive: Path, part: Path, sha256: str) -> None:
    """Download the archive through pooch, unless it is there; a corrupt one is deleted.

    Raises:
        DataError: the server refuses, the connection broke too often, or the sha256 is another.
    """
    pooch.get_logger().setLevel("WARNING")  # this module tells what happens
    try:
        fetch = partial(resume, part=part)
        pooch.retrieve(url, f"sha256:{sha256}", archive.name, archive.parent, downloader=fetch)
    except requests.RequestException as error:
        answer = error.response
        reason = "the connection failed" if answer is None else f"the server says {answer.status_code} {answer.reason}"
        kept = f", the {part.stat().st_size / 1e6:.1f} MB that came are kept" if part.exists() else ""
        raise DataError(f"{url}: {reason}; call again later{kept}") from error
    except DataError:
        raise
    except ValueError as error:  # pooch's, where the sha256 differs
        raise DataError(f"{url}: the archive that came is corrupt, so it is deleted; call again") from error


def resume(url: str, output_file: str, pooch: object, *, part: Path) -> None:
    """A downloader for pooch that keeps what has come, over several tries and several calls.

    Args:
        url: the file's address.
        output_file: where pooch wants the file.
        pooch: given by pooch, not needed.
        part: the file as far as it has come; it becomes `output_file`.

    Raises:
        requests.RequestException: the server refuses, or the last try broke off too.
    """
    for trial in range(1, TRIES + 1):
        try:
            transfer(url, part)
            break
        except requests.RequestException as error:
            refused = error.response is not None and error.response.status_code < 500
            if refused or trial == TRIES:
                raise
            sleep(2**trial)
    os.replace(part, output_file)


def transfer(url: str, part: Path) -> None:
    """Get what is missing of a file, or all of it from a server that knows no ranges.

    Raises:
        requests.RequestException: the server refuses or the connection broke; `part` holds what came until then.
        DataError: a web page came instead, as from a network that wants a login first; `part` is as it was.
    """
    start = part.stat().st_size if part.exists() else 0
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={start}-"} if start else {})
    with requests.get(url, headers=headers, stream=True, timeout=60) as response:
        if start and response.status_code == 416:  # nothing is missing, or else the sha256 will tell
            return
        response.raise_for_status()
        if response.headers.get("Content-Type", "").startswith("text/"):
            kept = "; what has come before is kept" if start else ""
            raise DataError(f"{url}: sent a web page, not the archive; open it in a browser, then call again{kept}")
        start = start if response.status_code == 206 else 0
        length = response.headers.get("Content-Length")
        total = start + int(length) if length else None
        with (
            part.open("ab" if start else "wb") as file,
            tqdm(desc="ACDC", total=total, initial=start, unit="B", unit_scale=True, disable=None) as bar,
        ):
            for block in response.iter_content(BLOCK):
                file.write(block)
                bar.update(len(block))
    if total is not None and part.stat().st_size != total:
        raise requests.ConnectionError(f"{part.stat().st_size} of {total} bytes came")


def unpack(archive: Path, folder: Path) -> None:
    """Unpack the patients' files of ACDC's zip into a folder, after all members have been checked.

    Args:
        archive: the zip; one that is refused is deleted.
        folder: gets training/ and testing/.

    Raises:
        DataError: it is no zip, holds no patients, or is not safe to unpack; nothing is written then.
    """
    try:
        with zipfile.ZipFile(archive) as members:
            check_members(members.infolist(), archive.stat().st_size)
            places = {member: MEMBER.fullmatch(member.filename) for member in members.infolist()}
            places = {member: folder / match[1] for member, match in places.items() if match}
            if not places:
                raise DataError("holds no training/patientNNN, so it is not ACDC")
            for member, path in tqdm(places.items(), "unpack", disable=None):
                path.parent.mkdir(parents=True, exist_ok=True)
                with members.open(member) as packed, path.open("wb") as file:
                    shutil.copyfileobj(packed, file)
    # A ValueError where a name is not UTF-8, a NotImplementedError where another version of zip is asked for.
    except (ValueError, EOFError, NotImplementedError, zipfile.BadZipFile, zlib.error) as error:
        archive.unlink()
        raise DataError(f"{archive}: {one_line(error)}; it is not unpacked and deleted") from error


def check_members(members: list[zipfile.ZipInfo], packed: int) -> None:
    """Refuse an archive that could write elsewhere or fill the disk.

    Args:
        members: all of the archive's.
        packed: bytes of the archive.

    Raises:
        DataError: a name that leaves the folder, something else than a file or folder, an encrypted member or one of
            another compression, or far more contents than the archive's size allows.
    """
    for member in members:
        name, kind = member.orig_filename, stat.S_IFMT(member.external_attr >> 16)
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts or any(sign in name for sign in "\\:\0"):
            raise DataError(f"the member {name!r} could be written outside the folder")
        if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
            raise DataError(f"the member {name!r} is a link or device, not a file")
        if member.flag_bits & 1 or member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise DataError(f"the member {name!r} is packed in another way than ACDC's files")
    contents = sum(member.file_size for member in members)
    if contents > LARGEST_RATIO * packed:
        raise DataError(f"{packed} bytes would become {contents}, too many for ACDC")
