package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"

	"golang.org/x/sync/errgroup"

	"accessbroker.internal/agent"
	"accessbroker.internal/api"
	"accessbroker.internal/egress"
)

// An edge makes calls next to an agent: it keeps the credentials, and follows the rules
// that the broker has for the caller.
type edge struct {
	source *egress.Source
	keeper *agent.Keeper
	calls  *egress.Transport
	meter  *egress.Reporter
}

// newEdge returns an edge for the entitlements; for all of the caller's if there are none.
func newEdge(client *api.Client, only []string, ask func(string) api.Ask, report func(agent.KeptEvent)) *edge {
	e := &edge{
		source: &egress.Source{Client: client, Only: only},
		keeper: agent.NewKeeper(agent.KeeperConfig{Client: client, Ask: ask, Report: report}),
	}
	e.meter = &egress.Reporter{Calls: api.Calls{Client: client}}
	e.calls = &egress.Transport{Policy: e.source.Policy, Credentials: e.keeper, Meter: e.meter}
	return e
}

// MatchHost reports whether a rule in force names a host and port.
func (e *edge) MatchHost(scheme, hostport string) bool {
	return e.source.Policy().MatchHost(scheme, hostport)
}

// RoundTrip makes a call.
func (e *edge) RoundTrip(r *http.Request) (*http.Response, error) { return e.calls.RoundTrip(r) }

// Upgrade makes a call that asks for a WebSocket.
func (e *edge) Upgrade(r *http.Request) (*http.Response, error) { return e.calls.Upgrade(r) }

// run renews credentials and follows the rules until ctx ends.
func (e *edge) run(ctx context.Context, report func(error)) error {
	loops, ctx := errgroup.WithContext(ctx)
	loops.Go(func() error { return e.keeper.Run(ctx) })
	loops.Go(func() error { return e.source.Run(ctx, report) })
	loops.Go(func() error { return e.meter.Run(ctx) })
	return loops.Wait()
}

// endEdge returns all credentials, in bounded time, and reports those that could not be
// returned.
func (a *app) endEdge(ctx context.Context, e *edge, reason string) {
	e.calls.CloseIdleConnections()
	e.meter.Close(ctx)
	err := e.keeper.Return(ctx, reason)
	var many interface{ Unwrap() []error }
	if !errors.As(err, &many) {
		return
	}
	for _, err := range many.Unwrap() {
		var unreturned *agent.UnreturnedError
		if errors.As(err, &unreturned) {
			a.warnUnreturned(unreturned.Credential, unreturned)
			continue
		}
		fmt.Fprintf(a.err, "broker: %s\n", printable(err.Error()))
	}
}
