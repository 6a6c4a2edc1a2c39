"""E-mail reaches a real SMTP server: plain, with STARTTLS, and encrypted from the start."""

import socket
import ssl
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from pydantic import SecretStr

from flywheel_ml.core.settings import Settings
from flywheel_ml.monitoring.alerting.mail import check_settings, send_email
from flywheel_ml.monitoring.alerting.sinks import SinkError
from flywheel_ml.utils.errors import ConfigError
from library.helpers.sinks import MailServer, make_alert, make_notification, serve


def make_settings(port: int, **changes: Any) -> Settings:
    """Make settings for a mail server on this machine."""
    facts: dict[str, Any] = {
        "alert_email_to": "a@example.org, b@example.org",
        "alert_email_from": "ml@example.org",
        "alert_smtp_host": "127.0.0.1",
        "alert_smtp_port": port,
        "alert_smtp_security": "none",
        "alert_timeout_seconds": 2.0,
    }
    return Settings(_env_file=None, **{**facts, **changes})


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A self-signed certificate of 127.0.0.1, with its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.now(UTC)
    signed = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False)
        .sign(key, hashes.SHA256())
    )
    form = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    path = tmp_path_factory.mktemp("certificate") / "server.pem"
    path.write_bytes(key.private_bytes(*form) + signed.public_bytes(serialization.Encoding.PEM))
    return path


@pytest.fixture
def context(certificate: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    return context


def test_message_has_every_alert_and_a_clean_subject() -> None:
    server = MailServer()
    first = make_alert(what="drift\nBcc: all@example.org", evidence="“é”\n.\nafter a dot")
    with serve(server):
        send_email(make_settings(server.port), [make_notification(first), make_notification(make_alert("other"))])
    (message,) = server.messages
    assert message["Subject"] == "[warning] drift Bcc: all@example.org (+1)"
    assert message["To"] == "a@example.org, b@example.org"
    assert message["Bcc"] is None
    text = message.get_content().replace("\r\n", "\n")
    assert "“é”\n.\nafter a dot" in text
    assert text.count("Runbook: docs/runbook.md#drift") == 2
    assert "rcpt TO:<b@example.org>" in server.commands


@pytest.mark.parametrize("security", ["starttls", "ssl"])
def test_connection_is_encrypted_and_logged_in(
    security: str, context: ssl.SSLContext, certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = MailServer(context, implicit=security == "ssl")
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    login = {"alert_smtp_user": "ml", "alert_smtp_password": SecretStr("T0KEN")}
    with serve(server):
        send_email(make_settings(server.port, alert_smtp_security=security, **login), [make_notification()])
    assert len(server.messages) == 1
    assert any(command.startswith("AUTH PLAIN") for command in server.commands)


@pytest.mark.parametrize("security", ["starttls", "ssl"])
def test_unknown_certificate_is_rejected_before_the_password_is_sent(security: str, context: ssl.SSLContext) -> None:
    server = MailServer(context, implicit=security == "ssl")
    login = {"alert_smtp_user": "ml", "alert_smtp_password": SecretStr("T0KEN")}
    settings = make_settings(server.port, alert_smtp_security=security, **login)
    with serve(server), pytest.raises(SinkError, match="no valid certificate"):
        send_email(settings, [make_notification()])
    assert not any("AUTH" in command for command in server.commands)


def test_server_without_starttls_gets_no_message() -> None:
    server = MailServer()
    with serve(server), pytest.raises(SinkError, match="ML_ALERT_SMTP_SECURITY") as error:
        send_email(make_settings(server.port, alert_smtp_security="starttls"), [make_notification()])
    assert error.value.permanent
    assert server.messages == []


@pytest.mark.parametrize(
    ("rejects", "message", "permanent"),
    [
        ({"RCPT": 550}, "rejected the recipients", True),
        ({"MAIL": 451}, "answered 451", False),
        ({"DATA": 552}, "answered 552", True),
        ({"EHLO": 421, "HELO": 421}, "answered 421", False),
    ],
)
def test_rejection_is_an_error_without_the_text_of_the_server(
    rejects: dict[str, int], message: str, permanent: bool
) -> None:
    server = MailServer(rejects=rejects)
    with serve(server), pytest.raises(SinkError, match=message) as error:
        send_email(make_settings(server.port), [make_notification()])
    assert error.value.permanent == permanent
    assert "example.org" not in str(error.value)


def test_rejected_password_is_not_shown(
    context: ssl.SSLContext, certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = MailServer(context, rejects={"AUTH": 535})
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    login = {"alert_smtp_user": "ml", "alert_smtp_password": SecretStr("T0KEN")}
    settings = make_settings(server.port, alert_smtp_security="starttls", **login)
    with serve(server), pytest.raises(SinkError, match=r"^rejected the user or password \(535\)$"):
        send_email(settings, [make_notification()])


def test_server_that_never_answers_times_out() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        settings = make_settings(server.getsockname()[1], alert_timeout_seconds=0.2)
        with pytest.raises(SinkError, match=r"did not answer within 0\.2 s"):
            send_email(settings, [make_notification()])


def test_unreachable_server_is_an_error() -> None:
    with pytest.raises(SinkError, match=r"is unreachable \(Connection refused\)"):
        send_email(make_settings(9), [make_notification()])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"alert_smtp_host": ""}, "ML_ALERT_SMTP_HOST"),
        ({"alert_email_to": "nobody"}, "ML_ALERT_EMAIL_TO: 'nobody'"),
        ({"alert_email_to": "a@example.org\nBcc: b@example.org"}, "ML_ALERT_EMAIL_TO"),
        ({"alert_email_from": "@"}, "ML_ALERT_EMAIL_FROM"),
        ({"alert_smtp_user": "ml"}, "ML_ALERT_SMTP_SECURITY: 'none' would send the password unencrypted"),
    ],
)
def test_unusable_settings_are_rejected(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_settings(make_settings(25, **changes))
