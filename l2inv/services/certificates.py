"""What a TLS certificate that was not accepted means, and what is known of it."""

import socket
import ssl
import tempfile
import time
from contextlib import suppress
from typing import Any, Literal

LOOK_SECONDS = 3.0
# Codes of OpenSSL's x509_vfy.h: its words differ from one version to the next.
_TIME = {9, 10}  # not yet valid, expired
_NAME = {62, 63, 64}  # host name, e-mail address, IP address
_STRICT = range(79, 96)  # what RFC 5280 asks of an authority's certificate, and Python checks from 3.13 on


def refused(
    problem: ssl.SSLCertVerificationError,
    at: tuple[str, int],
    setting: Literal["metadata_store", "publish.catalog"],
) -> tuple[str, str]:
    """Return why a certificate is not accepted, with what is known of it, and a hint that names the setting."""
    owner = "the metadata store" if setting == "metadata_store" else "RabbitMQ"
    words = " ".join((getattr(problem, "verify_message", None) or str(problem)).split())
    said = f"its certificate is not accepted: {words}{presented(*at)}"
    if problem.verify_code in _NAME:
        return said, f"set {setting}.url to the host name that the certificate is made out to"
    if problem.verify_code in _TIME:
        return said, f"ask who runs {owner} to renew it, and check this machine's clock"
    if problem.verify_code in _STRICT:
        return said, f"ask who runs {owner} for one that follows RFC 5280, as Python 3.13 and newer want it"
    return said, f"set {setting}.ca_bundle to the PEM file of the authority that signed it"


def presented(host: str, port: int) -> str:
    """Return to whom the certificate of a server is made out, by whom and for when, as ` (...)`; nothing where that
    cannot be found out within LOOK_SECONDS: it is asked for by a connection of its own, on which nothing is sent."""
    with suppress(OSError, ValueError):
        context = ssl.create_default_context()
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE  # nothing is said over it; the certificate is what is wanted
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
            return f" (made out to {to}, by {_name(found.get('issuer'))}; valid from {_day(found, 'notBefore')} to {_day(found, 'notAfter')})"
    return ""


def _decoded(pem: str) -> dict[str, Any] | None:
    """Python decodes a certificate that was not verified by this alone, which is no public function: none, no words."""
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
