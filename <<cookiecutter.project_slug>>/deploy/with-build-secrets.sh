#!/bin/sh
# Runs a command of an image's build with the certificates and logins that were passed to the build as secrets:
#   docker build --secret id=ca,src=company-ca.pem --secret id=netrc,src="$HOME/.netrc" --build-arg INDEX=https://… …
# A secret is in no layer. `install-libraries` installs the libraries of uv.lock with the options that follow.
set -eu

if [ -f /run/secrets/ca ]; then
    cat /etc/ssl/certs/ca-certificates.crt /run/secrets/ca >/dev/shm/ca.pem 2>/dev/null || cp /run/secrets/ca /dev/shm/ca.pem
    export SSL_CERT_FILE=/dev/shm/ca.pem
fi
if [ -f /run/secrets/netrc ]; then
    export NETRC=/run/secrets/netrc
fi
# The Makefile locks without uv's settings if the index cannot resolve their exclude-newer; they do not fit such a lock.
if grep -q '^exclude-newer' pyproject.toml && ! grep -q '^exclude-newer' uv.lock; then
    export UV_NO_CONFIG=1
fi
# Many indexes of companies name no upload times, so with exclude-newer they would offer nothing. The hashes in uv.lock
# stay binding. Only that line goes: further indexes of pyproject.toml are still asked.
drop_exclude_newer() {
    sed -i '/^exclude-newer *=/d' pyproject.toml
}
if [ "$1" != install-libraries ]; then
    if [ -n "${INDEX:-}" ]; then
        drop_exclude_newer
        export UV_DEFAULT_INDEX="$INDEX"
    fi
    exec "$@"
fi

shift
if [ -z "${INDEX:-}" ]; then
    exec uv sync --locked --no-install-project "$@"
fi
# The lock names the index it was made with, so `uv sync` would not ask another one. The hashes stay binding.
uv export --quiet --locked --no-emit-project --no-header "$@" --output-file /dev/shm/requirements.txt
drop_exclude_newer
uv venv --quiet
exec uv pip sync --require-hashes --default-index "$INDEX" /dev/shm/requirements.txt
