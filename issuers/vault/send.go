package vault

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/hashicorp/vault/api"

	"accessbroker.internal/internal/retryafter"
)

// A request is a call that creates a credential.
type request struct {
	path string
	data map[string]any // nil: the path is read
	list bool           // the path is listed
	wrap time.Duration  // TTL of the wrapping token; zero: the answer is not wrapped
	late time.Duration  // by how much the credential may outlive its lease
}

// An access is a token with the state that a node of Vault must have to know it.
type access struct {
	token string
	index string // X-Vault-Index of the answer that had the token; empty: Vault has one node, or forwards
	young bool   // made moments ago: a node that doesn't know it yet will
}

// An answer is Vault's response.
type answer struct {
	*api.Secret
	sent      time.Time     // before the request, so a duration in the answer ends no earlier than counted from here
	ahead     time.Duration // of Vault's clock
	index     string
	tokenEnds time.Time // the expiry of the token that the request used; zero: not known
}

// leaseEnd returns when the credential's Vault lease ends: after its duration, and no
// later than the token that it was made with, because Vault revokes the leases of a
// token with the token.
func (a *answer) leaseEnd() time.Time {
	end := a.sent.Add(time.Duration(a.LeaseDuration) * time.Second)
	if !a.tokenEnds.IsZero() && (a.LeaseDuration <= 0 || a.tokenEnds.Before(end)) {
		return a.tokenEnds
	}
	return end
}

// after returns the times between which d from now is by Vault's clock. The Date
// header and d are whole seconds.
func (a *answer) after(d time.Duration) ending {
	return ending{a.sent.Add(a.ahead + d), time.Now().Add(a.ahead + time.Second + d)}
}

// pauses are the times between the attempts of a request that a node of the cluster
// refused because that node lags behind. Replication takes milliseconds. A node that
// needs longer than all pauses together is out of order.
var pauses = [...]time.Duration{
	50 * time.Millisecond, 100 * time.Millisecond, 200 * time.Millisecond, 400 * time.Millisecond, 800 * time.Millisecond, time.Second, time.Second,
}

// briefAttempts is how often a request is repeated whose failure is most likely final.
const briefAttempts = 3

// send sends a request. It sends the request again while there is no connection, or
// while a node of the cluster refuses it because that node lags behind. Both precede all
// processing, so no attempt creates anything that a later one creates again. Any other
// error ends the attempts.
func send(ctx context.Context, c *api.Client, as access, r request) (*answer, error) {
	for attempt := 0; ; attempt++ {
		a, err := sendOnce(ctx, c, as, r)
		switch worth := repeatOf(err, as); {
		case worth == repeatLong && attempt == len(pauses):
			return nil, unavailable(err)
		case worth == repeatNever || worth == repeatBriefly && attempt == briefAttempts:
			return a, err
		}
		select {
		case <-ctx.Done():
			return nil, unavailable(err)
		case <-time.After(pauses[attempt]):
		}
	}
}

// A repeat is how long a failed request is worth repeating.
type repeat int

const (
	repeatNever   repeat = iota
	repeatBriefly        // for briefAttempts
	repeatLong           // for all pauses
)

// repeatOf returns the repeat of an error. 412 is a node that lacks the required state,
// and "invalid token" for a new token is one that does not know it yet. A node that has
// the state of the token and denies its use most likely applies a policy.
func repeatOf(err error, as access) repeat {
	switch s := status(err); {
	case unsent(err):
		return repeatBriefly
	case s == http.StatusPreconditionFailed:
		return repeatLong
	case s == http.StatusForbidden && as.young && says(err, invalidToken):
		return repeatLong
	case s == http.StatusForbidden && as.young && as.index != "":
		return repeatBriefly
	}
	return repeatNever
}

// sendOnce sends a request once, except for the retries of c.
func sendOnce(ctx context.Context, c *api.Client, as access, r request) (*answer, error) {
	a, status, retry := &answer{sent: time.Now()}, 0, time.Duration(0)
	logical := c.WithRequestCallbacks(func(q *api.Request) {
		if q.ClientToken = as.token; r.wrap > 0 {
			q.WrapTTL = fmt.Sprintf("%ds", int64(r.wrap/time.Second))
		}
		if as.index != "" {
			q.Headers.Set(api.HeaderIndex, as.index)
		}
	}).WithResponseCallbacks(func(p *api.Response) {
		a.ahead, a.index, status, retry = clockAhead(p), p.Header.Get(api.HeaderIndex), p.StatusCode, retryafter.Parse(p.Header)
	}).Logical()
	var err error
	switch {
	case r.list:
		a.Secret, err = logical.ListWithContext(ctx, r.path)
	case r.data == nil:
		a.Secret, err = read(ctx, logical, r.path)
	default:
		a.Secret, err = logical.WriteWithContext(ctx, r.path, r.data)
	}
	var response *api.ResponseError
	switch {
	case status >= 400 && !errors.As(err, &response):
		// The library took the body of a 404 for an answer, or could not read it.
		err = &api.ResponseError{StatusCode: status}
	case err != nil:
	case status == http.StatusNoContent:
		a.Secret = &api.Secret{}
	case a.Secret == nil:
		return nil, errUnreadable
	}
	if err != nil {
		return nil, classify(err, retry)
	}
	return a, nil
}

func clockAhead(r *api.Response) time.Duration {
	date, err := http.ParseTime(r.Header.Get("Date"))
	if err != nil {
		return 0
	}
	return time.Until(date)
}

// read reads a path. Unlike the library's other ways to read, the raw one
// returns the error of an answer with status 404.
func read(ctx context.Context, c *api.Logical, path string) (*api.Secret, error) {
	resp, err := c.ReadRawWithContext(ctx, path)
	if resp != nil {
		defer func() { _ = resp.Body.Close() }()
	}
	if err != nil {
		return nil, err
	}
	return api.ParseSecret(resp.Body)
}
