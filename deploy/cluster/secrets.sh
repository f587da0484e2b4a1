#!/bin/sh
# secrets.sh FOLDER creates the seal key, the passwords, and a certificate of the database
# servers: FOLDER/broker is for the brokers, FOLDER/postgres for PostgreSQL and PgBouncer.
# Nothing that exists is replaced. As root, it gives them to the users of compose.yaml.
set -eu
umask 077
mkdir -p "$1/broker" "$1/postgres"
cd "$1"
[ -e broker/seal.key ] || openssl rand -base64 32 >broker/seal.key
for role in owner broker standby admin; do
	[ -e "postgres/$role.password" ] || openssl rand -hex 24 >"postgres/$role.password"
done
if [ ! -e postgres/server.pem ]; then
	openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 3650 -subj "/CN=database CA" -keyout ca.key -out ca.pem 2>/dev/null
	openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj "/CN=database" -keyout postgres/server.key -out server.csr 2>/dev/null
	printf 'subjectAltName=DNS:primary.acme.test,DNS:standby.acme.test,DNS:pgbouncer.acme.test,DNS:localhost\n' >server.ext
	openssl x509 -req -in server.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 825 -extfile server.ext -out postgres/server.pem 2>/dev/null
	rm -f server.csr server.ext ca.srl
fi
printf '"broker" "%s"\n' "$(cat postgres/broker.password)" >postgres/userlist.txt
cp ca.pem postgres/ca.pem
cp ca.pem postgres/owner.password postgres/broker.password broker/
if [ "$(id -u)" = 0 ]; then
	chmod 711 .
	chown -R 65532 broker
	chown -R 999 postgres
fi
