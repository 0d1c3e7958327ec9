"""Fetches checkpoints from the Hugging Face hub into its cache, where other programs that use it find them too.

huggingface_hub speaks to the hub: names, tokens, redirects, errors. Files of several GB are written by us, since it
starts a file anew when the process was killed: what has arrived stays beside the cache's other blobs and only the rest
is asked for the next time. A file that is whole is compared with the SHA-256 that the hub gave for it.

The environment is huggingface_hub's own: HF_ENDPOINT, HF_HOME, HF_HUB_CACHE, HF_HUB_OFFLINE, HF_TOKEN.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from edge_runtime.errors import EdgeRuntimeError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator

    from edge_runtime.errors import ErrorCode

    Choose = Callable[[Collection[str]], list[str]]
    """Picks the files that are needed from those there are; EdgeRuntimeError if one of them is missing."""
    Progress = Callable[[str, int, int], None]
    """Called with what is being done, how many bytes are done and how many there are: of all files, or of the one that
    is being checked."""

_COMMIT = re.compile(r"[0-9a-f]{40}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_BLOCK = 1 << 22
_TRIES = 5
"""Failures in a row, without a byte between them, after which the line is given up."""
_PAUSE = 0.5
"""Seconds before the first new try; each further one waits twice as long."""


class Unreachable(EdgeRuntimeError):  # noqa: N818  the error's name is its meaning
    """The hub does not answer."""


@dataclass(frozen=True)
class RemoteFile:
    """A file of a listing."""

    name: str
    size: int
    etag: str
    """Under which the cache keeps it."""


@dataclass(frozen=True)
class Listing:
    """What a model on the hub consists of at one commit."""

    repo: str
    """`owner/name`."""
    revision: str
    """As it was asked for: a branch, a tag or the commit."""
    commit: str
    files: tuple[RemoteFile, ...]

    def pick(self, choose: Choose) -> list[RemoteFile]:
        """The files that `choose` picks, in its order."""
        by_name = {file.name: file for file in self.files}
        return [by_name[name] for name in choose(by_name)]


def cache_folder() -> Path:
    """The hub's cache."""
    if own := os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE"):
        return Path(own).expanduser()
    home = os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface"
    return Path(home).expanduser() / "hub"


