"""How a cluster's dashboard is reached: its address, the token that it asks for, and what is said where either is wrong.

Ray's own rules for the token: $RAY_AUTH_TOKEN, the file that $RAY_AUTH_TOKEN_PATH names, or ~/.ray/auth_token. The last one is what Ray
writes for a cluster on this very machine, so it is sent only where $RAY_AUTH_MODE=token asks for that. The token travels in one HTTP
header and stands in nothing that is printed, packed or kept.
"""

from __future__ import annotations

import http.client
import ipaddress
import json
import os
import ssl
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from xfer.errors import UsageError

EXAMPLE = "http://HEAD:8265"
DEFAULT_FILE = "~/.ray/auth_token"
GIVE = f"set RAY_AUTH_MODE=token, and the token in RAY_AUTH_TOKEN, in a file that RAY_AUTH_TOKEN_PATH names, or in {DEFAULT_FILE}"
TIMEOUT_SECONDS = 10.0


@dataclass(frozen=True)
class Token:
    """A token and where it was found; its text is never shown."""

    text: str = field(repr=False)
    place: str


@dataclass(frozen=True)
class Access:
    """A dashboard that may be spoken to: `address` without a slash at its end, and the token if there is one."""

    address: str
    token: Token | None = None

    @property
    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.token.text}"} if self.token else {}


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirect would carry the token to another host."""

    def redirect_request(self, *arguments: Any, **keywords: Any) -> None:
        return None


def access(
    address: str | None, *, environment: Mapping[str, str] = os.environ, allow_http: bool = False, warn: Callable[[str], None]
) -> Access:
    """The way to a dashboard; `warn` is told where a token will be readable by others. Speaks to nobody yet.

    Raises UsageError for an address that is none, a token that is asked for and not there, and for plain http to another machine
    without a token.
    """
    shown = clean(address)
    token = find_token(environment)
    parts = urlsplit(shown)
    if parts.scheme == "http" and not is_loopback(parts.hostname or ""):
        if token is not None:
            warn(f"the token travels readable over plain http to {parts.hostname}; use https, or a tunnel to localhost")
        elif not allow_http:
            raise UsageError(
                f"{shown} is plain http to another machine, without a token: whoever reaches that port runs code there",
                hint=f"{GIVE}; or tunnel to localhost; --allow-http goes on without",
            )
    return Access(shown, token)


def clean(address: str | None) -> str:
    """The address as it is used; raises UsageError for what is no address of a dashboard.

    >>> clean("http://10.0.0.5:8265/"), clean("https://ray.example.com")
    ('http://10.0.0.5:8265', 'https://ray.example.com')
    """
    if not address:
        raise UsageError(f"say where the cluster's dashboard is: --address {EXAMPLE}")
    try:
        parts = urlsplit(address)
        host, _ = parts.hostname, parts.port
        (host or "").encode("idna")  # as it will be looked up; http.client lets what that raises through
    except ValueError:
        raise UsageError(f"--address {address}: no address of a dashboard such as {EXAMPLE}") from None
    if parts.username is not None or parts.password is not None:
        raise UsageError("--address must not hold a user name or a password, since it is printed; a token is given otherwise", hint=GIVE)
    if parts.scheme not in ("http", "https") or not host:
        guess = f"; did you mean http://{address}?" if "://" not in address and address != "auto" else ""
        raise UsageError(f"--address {address}: must be the dashboard's address, such as {EXAMPLE}{guess}")
    return f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/')}"


def is_loopback(host: str) -> bool:
    """True if a host's name or address is this very machine.

    >>> [is_loopback(host) for host in ("localhost", "127.3.2.1", "::1", "10.0.0.5", "head")]
    [True, True, True, False, False]
    """
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def find_token(environment: Mapping[str, str]) -> Token | None:
    """The token by Ray's rules; None where nothing asks for one. Raises UsageError where it is asked for and can't be had."""
    mode = environment.get("RAY_AUTH_MODE", "").lower()
    if mode not in ("", "token", "disabled"):
        raise UsageError(f"RAY_AUTH_MODE={environment['RAY_AUTH_MODE']}: must be token or disabled")
    if mode == "disabled":
        return None
    if text := environment.get("RAY_AUTH_TOKEN", "").strip():
        return _token(text, "RAY_AUTH_TOKEN", "it")
    named = environment.get("RAY_AUTH_TOKEN_PATH")
    if named:
        return _read(named, "RAY_AUTH_TOKEN_PATH")
    if mode != "token":
        return None
    if not Path(DEFAULT_FILE).expanduser().exists():
        raise UsageError(
            "RAY_AUTH_MODE=token, but there is no token: "
            f"set RAY_AUTH_TOKEN, or RAY_AUTH_TOKEN_PATH to a file that holds it, or put it into {DEFAULT_FILE}"
        )
    return _read(DEFAULT_FILE, DEFAULT_FILE)


def _read(name: str, place: str) -> Token:
    file = Path(name)
    try:
        file = file.expanduser()
        text = file.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = (error.strerror or str(error)).lower() if isinstance(error, OSError) else "it is no text"
        raise UsageError(f"{place}: the token can't be read from {file}: {reason}") from None
    except RuntimeError:  # ~someone who has no account
        raise UsageError(f"{place}: the token can't be read from {file}: there is no such home folder") from None
    if not text:
        raise UsageError(f"{place}: {file} is empty; it must hold the cluster's token")
    return _token(text, place, str(file))


def _token(text: str, place: str, holder: str) -> Token:
    """Raises UsageError for what no HTTP header takes: whatever is said of it below here would show the text."""
    if not (text.isascii() and text.isprintable()):
        raise UsageError(f"{place}: {holder} must hold the cluster's token and nothing else: one line of plain letters, digits and signs")
    return Token(text, place)


def reach(way: Access) -> str:
    """The Ray version that the cluster runs. Raises UsageError, in one sentence, for a cluster that can't be reached, one that asks for a
    token, one that refuses ours, and for an address where no Ray answers."""
    request = urllib.request.Request(f"{way.address}/api/version", headers=way.headers)
    try:
        with urllib.request.build_opener(_NoRedirect).open(request, timeout=TIMEOUT_SECONDS) as answer:
            return str(json.loads(answer.read())["ray_version"])
    except urllib.error.HTTPError as error:
        raise _refused(way, error.code) from None
    except (json.JSONDecodeError, KeyError, TypeError, UnicodeDecodeError):
        raise UsageError(f"what answers at {way.address} is no Ray dashboard") from None
    except (OSError, http.client.HTTPException) as error:
        raise UsageError(
            f"the cluster can't be reached at {way.address}: {_reason(error)}",
            hint="is its head up, and is the dashboard's port (8265) open or forwarded to here?",
        ) from None


def _refused(way: Access, status: int) -> UsageError:
    if status == 401:
        return UsageError(f"the cluster at {way.address} asks for a token, and none was given", hint=GIVE)
    if status == 403 and way.token is not None:
        return UsageError(
            f"the cluster at {way.address} refuses the token of {way.token.place}",
            hint="it must be the one that the head was started with: 'ray get-auth-token' there prints it",
        )
    return UsageError(f"what answers at {way.address} is no Ray dashboard: it says {status} to /api/version")


def _reason(error: BaseException) -> str:
    inner = error.reason if isinstance(error, urllib.error.URLError) else error
    if isinstance(inner, TimeoutError):
        return f"no answer within {TIMEOUT_SECONDS:.0f} seconds"
    if isinstance(inner, ssl.SSLCertVerificationError):
        return f"its certificate is not trusted ({inner.verify_message})"
    if isinstance(inner, OSError) and inner.strerror:
        return inner.strerror.lower()
    return str(inner) or type(inner).__name__
