"""What can go wrong in a download, each with a message and an exit status of its own."""

import errno
import json
from collections.abc import Iterable
from dataclasses import dataclass, field
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

from trainer.common.problems import Problem, Problems

BUSY_STATUSES = (408, 429, 500, 502, 503, 504)
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
LOG_IN = "export HF_TOKEN=… (https://huggingface.co/settings/tokens) or `hf auth login`, and run it again"
CONTINUES = "it continues where it stopped"


class Status(IntEnum):
    """The exit statuses of `python -m trainer download`, next to 0, 2 (usage), 130 and 143 (signals)."""

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
class DownloadProblem(Problem):
    """A `Problem` of a download. status: the exit status of the program if this problem is the first."""

    status: Status = field(kw_only=True)


class DownloadFailed(Problems):
    """Raised with every problem that was found, in order, without duplicates; the first decides the exit status."""

    problems: tuple[DownloadProblem, ...]

    def __init__(self, problems: Iterable[DownloadProblem]):
        super().__init__(dict.fromkeys(problems))

    @property
    def status(self) -> int:
        """The first problem's exit status."""
        return int(self.problems[0].status)


class NotTheHub(Exception):
    """An answer that the Hub never gives: a proxy's page, or a length that is not the file's."""


def is_transient(error: Exception) -> bool:
    """Whether a retry may succeed after this error: a busy Hub or a failed connection.

    Errors of a proxy or a certificate are not transient.
    """
    if isinstance(error, HfHubHTTPError):
        return error.response.status_code in BUSY_STATUSES
    return isinstance(error, httpx2.TransportError) and not _is_proxy_error(error)


def reason(error: Exception) -> str:
    """An error that `is_transient` accepts, in a few words; without URLs, which may carry a signature."""
    if isinstance(error, HfHubHTTPError):
        return _busy(error.response.status_code)
    return f"no connection ({_short(error)})"


def explain(error: Exception, repository: str, endpoint: str, has_token: bool) -> tuple[DownloadProblem, ...]:
    """Turn an error of the network, the Hub or the disk into problems for the user. Raises any other error again.

    repository: the one that the request was about; endpoint: the Hub's URL; has_token: whether a token was sent.
    """
    card = f"{endpoint}/{repository}"
    if isinstance(error, DownloadFailed):
        return error.problems
    if isinstance(error, HfHubHTTPError):
        return (_explain_answer(error, repository, card, has_token),)
    if isinstance(error, OfflineModeIsEnabled):
        hint = "unset HF_HUB_OFFLINE and run it again"
        return (DownloadProblem(endpoint, "HF_HUB_OFFLINE is set", hint, status=Status.NO_NETWORK),)
    if isinstance(error, NotTheHub | json.JSONDecodeError | httpx2.TooManyRedirects) or _is_proxy_error(error):
        return (_not_the_hub(_short(error), card),)
    if isinstance(error, httpx2.TransportError):
        hint = f"check the network and run it again: {CONTINUES}"
        return (DownloadProblem(_origin(error) or endpoint, reason(error), hint, status=Status.NO_NETWORK),)
    if isinstance(error, OSError):
        return (_explain_disk(error),)
    raise error


def _explain_answer(error: HfHubHTTPError, repository: str, card: str, has_token: bool) -> DownloadProblem:
    code, headers = error.response.status_code, error.response.headers
    if "html" in headers.get("content-type", "") and code < 500 and "x-error-code" not in headers:
        return _not_the_hub(f"a web page with status {code}", card)
    if isinstance(error, GatedRepoError) and code != 401:
        status, what = Status.LICENCE_NOT_ACCEPTED, "its licence has not been accepted"
        hint = f"open {card}, log in as the token's owner, accept the licence, and run it again"
    elif code == 401 and has_token:
        status, hint = Status.TOKEN_WRONG, LOG_IN
        what = "the Hub rejects the token (HF_TOKEN or the saved login): it is wrong, expired or revoked"
    elif isinstance(error, GatedRepoError):
        status, what = Status.NOT_LOGGED_IN, "requires a login, and there is no token"
        hint = f"accept the licence at {card}, then {LOG_IN}"
    elif isinstance(error, RemoteEntryNotFoundError | RevisionNotFoundError):
        status, what, hint = Status.NOT_FOUND, "a file no longer exists", f"see {card}/tree/main"
    elif isinstance(error, RepositoryNotFoundError) or code in (401, 404):
        status, what = Status.NOT_FOUND, "the repository does not exist or is private"
        hint = f"check {card}; if it is private, {LOG_IN}"
    elif code == 403:
        status, what = Status.TOKEN_TOO_NARROW, f"the token has no access to it: {error.server_message or 'forbidden'}"
        right = "Read access to contents of all public gated repos you can access"
        hint = f'give the token the permission "{right}": https://huggingface.co/settings/tokens'
    elif code in BUSY_STATUSES:
        status, what = Status.HUB_BUSY, _busy(code)
        hint = f"run it again in a few minutes: {CONTINUES}"
    else:
        return _not_the_hub(f"status {code}", card)
    return DownloadProblem(repository, what, hint, status=status)


def _busy(code: int) -> str:
    return "the Hub is busy (too many requests)" if code == 429 else f"the Hub is not available (error {code})"


def _not_the_hub(what: str, card: str) -> DownloadProblem:
    hint = (
        f"a proxy or a login page may be in between: open {card} in a browser on this machine; "
        "see HTTPS_PROXY and SSL_CERT_FILE"
    )
    return DownloadProblem(card, f"another server than the Hub answered: {what}", hint, status=Status.NOT_THE_HUB)


def _explain_disk(error: OSError) -> DownloadProblem:
    where = str(error.filename or "the disk")
    if error.errno in FULL:
        hint = f"free some space and run it again: {CONTINUES}"
        return DownloadProblem(where, "the disk is full", hint, status=Status.DISK_FULL)
    hint = "give this user write permission, or choose another folder with --models_dir"
    return DownloadProblem(where, error.strerror or str(error), hint, status=Status.NOT_WRITABLE)


def _is_proxy_error(error: Exception) -> bool:
    return isinstance(error, httpx2.ProxyError) or "CERTIFICATE_VERIFY_FAILED" in str(error)


def _origin(error: httpx2.RequestError) -> str | None:
    """The server that was asked, without the rest of the address, which may carry a signature."""
    try:
        url = error.request.url
    except RuntimeError:
        return None
    return f"{url.scheme}://{url.netloc.decode()}"


def _short(error: Exception) -> str:
    first = str(error).strip().splitlines()
    return first[0][:200] if first else type(error).__name__
