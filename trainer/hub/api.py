"""The files that the Hub lists, and their bytes."""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

import httpx2
from huggingface_hub import HfApi, constants, get_hf_file_metadata, get_token, hf_hub_url
from huggingface_hub.utils import build_hf_headers, hf_raise_for_status, http_stream_backoff

from trainer.common.problems import redact
from trainer.hub.errors import DownloadFailed, DownloadProblem, NotTheHub, Status

TOKEN = re.compile(r"[!-~]+")  # the characters that an HTTP header can carry


@dataclass(frozen=True)
class HubFile:
    """A file as the Hub lists it.

    repository: "owner/name"; commit: the revision listed; path: in the repository; size: in bytes; digest: hex SHA-256
    of a large file (in LFS), git's SHA-1 of a small one.
    """

    repository: str
    commit: str
    path: str
    size: int
    digest: str


@dataclass(frozen=True)
class Hub:
    """A Hub server and the token for it, which is never printed. endpoint: its URL; token: None without a login."""

    endpoint: str
    token: str | None = field(repr=False)

    def listing(self, repository: str) -> Mapping[str, HubFile]:
        """Ask the Hub for the files on a repository's main branch; returns them by path.

        Raises the errors of huggingface_hub and httpx2, and `NotTheHub` if the answer is not a list of files.
        """
        api = HfApi(endpoint=self.endpoint, token=self._token_or_none())
        timeout = constants.HF_HUB_ETAG_TIMEOUT
        try:
            found = api.model_info(repository, files_metadata=True, timeout=timeout)
            files = [HubFile(repository, str(found.sha), s.rfilename, *_stated(s)) for s in found.siblings or ()]
        except (TypeError, KeyError, AttributeError, ValueError) as error:
            if isinstance(error, httpx2.HTTPError):
                raise
            raise NotTheHub(f"an unreadable file list for {repository}") from error
        return {file.path: file for file in files}

    def check_access(self, file: HubFile) -> None:
        """Check that a file can be downloaded, by a request for its headers alone.

        Raises the errors of huggingface_hub and httpx2, as when access is denied, and `NotTheHub` if another server
        answers.
        """
        found = get_hf_file_metadata(self._url(file), token=self._token_or_none(), endpoint=self.endpoint)
        if found.commit_hash is None:
            raise NotTheHub("a page without the Hub's headers")

    @contextmanager
    def bytes_of(self, file: HubFile, start: int) -> Iterator[tuple[int, Iterator[bytes]]]:
        """Request a file from byte `start` on; the context gives (position of the first byte, chunks of bytes).

        The position is `start`, or 0 if the server ignores ranges. Raises the errors of huggingface_hub and httpx2, and
        `NotTheHub` before the first byte if the answer is not this file.
        """
        headers = build_hf_headers(token=self._token_or_none())
        headers |= {"accept-encoding": "identity"} | ({"range": f"bytes={start}-"} if start else {})
        with http_stream_backoff(
            "GET",
            self._url(file),
            headers=headers,
            timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT,
            retry_on_exceptions=(),  # `fetch` retries, and continues where it stopped
            retry_on_status_codes=(),
        ) as response:
            hf_raise_for_status(response)
            yield _first_byte(response, start, file.size), response.iter_bytes()

    def scrub(self, text: str) -> str:
        """The text with this Hub's token, and whatever else looks like one, replaced by "[secret]"."""
        return redact(text.replace(self.token, "[secret]") if self.token else text)

    def _token_or_none(self) -> str | bool:
        return self.token or False

    def _url(self, file: HubFile) -> str:
        return hf_hub_url(file.repository, file.path, revision=file.commit, endpoint=self.endpoint)


def connect() -> Hub:
    """The Hub at HF_ENDPOINT, with the token from HF_TOKEN or the saved login; sends no request.

    Raises `DownloadFailed` if the token contains characters that no token has.
    """
    token = get_token()
    if token is not None and not TOKEN.fullmatch(token):
        what = "contains characters that no token has"
        hint = "copy it again, without spaces or quotes"
        raise DownloadFailed([DownloadProblem("HF_TOKEN", what, hint, status=Status.TOKEN_WRONG)])
    return Hub(constants.ENDPOINT, token)


def _stated(sibling: object) -> tuple[int, str]:
    lfs = getattr(sibling, "lfs", None)
    size, digest = (lfs.size, lfs.sha256) if lfs else (sibling.size, sibling.blob_id)  # type: ignore[attr-defined]
    if not isinstance(size, int) or not isinstance(digest, str):
        raise ValueError("no size or no digest")
    return size, digest


def _first_byte(response: httpx2.Response, start: int, size: int) -> int:
    if "html" in response.headers.get("content-type", ""):
        raise NotTheHub("a web page instead of the file")
    if response.status_code == 206:
        if response.headers.get("content-range", "").replace(" ", "") != f"bytes{start}-{size - 1}/{size}":
            raise NotTheHub("a range that was not requested")
        return start
    length = response.headers.get("content-length")
    if response.status_code != 200 or (length is None and start) or (length is not None and int(length) != size):
        raise NotTheHub(f"{length} bytes with status {response.status_code} instead of {size:,} bytes")
    return 0
