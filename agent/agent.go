// Package agent has the flows that clients of a broker share: obtain a credential,
// wait for its approval, hand it over to a consumer, renew it while the consumer
// runs, and return it. The package uses no terminal, files or globals, so a command,
// a server and a proxy can use it alike.
package agent

import (
	"context"
	"fmt"
	"time"

	"accessbroker.internal/api"
)

// Obtain files a request and collects its credential. If the request needs
// approval, Obtain continues like Collect.
func Obtain(ctx context.Context, client *api.Client, ask api.Ask, w Wait) (*api.Credential, error) {
	credential, pending, err := client.AskAndCollect(ctx, ask)
	if err != nil || credential != nil {
		return credential, err
	}
	return Collect(ctx, client, pending, w)
}

// Collect collects a credential of a request. If the request is pending, Collect
// waits first. The error is a *PendingError if the request is still pending after
// the wait, and an *UnreachableError if the broker does not answer.
func Collect(ctx context.Context, client *api.Client, r *api.Request, w Wait) (*api.Credential, error) {
	if r.Status == api.StatusPending && w.For > 0 {
		var err error
		if r, err = Await(ctx, client, r, w); err != nil {
			return nil, err
		}
	}
	if r.Status == api.StatusPending {
		return nil, &PendingError{Request: r}
	}
	credential, err := client.Collect(ctx, r.ID)
	if api.Unreachable(err) {
		err = &UnreachableError{RequestID: r.ID, Err: err}
	}
	return credential, err
}

// A PendingError means that a request waits for approval. It wraps api.Pending.
type PendingError struct {
	Request     *api.Request
	Interrupted bool // the context of the call ended before the wait did
}

func (e *PendingError) Error() string { return "request " + e.Request.ID + " waits for approval" }

// Unwrap returns api.Pending.
func (e *PendingError) Unwrap() error { return api.Pending }

// An UnreachableError means that the broker stopped answering after it had filed a
// request. Its credential can be collected when the broker answers again.
type UnreachableError struct {
	RequestID string
	Err       error
}

func (e *UnreachableError) Error() string { return e.Err.Error() }

// Unwrap returns Err.
func (e *UnreachableError) Unwrap() error { return e.Err }

// HandOver passes a credential to its consumer. If that fails, no one uses the
// credential, so HandOver returns its lease to the broker. The error is a
// *HandOverError.
func HandOver(ctx context.Context, client *api.Client, c *api.Credential, consume func(*api.Credential) error) error {
	err := consume(c)
	if err == nil {
		return nil
	}
	return &HandOverError{Err: err, Return: Return(ctx, client, c, "the consumer could not take it")}
}

// A HandOverError means that a consumer did not take its credential.
type HandOverError struct {
	Err    error // the consumer's
	Return error // why the lease could not be returned; nil: it was
}

func (e *HandOverError) Error() string { return e.Err.Error() }

// Unwrap returns Err.
func (e *HandOverError) Unwrap() error { return e.Err }

// returnTimeout bounds the time to return a lease.
const returnTimeout = 10 * time.Second

// Return revokes the lease of a credential that its holder no longer needs. It does
// so even if ctx has ended, because the end of the work is the usual reason. If it
// fails, the credential works until it expires.
func Return(ctx context.Context, client *api.Client, c *api.Credential, reason string) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), returnTimeout)
	defer cancel()
	if _, err := client.Revoke(ctx, c.Lease, reason); err != nil {
		return fmt.Errorf("returning lease %s: %w", c.Lease, err)
	}
	return nil
}