def offline() -> bool:
    """Whether the user forbids the network."""
    words = (os.environ.get(name, "").upper() for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"))
    return any(word in {"1", "ON", "YES", "TRUE"} for word in words)


def cached(repo: str, revision: str, choose: Choose) -> Path | None:
    """The folder of a model that is in the cache with all the files that `choose` asks for."""
    store = _store(repo)
    commit = revision
    if not _COMMIT.fullmatch(revision):
        try:
            commit = (store / "refs" / revision).read_text(encoding="ascii").strip()
        except (OSError, ValueError):
            return None
    folder = store / "snapshots" / commit
    if not (_COMMIT.fullmatch(commit) and folder.is_dir()):
        return None
    try:
        choose([path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()])
    except EdgeRuntimeError:
        return None
    return folder


def look_up(repo: str, revision: str) -> Listing:
    """Asks the hub what a model consists of, and for which commit `revision` stands.

    Raises:
        Unreachable: no answer.
        EdgeRuntimeError: no such model or revision, no access to it, or huggingface_hub is not installed.
    """
    hub = _library()
    with _one_line(repo, revision):
        info = hub.HfApi(endpoint=_endpoint()).model_info(repo, revision=revision, files_metadata=True)
        files = tuple(
            RemoteFile(file.rfilename, file.size or 0, str(file.lfs["sha256"] if file.lfs else file.blob_id))
            for file in info.siblings or ()
        )
    if not _COMMIT.fullmatch(str(info.sha)):
        raise EdgeRuntimeError(f"{_endpoint()} names no commit of {repo}: it is no Hugging Face hub")
    return Listing(repo, revision, str(info.sha), files)


def missing_bytes(listing: Listing, choose: Choose) -> int:
    """How much of what `choose` picks is yet to come."""
    blobs = _store(listing.repo) / "blobs"
    missing = 0
    for file in listing.pick(choose):
        blob = blobs / file.etag
        if not blob.exists():
            partial = _partial(blob)
            missing += max(0, file.size - (partial.stat().st_size if partial.exists() else 0))
    return missing


def fetch(listing: Listing, choose: Choose, progress: Progress | None = None) -> Path:
    """Brings the files that `choose` picks into the cache, going on where an earlier try broke off.

    Returns:
        The folder that holds them.

    Raises:
        Unreachable: the hub stopped answering; what has arrived is kept.
        EdgeRuntimeError: no access, a damaged file, a full disk.
    """
    hub = _library()
    repo, commit, store = listing.repo, listing.commit, _store(listing.repo)
    files = listing.pick(choose)
    total, done = sum(file.size for file in files), 0
    with _one_line(repo, listing.revision):
        for file in files:

            def tell(what: str, count: int, file: RemoteFile = file, before: int = done) -> None:
                if progress and what == "fetching":
                    progress(f"{what} {file.name}", before + count, total)
                elif progress:
                    progress(f"{what} {file.name}", count, file.size)

            tell("fetching", 0)
            done += file.size
            if (store / "snapshots" / commit / file.name).exists():
                continue
            _fetch_blob(store, hub.hf_hub_url(repo, file.name, revision=commit, endpoint=_endpoint()), tell)
            # Finds the blob, and makes the name that leads to it.
            hub.hf_hub_download(repo, file.name, revision=commit, endpoint=_endpoint(), cache_dir=cache_folder())
        _remember(store, listing)
    return store / "snapshots" / commit


def _fetch_blob(store: Path, url: str, tell: Callable[[str, int], None]) -> None:
    from huggingface_hub.utils import WeakFileLock  # noqa: PLC0415

    metadata = _library().get_hf_file_metadata(url, endpoint=_endpoint())
    if Path(metadata.etag).name != metadata.etag:
        raise EdgeRuntimeError(f"{url} has the ETag {metadata.etag!r}, which cannot be a file's name")
    blob = store / "blobs" / metadata.etag
    # The lock that huggingface_hub takes: of two programs that want the same file, one waits.
    lock = store.parent / ".locks" / store.name / f"{metadata.etag}.lock"
    for folder in (blob.parent, lock.parent):
        folder.mkdir(parents=True, exist_ok=True)
    with WeakFileLock(lock):
        if not blob.exists():
            _download(url, metadata.size, blob, tell)


def _download(url: str, size: int | None, blob: Path, tell: Callable[[str, int], None]) -> None:
    """Makes `blob` from what its partial file has and what is still to come, with some patience for a bad line."""
    partial, tries = _partial(blob), 0
    with partial.open("ab") as file:
        if size is None or file.tell() > size:
            file.truncate(0)
        while True:
            before = file.seek(0, os.SEEK_END)
            try:
                if before != size or before == 0:
                    _receive(url, file, lambda arrived: tell("fetching", arrived))
                break
            except _passing_errors() as error:
                tries = 0 if file.tell() > before else tries + 1
                if tries == _TRIES or not _may_pass(error):
                    raise
                time.sleep(_PAUSE * 2**tries)
        file.flush()
        os.fsync(file.fileno())  # a name that a power cut leaves behind must not lead to half a file
    if size is not None and partial.stat().st_size != size:
        raise EdgeRuntimeError(f"{url} gave {partial.stat().st_size} bytes instead of {size}")
    if _SHA256.fullmatch(blob.name) and _sha256(partial, tell) != blob.name:
        partial.unlink()
        raise EdgeRuntimeError(f"{url} arrived damaged (wrong SHA-256) and was removed: try again")
    partial.replace(blob)


def _receive(url: str, file: BinaryIO, told: Callable[[int], None]) -> None:
    """Adds the rest of a file to what there is of it.

    The hub is asked anew each time, since the addresses in its storage that it redirects to expire. The redirect takes
    no token along.
    """
    from huggingface_hub import constants  # noqa: PLC0415
    from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status  # noqa: PLC0415

    start = file.tell()
    headers = build_hf_headers() | {"Accept-Encoding": "identity"} | ({"Range": f"bytes={start}-"} if start else {})
    session, patience = get_session(), constants.HF_HUB_DOWNLOAD_TIMEOUT
    with session.stream("GET", url, headers=headers, timeout=patience, follow_redirects=True) as response:
        hf_raise_for_status(response)
        if start and response.status_code != 206:  # it does not know Range and sends everything
            file.truncate(0)
        for block in response.iter_bytes():
            file.write(block)
            told(file.tell())


def _sha256(path: Path, tell: Callable[[str, int], None]) -> str:
    digest, done = hashlib.sha256(), 0
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
            done += len(block)
            tell("checking", done)
    return digest.hexdigest()


def _remember(store: Path, listing: Listing) -> None:
    """Notes for which commit the branch or tag stood, so that it can be found without the hub."""
    if listing.revision == listing.commit:
        return
    reference = store / "refs" / listing.revision
    reference.parent.mkdir(parents=True, exist_ok=True)
    temporary = reference.with_name(f".{reference.name}.{os.getpid()}")
    temporary.write_text(listing.commit, encoding="ascii")
    temporary.replace(reference)


def _store(repo: str) -> Path:
    return cache_folder() / f"models--{repo.replace('/', '--')}"


def _partial(blob: Path) -> Path:
    return blob.with_name(f"{blob.name}.incomplete")


def _endpoint() -> str:
    return os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")


def _library() -> Any:
    """huggingface_hub, which is imported when it is needed.

    Raises:
        EdgeRuntimeError: it is not installed.
    """
    try:
        import huggingface_hub  # noqa: PLC0415
    except ImportError:
        raise EdgeRuntimeError(
            "fetching from the hub needs huggingface_hub: pip install 'edge-runtime[export]'"
        ) from None
    return huggingface_hub


@contextlib.contextmanager
def _one_line(repo: str, revision: str) -> Iterator[None]:
    """Turns what huggingface_hub raises into errors of one line, and keeps its own messages to itself."""
    from huggingface_hub import errors  # noqa: PLC0415

    login = "log in with `hf auth login` or set HF_TOKEN"
    try:
        with _quiet():
            yield
    except EdgeRuntimeError:
        raise
    except errors.GatedRepoError:
        page = f"{_endpoint()}/{repo}"
        raise EdgeRuntimeError(f"{repo} is gated: accept its licence at {page}, then {login}") from None
    except errors.RevisionNotFoundError:
        raise EdgeRuntimeError(f"{repo} has no revision {revision!r}") from None
    except errors.RepositoryNotFoundError:
        raise EdgeRuntimeError(
            f"{repo} is neither a folder here nor a model on the hub; if it is private, {login}"
        ) from None
    except errors.HfHubHTTPError as error:
        status = error.response.status_code
        if status in {401, 403}:
            raise EdgeRuntimeError(f"the hub refuses {repo} to this token ({status}): {login}") from None
        if _may_pass(error):
            raise Unreachable(f"{_endpoint()} answers {status}: try again later") from None
        raise EdgeRuntimeError(f"{_endpoint()} answers {status} about {repo}") from None
    except (_passing_errors()[0], errors.LocalEntryNotFoundError) as error:
        reason = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        raise Unreachable(f"{_endpoint()} cannot be reached ({_first_line(reason)})") from None
    except OSError as error:
        if error.errno is None:  # huggingface_hub's own, about an answer that makes no sense
            raise EdgeRuntimeError(f"{repo}: {_first_line(str(error))}") from None
        where = error.filename or cache_folder()
        code: ErrorCode = "internal" if error.errno == errno.ENOSPC else "bad_request"
        raise EdgeRuntimeError(f"{where}: {error.strerror}", code=code) from None
    except ValueError as error:
        raise EdgeRuntimeError(f"{repo}: {_first_line(str(error))}") from None


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    from huggingface_hub import utils  # noqa: PLC0415

    level, bars = utils.logging.get_verbosity(), not utils.are_progress_bars_disabled()
    utils.logging.set_verbosity_error()
    utils.disable_progress_bars()
    try:
        yield
    finally:
        utils.logging.set_verbosity(level)
        if bars:
            utils.enable_progress_bars()


def _passing_errors() -> tuple[type[Exception], type[Exception]]:
    """What a bad line raises, and what an answer that is an error raises."""
    from huggingface_hub import errors, file_download  # noqa: PLC0415

    library = getattr(file_download, "httpx2", None) or file_download.httpx  # of version 2, of version 1
    return library.TransportError, errors.HfHubHTTPError


def _may_pass(error: Exception) -> bool:
    response = getattr(error, "response", None)
    return response is None or response.status_code == 429 or response.status_code >= 500


def _first_line(text: str) -> str:
    return text.strip().splitlines()[0] if text.strip() else "no reason given"
