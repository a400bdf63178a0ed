"""Explains why a TLS certificate was not accepted."""

import socket
import ssl
import tempfile
import time
from contextlib import suppress
from typing import Any, Literal

LOOK_SECONDS = 3.0
# Codes from OpenSSL's x509_vfy.h: its messages differ between versions.
_TIME = {9, 10}  # not yet valid, expired
_NAME = {62, 63, 64}  # host name, e-mail address, IP address
_STRICT = range(
    79, 96
)  # requirements of RFC 5280 on an authority's certificate, which Python checks since 3.13


def refused(
    problem: ssl.SSLCertVerificationError,
    at: tuple[str, int],
    setting: Literal["metadata_store", "publish.catalog"],
) -> tuple[str, str]:
    """Return why a certificate is not accepted, with its contents, and a hint that names the setting."""
    owner = "the metadata store" if setting == "metadata_store" else "RabbitMQ"
    words = " ".join((getattr(problem, "verify_message", None) or str(problem)).split())
    message = f"its certificate is not accepted: {words}{presented(*at)}"
    if problem.verify_code in _NAME:
        return message, f"set {setting}.url to the host name in the certificate"
    if problem.verify_code in _TIME:
        return message, f"ask who runs {owner} to renew it, and check this machine's clock"
    if problem.verify_code in _STRICT:
        return (
            message,
            f"ask who runs {owner} for a certificate that follows RFC 5280, which Python 3.13 and later require",
        )
    return message, f"set {setting}.ca_bundle to the PEM file of the authority that signed it"


def presented(host: str, port: int) -> str:
    """Return subject, issuer and validity of a server's certificate, as ` (...)`; empty if that takes longer than
    LOOK_SECONDS. It is read over a connection of its own, on which nothing is sent."""
    with suppress(OSError, ValueError):
        context = ssl.create_default_context()
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE  # nothing is sent over it
        with (
            socket.create_connection((host, port), timeout=LOOK_SECONDS) as plain,
            context.wrap_socket(plain, server_hostname=host) as connection,
        ):
            content = connection.getpeercert(binary_form=True)
        if content and (found := _decoded(ssl.DER_cert_to_PEM_cert(content))):
            names = [
                value for kind, value in found.get("subjectAltName", ()) if kind in ("DNS", "IP Address")
            ]
            to = ", ".join(names[:3]) or f"{_name(found.get('subject'))}, with no subjectAltName"
            return f" (issued to {to} by {_name(found.get('issuer'))}; valid from {_day(found, 'notBefore')} to {_day(found, 'notAfter')})"
    return ""


def _decoded(pem: str) -> dict[str, Any] | None:
    """Decode a certificate that was not verified: only this private function of Python's can; None without it."""
    decode = getattr(getattr(ssl, "_ssl", None), "_test_decode_cert", None)
    if decode is None:
        return None
    with tempfile.NamedTemporaryFile("w", suffix=".pem") as file:
        file.write(pem)
        file.flush()
        found: dict[str, Any] = decode(file.name)
    return found


def _name(rdns: Any) -> str:
    fields = dict(pair for rdn in rdns or () for pair in rdn)
    name: str = fields.get("commonName") or fields.get("organizationName") or "nobody named"
    return name


def _day(found: dict[str, Any], key: str) -> str:
    return time.strftime("%Y-%m-%d", time.gmtime(ssl.cert_time_to_seconds(found[key])))
