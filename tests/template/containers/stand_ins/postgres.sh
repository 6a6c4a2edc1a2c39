#!/bin/sh
# What the image of PostgreSQL does with these variables and files.
set -eu
bin=$(echo /usr/lib/postgresql/*/bin)
export PATH="$bin:$PATH"
if [ ! -s "$PGDATA/PG_VERSION" ]; then
    initdb --pgdata "$PGDATA" --username postgres --pwfile "$POSTGRES_PASSWORD_FILE" \
        --auth-local trust --auth-host scram-sha-256 >/dev/null
    pg_ctl --pgdata "$PGDATA" --wait start \
        --options "-c listen_addresses='' -c unix_socket_directories=/run/postgresql" >/dev/null
    for script in /docker-entrypoint-initdb.d/*.sh; do
        PGHOST=/run/postgresql sh "$script"
    done
    pg_ctl --pgdata "$PGDATA" --wait --mode fast stop >/dev/null
    echo "host all all all scram-sha-256" >>"$PGDATA/pg_hba.conf"
fi
exec postgres -D "$PGDATA" -c "listen_addresses=*" -c unix_socket_directories=/run/postgresql
