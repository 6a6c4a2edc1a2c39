"""Posts JSON to an address, with a timeout; no error contains the address, which may hold a secret."""

import base64
import http.client
import json
import urllib.error
import urllib.request
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import unquote, urlsplit, urlunsplit

from flywheel_ml.monitoring.alerting.sinks import SinkError
from flywheel_ml.utils.errors import ConfigError

TRANSIENT = {408, 425, 429}
"""Client errors after which the same request may be accepted later; so may it after any server error."""
UNREADABLE = {400, 413, 422}
"""Client errors that may be due to one notification of several."""


class Address:
    """An HTTP address from a setting; a user name and password in it become an `Authorization` header.

    Raises:
        ConfigError: the address is not an HTTP URL.
    """

    def __init__(self, url: str, setting: str) -> None:
        remedy = f"{setting}: the address must start with http:// or https:// and name a host"
        try:
            parts = urlsplit(url.strip())
            host, port = parts.hostname, parts.port
        except ValueError:
            raise ConfigError(remedy) from None
        if parts.scheme not in {"http", "https"} or not host or any(ord(letter) <= ord(" ") for letter in url.strip()):
            raise ConfigError(remedy)
        place = f"[{host}]" if ":" in host else host
        self.url = urlunsplit(parts._replace(netloc=f"{place}:{port}" if port else place))
        self.headers = {"Content-Type": "application/json"}
        if parts.username is not None:
            user = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
            self.headers["Authorization"] = f"Basic {base64.b64encode(user.encode()).decode()}"


class NoRedirects(urllib.request.HTTPRedirectHandler):
    """A redirected POST would become a GET without its body, or leak the alert to another host."""

    def redirect_request(self, *_: Any) -> None:
        """Follow no redirect."""
        return


def post_json(address: Address, content: Any, timeout: float) -> None:
    """POST JSON once.

    Args:
        address: where to.
        content: JSON-compatible content.
        timeout: seconds without an answer.

    Raises:
        SinkError: it was not accepted.
    """
    body = json.dumps(content, ensure_ascii=False).encode(errors="replace")
    request = urllib.request.Request(address.url, body, address.headers, method="POST")
    try:
        with urllib.request.build_opener(NoRedirects).open(request, timeout=timeout):
            return
    except urllib.error.HTTPError as error:
        code, after = error.code, error.headers.get("Retry-After", "")
        error.close()
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise SinkError(_describe(error, timeout)) from None
    if code < 400:
        raise SinkError(f"answered {code}, a redirect; set the final address", permanent=True)
    permanent = code < 500 and code not in TRANSIENT
    unreadable, retry_after = code in UNREADABLE, _parse_retry_after(after)
    raise SinkError(f"answered {code}", permanent=permanent, unreadable=unreadable, retry_after=retry_after)


def _describe(error: Exception, timeout: float) -> str:
    reason = getattr(error, "reason", error)
    if isinstance(reason, TimeoutError):
        return f"did not answer within {timeout:g} s"
    if isinstance(reason, OSError) and reason.strerror and not isinstance(reason, http.client.HTTPException):
        return f"is unreachable ({reason.strerror})"
    # The text of other errors may quote the address.
    return f"did not answer as a web server ({type(reason).__name__})"


def _parse_retry_after(text: str) -> float:
    """Return the seconds of a `Retry-After` header (RFC 9110, section 10.2.3); 0 without a valid one."""
    if text.isascii() and text.isdigit():
        return float(text[:9])
    try:
        return max(0.0, (parsedate_to_datetime(text) - datetime.now(UTC)).total_seconds())
    except (ValueError, TypeError):
        return 0.0
