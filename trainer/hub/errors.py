"""What can go wrong in a download, each with a message and an exit status of its own."""

import errno
import json
from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum

import httpx2
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    OfflineModeIsEnabled,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from trainer.common.problems import Problem

BUSY_STATUSES = (408, 429, 500, 502, 503, 504)
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class Status(IntEnum):
    """The exit statuses of `python -m trainer download`, beside 0, 2 (usage), 130 and 143 (signals)."""

    NOT_LOGGED_IN = 3
    TOKEN_WRONG = 4
    LICENCE_NOT_ACCEPTED = 5
    TOKEN_TOO_NARROW = 6
    NO_NETWORK = 7
    NOT_THE_HUB = 8
    HUB_BUSY = 9
    NOT_FOUND = 10
    DISK_FULL = 11
    NOT_WRITABLE = 12
    WRONG_BYTES = 13
    IN_THE_WAY = 14
    NOT_A_LORA = 15
    MISSING = 16
    ANOTHER_DOWNLOAD = 17


@dataclass(frozen=True)
class DownloadProblem:
    """A problem and the exit status that stands for it."""

    status: Status
    cause: Problem


class DownloadFailed(Exception):
    """Raised once, with every problem that was found; the first gives the exit status."""

    def __init__(self, problems: Iterable[DownloadProblem]):
        self.problems = tuple(dict.fromkeys(problems))
        super().__init__("\n".join(str(problem.cause) for problem in self.problems))

    @property
    def status(self) -> int:
        """The first problem's exit status."""
        return int(self.problems[0].status)


class NotTheHub(Exception):
    """An answer that no hub gives: a proxy's page, or a length that is not the file's."""


def is_transient(error: Exception) -> bool:
    """Whether trying again may help."""
    if isinstance(error, HfHubHTTPError):
        return error.response.status_code in BUSY_STATUSES
    return isinstance(error, httpx2.TransportError) and not _is_proxy_error(error)


def explain(error: Exception, repository: str, endpoint: str, has_token: bool) -> DownloadProblem:
    """What an error of the network, the hub or the disk means for a person. Raises it if it is none of these."""
    card = f"{endpoint}/{repository}"
    if isinstance(error, DownloadFailed):
        return error.problems[0]
    if isinstance(error, HfHubHTTPError):
        return _explain_answer(error, repository, card, has_token)
    if isinstance(error, OfflineModeIsEnabled):
        return _problem(Status.NO_NETWORK, endpoint, "HF_HUB_OFFLINE is set", "unset HF_HUB_OFFLINE and run it again")
    if isinstance(error, NotTheHub | json.JSONDecodeError | httpx2.TooManyRedirects) or _is_proxy_error(error):
        return _not_the_hub(_short(error), card)
    if isinstance(error, httpx2.TransportError):
        what = f"no connection: {_short(error)}"
        return _problem(
            Status.NO_NETWORK,
            _origin(error) or endpoint,
            what,
            "check the network and run it again: it goes on from here",
        )
    if isinstance(error, OSError):
        return _explain_disk(error)
    raise error


def _explain_answer(error: HfHubHTTPError, repository: str, card: str, has_token: bool) -> DownloadProblem:
    status, headers = error.response.status_code, error.response.headers
    log_in = "export HF_TOKEN=… (https://huggingface.co/settings/tokens), or `hf auth login`, and run it again"
    if "html" in headers.get("content-type", "") and status < 500 and "x-error-code" not in headers:
        return _not_the_hub(f"a web page with status {status}", card)
    if isinstance(error, GatedRepoError) and status != 401:
        hint = f"open {card}, log in as the token's owner, accept the licence there, and run it again"
        return _problem(Status.LICENCE_NOT_ACCEPTED, repository, "its licence has not been accepted", hint)
    if status == 401 and has_token:
        what = "the hub does not accept the token (HF_TOKEN, or the saved login): wrong, expired or revoked"
        return _problem(Status.TOKEN_WRONG, repository, what, log_in)
    if isinstance(error, GatedRepoError):
        hint = f"accept the licence at {card}, then {log_in}"
        return _problem(Status.NOT_LOGGED_IN, repository, "only for people who are logged in, and you are not", hint)
    if isinstance(error, RemoteEntryNotFoundError | RevisionNotFoundError):
        return _problem(Status.NOT_FOUND, repository, "a file is not there any more", f"look at {card}/tree/main")
    if isinstance(error, RepositoryNotFoundError) or status in (401, 404):
        hint = f"look at {card}; if it is private, {log_in}"
        return _problem(Status.NOT_FOUND, repository, "there is no such repository, or it is private", hint)
    if status == 403:
        what = f"the token may not read this repository: {error.server_message or 'forbidden'}"
        hint = 'give the token the right "Read access to contents of all public gated repos you can access"'
        return _problem(Status.TOKEN_TOO_NARROW, repository, what, f"{hint}: https://huggingface.co/settings/tokens")
    if status in BUSY_STATUSES:
        why = "too many requests" if status == 429 else f"error {status}"
        hint = "wait some minutes and run it again: it goes on from here; what is whole stays"
        return _problem(Status.HUB_BUSY, repository, f"the hub cannot answer now ({why})", hint)
    return _not_the_hub(f"status {status}", card)


def _not_the_hub(what: str, card: str) -> DownloadProblem:
    hint = f"a proxy or a login page stands between: open {card} in a browser here; see HTTPS_PROXY, SSL_CERT_FILE"
    return _problem(Status.NOT_THE_HUB, card, f"something else than the hub answered: {what}", hint)


def _explain_disk(error: OSError) -> DownloadProblem:
    where = str(error.filename or "the disk")
    if error.errno in FULL:
        hint = "make room and run it again: it goes on from here; what is whole stays"
        return _problem(Status.DISK_FULL, where, "the disk is full", hint)
    hint = "give this user the right to write there, or name another folder with --models_dir"
    return _problem(Status.NOT_WRITABLE, where, error.strerror or str(error), hint)


def _is_proxy_error(error: Exception) -> bool:
    return isinstance(error, httpx2.ProxyError) or "CERTIFICATE_VERIFY_FAILED" in str(error)


def _origin(error: httpx2.RequestError) -> str | None:
    """The server that was asked, without the signature that an address may carry."""
    try:
        url = error.request.url
    except RuntimeError:
        return None
    return f"{url.scheme}://{url.netloc.decode()}"


def _short(error: Exception) -> str:
    first = str(error).strip().splitlines()
    return first[0][:200] if first else type(error).__name__


def _problem(status: Status, where: str, what: str, hint: str) -> DownloadProblem:
    return DownloadProblem(status, Problem(where, what, hint))
