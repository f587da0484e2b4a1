# Settings of a terminal for "broker dev", which writes this file at each start.
{{with .Program}}export PATH={{.}}:"$PATH"
{{end}}export BROKER_URL={{.URL}}
export BROKER_ID={{.BrokerID}}
export BROKER_CA={{.Bundle}}
export BROKER_UPSTREAM_CA={{.Bundle}}
export DEV_PIPELINES={{.Pipelines}}
export DEV_TICKETS={{.Tickets}}
export BROKER_ADMIN_SOCKET={{.AdminSocket}}
export SPIFFE_ENDPOINT_SOCKET=unix://{{.Socket}}
unset BROKER_CERT BROKER_KEY BROKER_TOKEN_FILE BROKER_TOKEN_FROM BROKER_TOKEN_AUDIENCE BROKER_ID_TOKEN
