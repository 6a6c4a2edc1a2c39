#!/bin/sh
# Creates a role and a database for each password file, once, when the server has no data yet.
# A line of such a file is host:port:database:user:password, as psql reads it.
set -eu
for file in /run/secrets/pgpass_*; do
    IFS=: read -r _ _ database user password <"$file"
    printf '%s\n' 'CREATE ROLE :"user" LOGIN PASSWORD :'"'password'"';' \
        'CREATE DATABASE :"database" OWNER :"user" ENCODING '"'UTF8'"' TEMPLATE template0;' |
        psql --no-psqlrc --quiet --set ON_ERROR_STOP=1 --username postgres --dbname postgres \
            --set user="$user" --set database="$database" --set password="$password"
done
