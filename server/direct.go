package server

import (
	"cmp"
	"context"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"accessbroker.internal/api"
	"accessbroker.internal/audit"
	"accessbroker.internal/broker"
)

// Direct is the API of /v1 for the caller of a Handler, in other words the functions
// behind the routes without HTTP. Its methods have the contracts of those of api.Client,
// and their errors are *api.Error. It is valid while the handler runs.
type Direct struct {
	s    *Server
	from *call
}

// DirectOf returns the API for the caller of a request that a Handler serves.
func DirectOf(r *http.Request) (*Direct, error) {
	if _, err := CallerOf(r); err != nil {
		return nil, err
	}
	h := r.Context().Value(handledKey{}).(*handled)
	return &Direct{h.call.s, h.call}, nil
}

// direct runs the function of a route with a body.
func direct[Out any](ctx context.Context, d *Direct, id string, query url.Values, run func(*Server, *call) (reply, error)) (*Out, error) {
	from := d.from
	trace := from.trace
	if stated, ok := audit.ParseTrace(api.TraceparentOf(ctx)); ok {
		trace, ctx = stated, broker.WithTrace(ctx, stated)
	}
	r := (&http.Request{Method: http.MethodPost, URL: new(url.URL), Header: http.Header{}}).WithContext(ctx)
	r.SetPathValue("id", id)
	c := &call{
		s: from.s, route: route{audience: API}, w: from.w, r: r, id: from.id, trace: trace, now: time.Now(),
		from: from.from, query: form(query), who: from.who,
	}
	answer, err := run(d.s, c)
	from.about = cmp.Or(c.about, from.about)
	if err == nil && !c.who.Proof.Valid(c.now) {
		err = broker.ErrProofExpired
	}
	if err != nil {
		return nil, c.directError(blameClient(ctx, err))
	}
	out := answer.body.(Out)
	return &out, nil
}

// directError returns an error as a client of /v1 gets it. Faults of the broker are
// logged, because their answer has no detail.
func (c *call) directError(err error) error {
	row, body := errorRowOf(err), c.problemOf(err)
	if row.fault == serverFault {
		c.s.cfg.Logger.ErrorContext(c.r.Context(), "a call within a request failed", "call_id", c.id, "err", err)
	}
	return &api.Error{
		Code: row.code(), Status: row.status, Title: row.title, Detail: body.Detail, Reasons: body.Reasons, DeniedBy: body.DeniedBy,
		Allowed: body.Allowed, RequestID: body.RequestID, Instance: c.id, RetryAfter: refusalOf(err).Retry,
	}
}

// scan is direct for a function that reads many rows, with the limit that such routes have.
func scan[Out any](ctx context.Context, d *Direct, query url.Values, run func(*Server, *call) (reply, error)) (*Out, error) {
	return direct[Out](ctx, d, "", query, func(s *Server, c *call) (reply, error) {
		if err := c.admit(s.limits.scan); err != nil {
			return reply{}, err
		}
		defer c.leave()
		return run(s, c)
	})
}

// with returns the function of a route for a body.
func with[Body any](body Body, run func(*Server, *call, Body) (reply, error)) func(*Server, *call) (reply, error) {
	return func(s *Server, c *call) (reply, error) { return run(s, c, body) }
}

// WhoAmI returns the caller, without Blocked: each call that follows refuses a blocked one.
func (d *Direct) WhoAmI(context.Context) (*api.Identity, error) {
	out := toIdentity(d.s.cfg.Broker.Rules().WithLabels(d.from.who))
	return &out, nil
}

// Self returns who the caller is, without reading whether the caller is blocked: WhoAmI
// does that.
func (d *Direct) Self() *api.Identity {
	who := d.s.cfg.Broker.Rules().WithLabels(d.from.who)
	return &api.Identity{ID: who.ID, Kind: string(who.Kind), Accounts: who.Accounts}
}

// Entitlements lists what the caller may request.
func (d *Direct) Entitlements(ctx context.Context) ([]api.Offer, error) {
	list, err := direct[api.Offers](ctx, d, "", nil, (*Server).entitlements)
	if err != nil {
		return nil, err
	}
	return list.Entitlements, nil
}

// Ask files a request. It refuses tokens: only the proofs of the call itself count.
func (d *Direct) Ask(ctx context.Context, ask api.Ask) (*api.Request, error) {
	ask.SubjectToken = ""
	return direct[api.Request](ctx, d, "", nil, with(ask, (*Server).ask))
}

// Request returns a request.
func (d *Direct) Request(ctx context.Context, id string) (*api.Request, error) {
	return direct[api.Request](ctx, d, id, nil, (*Server).getRequest)
}

// Await returns a request when its version exceeds after, or when wait has passed.
func (d *Direct) Await(ctx context.Context, id string, after int, wait time.Duration) (*api.Request, error) {
	query := url.Values{"wait": {min(wait, api.MaxWait).String()}, "after": {strconv.Itoa(after)}}
	return direct[api.Request](ctx, d, id, query, (*Server).getRequest)
}

// Requests lists requests.
func (d *Direct) Requests(ctx context.Context, f api.RequestFilter) (*api.RequestPage, error) {
	return scan[api.RequestPage](ctx, d, f.Query(), (*Server).listRequests)
}

// Withdraw withdraws a request of the caller.
func (d *Direct) Withdraw(ctx context.Context, id string) (*api.Request, error) {
	return direct[api.Request](ctx, d, id, nil, with(nothing{}, (*Server).withdraw))
}

// Lease returns a lease.
func (d *Direct) Lease(ctx context.Context, id string) (*api.Lease, error) {
	return direct[api.Lease](ctx, d, id, nil, (*Server).getLease)
}

// Leases lists leases.
func (d *Direct) Leases(ctx context.Context, f api.LeaseFilter) (*api.LeasePage, error) {
	return scan[api.LeasePage](ctx, d, f.Query(), (*Server).listLeases)
}

// Revoke ends a lease.
func (d *Direct) Revoke(ctx context.Context, id, reason string) (*api.Lease, error) {
	return direct[api.Lease](ctx, d, id, nil, with(api.Revocation{Reason: reason}, (*Server).revokeLease))
}
