// Package mcp serves the broker to AI agents over the Model Context Protocol, revisions
// 2026-07-28 and 2025-11-25.
//
// The tools return handles and outcomes, never a credential: the agent's runtime collects
// it outside the conversation. A handle is the id of a request or lease, and the broker
// checks it against the caller in every call. The package keeps no state between calls, so
// any replica answers any call.
//
// Texts of other people reach the model as quoted data. See words.go.
package mcp

import (
	"context"
	"errors"
	"math"
	"slices"
	"time"

	"accessbroker.internal/api"
	"accessbroker.internal/broker"
)

// A Broker is the broker as one proven caller uses it. *api.Client is a Broker.
type Broker interface {
	// WhoAmI returns the caller, to whom all other methods are limited by the broker.
	WhoAmI(context.Context) (*api.Identity, error)
	Entitlements(context.Context) ([]api.Offer, error)

	// Ask files a request. An identical request that is pending or granted answers it.
	Ask(context.Context, api.Ask) (*api.Request, error)
	Request(ctx context.Context, id string) (*api.Request, error)
	Requests(context.Context, api.RequestFilter) (*api.RequestPage, error)

	// Await returns the request when its version exceeds after, or when wait has passed.
	Await(ctx context.Context, id string, after int, wait time.Duration) (*api.Request, error)
	Withdraw(ctx context.Context, id string) (*api.Request, error)

	Lease(ctx context.Context, id string) (*api.Lease, error)
	Leases(context.Context, api.LeaseFilter) (*api.LeasePage, error)

	// Revoke returns a lease of the caller.
	Revoke(ctx context.Context, id, reason string) (*api.Lease, error)
}

var _ Broker = (*api.Client)(nil)

// A session is one call of a tool, as its caller.
type session struct {
	Broker
	who *api.Identity
}

// A caller is whose calls a context serves, and until when.
type caller struct {
	broker Broker
	ends   context.Context // the SDK does not end calls with their connection
}

type callerKey struct{}

// withBroker returns a context whose calls are made with b, until ctx ends.
func withBroker(ctx context.Context, b Broker) context.Context {
	return context.WithValue(ctx, callerKey{}, caller{b, ctx})
}

var errNoCaller = errors.New("this call has no caller")

// begin returns the session of a call.
func begin(ctx context.Context) (*session, error) {
	c, ok := ctx.Value(callerKey{}).(caller)
	if !ok {
		return nil, errNoCaller
	}
	if known, ok := c.broker.(interface{ Self() *api.Identity }); ok { // the proof is that of this call
		return &session{Broker: c.broker, who: known.Self()}, nil
	}
	who, err := c.broker.WhoAmI(ctx)
	if err != nil {
		return nil, err
	}
	return &session{Broker: c.broker, who: who}, nil
}

// errUnknownHandle is the answer to a handle that does not exist, that belongs to another
// caller, or that is malformed. One answer for all keeps the handles of others unknown.
var errUnknownHandle = &fault{
	Code: api.NotFound, What: "No request or lease of yours has this handle.",
	Next: "Use a handle that request_access or access_status returned, or call access_status without a handle to list yours. Do not guess handles.",
}

// request returns the caller's own request, also by the handle of one of its leases.
func (s *session) request(ctx context.Context, handle string) (*api.Request, error) {
	if _, err := broker.ParseLeaseID(handle); err == nil {
		l, err := s.lease(ctx, handle)
		if err != nil {
			return nil, err
		}
		handle = l.Request
	}
	if !isRequest(handle) {
		return nil, errUnknownHandle
	}
	r, err := s.Request(ctx, handle)
	return s.own(r, err)
}

// decided returns a request of the caller once it is no longer pending, or when wait has
// passed. If the broker has no room for another waiting call, it returns the present state.
func (s *session) decided(ctx context.Context, id string, wait time.Duration) (*api.Request, error) {
	if wait > 0 {
		r, err := s.Await(ctx, id, math.MaxInt32, wait) // no version is later
		if !errors.Is(err, api.SlowDown) {
			return s.own(r, err)
		}
	}
	return s.request(ctx, id)
}

// own returns a request that was read, if it is the caller's.
func (s *session) own(r *api.Request, err error) (*api.Request, error) {
	if err != nil {
		return nil, unknown(err)
	}
	// The broker also returns requests of others to those whom policy permits to view them.
	if !s.is(r.Requester) {
		return nil, errUnknownHandle
	}
	return r, nil
}

func isRequest(handle string) bool {
	_, err := broker.ParseRequestID(handle)
	return err == nil
}

// lease returns a lease that the caller holds.
func (s *session) lease(ctx context.Context, handle string) (*api.Lease, error) {
	l, err := s.Lease(ctx, handle)
	if err != nil {
		return nil, unknown(err)
	}
	if !s.is(l.Holder) {
		return nil, errUnknownHandle
	}
	return l, nil
}

// is reports whether the caller is an identity.
func (s *session) is(id string) bool {
	return id != "" && (id == s.who.ID || slices.Contains(s.who.Accounts, id))
}

func unknown(err error) error {
	if errors.Is(err, api.NotFound) {
		return errUnknownHandle
	}
	return err
}
