#!/bin/sh
# standby.sh FOLDER copies the primary into an empty data folder, from which PostgreSQL
# starts as a streaming standby. It connects by the usual variables of PostgreSQL's clients.
set -eu
[ -e "$1/PG_VERSION" ] || pg_basebackup --pgdata "$1" --dbname "user=standby application_name=standby" --no-password \
	--write-recovery-conf --wal-method stream --checkpoint fast --slot standby --create-slot
