"""Sends notifications by e-mail."""

import smtplib
import ssl
from collections.abc import Sequence
from email.message import EmailMessage
from email.utils import formatdate, make_msgid

from flywheel_ml.core.settings import Settings
from flywheel_ml.monitoring.alerting.notification import Notification
from flywheel_ml.monitoring.alerting.sinks import SinkError
from flywheel_ml.utils.errors import ConfigError

MAX_SUBJECT = 200


def check_settings(settings: Settings) -> None:
    """Check the settings of e-mail.

    Raises:
        ConfigError: the host or an address is missing, or the password would be sent unencrypted.
    """
    if not settings.alert_smtp_host:
        raise ConfigError("ML_ALERT_SMTP_HOST: it is empty, but ML_ALERT_EMAIL_TO asks for e-mail; set the mail server")
    for name, addresses in (("FROM", [settings.alert_email_from]), ("TO", split_addresses(settings.alert_email_to))):
        for address in addresses:
            if "@" not in address.strip("@") or not address.isprintable() or " " in address:
                raise ConfigError(f"ML_ALERT_EMAIL_{name}: '{address}' is not an e-mail address")
    if settings.alert_smtp_user and settings.alert_smtp_security == "none":
        raise ConfigError(
            "ML_ALERT_SMTP_SECURITY: 'none' would send the password unencrypted; use 'starttls' or 'ssl', "
            "or remove ML_ALERT_SMTP_USER"
        )


def split_addresses(text: str) -> list[str]:
    """Split a list of addresses at commas."""
    return [address.strip() for address in text.split(",") if address.strip()]


def send_email(settings: Settings, notifications: Sequence[Notification]) -> None:
    """Send notifications in one message.

    Raises:
        SinkError: the server did not accept it.
    """
    timeout = settings.alert_timeout_seconds
    try:
        with _connect(settings, timeout) as server:
            if settings.alert_smtp_security == "starttls":
                server.starttls(context=ssl.create_default_context())
            if settings.alert_smtp_user:
                server.login(settings.alert_smtp_user, settings.alert_smtp_password.get_secret_value())
            server.send_message(build_message(settings, notifications))
    except (OSError, ValueError) as error:  # Every error of smtplib is an OSError.
        raise _describe(error, timeout) from None


def build_message(settings: Settings, notifications: Sequence[Notification]) -> EmailMessage:
    """Build the message: the first title is the subject, and each alert a paragraph."""
    more = f" (+{len(notifications) - 1})" if len(notifications) > 1 else ""
    message = EmailMessage()
    message["Subject"] = f"{notifications[0].title[:MAX_SUBJECT]}{more}"
    message["From"] = settings.alert_email_from
    message["To"] = ", ".join(split_addresses(settings.alert_email_to))
    message["Date"] = formatdate()
    message["Message-ID"] = make_msgid(domain=settings.alert_email_from.rpartition("@")[2])
    message["Auto-Submitted"] = "auto-generated"
    message.set_content("\n\n".join(one.text for one in notifications) + "\n")
    return message


def _connect(settings: Settings, timeout: float) -> smtplib.SMTP:
    host, port = settings.alert_smtp_host, settings.alert_smtp_port
    if settings.alert_smtp_security == "ssl":
        return smtplib.SMTP_SSL(host, port, timeout=timeout, context=ssl.create_default_context())
    return smtplib.SMTP(host, port, timeout=timeout)


def _describe(error: Exception, timeout: float) -> SinkError:
    """Describe an error without the text of the server's answer, which may quote what was sent."""
    reason, permanent = f"is unreachable ({getattr(error, 'strerror', None) or type(error).__name__})", False
    if isinstance(error, smtplib.SMTPServerDisconnected) and isinstance(error.__context__, TimeoutError):
        error = error.__context__  # smtplib hides it.
    match error:
        case smtplib.SMTPRecipientsRefused():
            reason, permanent = "rejected the recipients; see ML_ALERT_EMAIL_TO", True
        case smtplib.SMTPAuthenticationError():
            reason, permanent = f"rejected the user or password ({error.smtp_code})", error.smtp_code >= 500
        case smtplib.SMTPResponseException():
            reason, permanent = f"answered {error.smtp_code}", error.smtp_code >= 500
        case smtplib.SMTPNotSupportedError():
            reason, permanent = "does not offer what ML_ALERT_SMTP_SECURITY or the login needs", True
        case smtplib.SMTPException():
            reason = f"did not answer as a mail server ({type(error).__name__})"
        case TimeoutError():
            reason = f"did not answer within {timeout:g} s"
        case ssl.SSLError():
            reason = f"has no valid certificate or encryption ({error.reason})"
    return SinkError(reason, permanent)
