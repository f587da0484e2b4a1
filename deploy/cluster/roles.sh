#!/bin/sh
# roles.sh creates the database and its roles on the primary. It reads the passwords from
# files in $SECRETS, and connects as the administrator by the usual variables of psql.
set -eu
: "${SECRETS:=/run/secrets}"
psql -v ON_ERROR_STOP=1 -v owner="$(cat "$SECRETS/owner.password")" -v broker="$(cat "$SECRETS/broker.password")" \
	-v standby="$(cat "$SECRETS/standby.password")" --dbname postgres <<'SQL'
CREATE ROLE broker_owner LOGIN PASSWORD :'owner';
CREATE ROLE broker LOGIN PASSWORD :'broker';
CREATE ROLE standby LOGIN REPLICATION PASSWORD :'standby';
CREATE DATABASE broker OWNER broker_owner;
REVOKE ALL ON DATABASE broker FROM PUBLIC;
GRANT CONNECT ON DATABASE broker TO broker;
SQL
