"""The secrets of the stack: written once, each in a file that only its owner reads."""

import json
import os
import secrets
from hashlib import sha256
from pathlib import Path

DATABASES = ("log", "mlflow", "prefect")
BYTES = 24


def write_secrets(folder: Path, owner: tuple[int, int]) -> bool:
    """Write the secrets that are missing; returns whether there were any.

    Args:
        folder: where each is a file of mode 600, in a folder of mode 700.
        owner: user and group of the files: those of the containers.
    """
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o700)
    chown(folder, owner)
    missing = {name: text for name, text in generate_secrets(folder).items() if not (folder / name).exists()}
    for name, text in missing.items():
        scratch = folder / f".{name}"
        scratch.unlink(missing_ok=True)
        with open(scratch, "x", encoding="utf-8", opener=lambda path, flags: os.open(path, flags, 0o600)) as stream:
            stream.write(text)
        chown(scratch, owner)
        scratch.replace(folder / name)
    return bool(missing)


def has_passwords(folder: Path) -> bool:
    """Return whether the passwords of the databases are there."""
    return all((folder / f"pgpass_{name}").exists() for name in DATABASES)


def generate_secrets(folder: Path) -> dict[str, str]:
    """Return a new text for each secret; those that name another secret name the one that exists."""
    keys = {name: read_or_generate(folder / name) for name in ("api_key", "metrics_key", "s3_key")}
    digests = {name: sha256(key.encode()).hexdigest() for name, key in keys.items()}
    user = {"name": "stack", "credentials": [{"accessKey": "stack", "secretKey": keys["s3_key"]}]}
    actions = ["Admin", "Read", "List", "Tagging", "Write"]
    return {
        **keys,
        "api_keys": f"stack:predict+feedback+admin+log:sha256:{digests['api_key']}\n"
        f"prometheus:metrics:sha256:{digests['metrics_key']}\n",
        "postgres_password": secrets.token_urlsafe(BYTES),
        "grafana_password": secrets.token_urlsafe(BYTES),
        **{f"pgpass_{name}": f"*:*:{name}:{name}:{secrets.token_urlsafe(BYTES)}\n" for name in DATABASES},
        "s3_config": json.dumps({"identities": [{**user, "actions": actions}]}),
        "s3_credentials": f"[default]\naws_access_key_id = stack\naws_secret_access_key = {keys['s3_key']}\n",
    }


def read_or_generate(path: Path) -> str:
    """Return the secret in a file, or a new one."""
    return path.read_text(encoding="utf-8") if path.exists() else secrets.token_urlsafe(BYTES)


def chown(path: Path, owner: tuple[int, int]) -> None:
    """Give a file to its owner, if this process may."""
    if os.geteuid() == 0:
        os.chown(path, *owner)
