package broker

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// An Issuer makes and ends credentials. It is safe for concurrent use, and
// every call ends by its context's deadline.
type Issuer interface {
	// Prepare makes what it takes to end the credential, which is recorded
	// before the credential exists.
	Prepare(ctx context.Context, o Order) (Prepared, error)

	// Issue makes the credential, at most once a lease; it expires no later
	// than the lease. The handle, if not nil, replaces Prepare's, also if
	// there is an error.
	Issue(ctx context.Context, o Order) (Credential, []byte, error)

	// Revoke ends the credential, by the lease's handle alone: the catalogue
	// may have changed. Ending what is gone is no error; ErrNotRevocable says
	// that only time ends it, and ErrQueued that the upstream has taken the
	// order and does not say when it carries it out.
	Revoke(ctx context.Context, l Lease) error
}

// ErrQueued is an issuer's answer to Revoke, and never a caller's: the upstream
// has taken the order, and nobody tells when it is carried out. Until the
// credential's own time is over, it counts as being ended.
var ErrQueued = errors.New("queued by the upstream")

// ForeignLease returns what Revoke returns for a lease of another issuer that
// had the same name. Only that issuer can end the credential. A minute after
// the lease's expiry nothing is left to end, whichever clock is right.
func ForeignLease(l Lease) error {
	if time.Since(l.Expires) > time.Minute {
		return ErrNotRevocable
	}
	return fmt.Errorf("%w: lease %s belongs to another issuer that had this name: configure that issuer again until its leases have ended", ErrIssuerUnavailable, l.ID)
}

// An Order is a credential to be made: the lease, and the entitlement as it
// was decided on.
type Order struct {
	Lease       Lease
	Entitlement *Entitlement
	Key         Secret // of Prepared
}

// Prepared is what Prepare made.
type Prepared struct {
	Handle []byte // what ends the credential; holds no secret, and is stored
	Key    Secret // what Issue needs of it, in this process's memory only
}

// A Minter is an Issuer whose credential comes out of the broker itself and
// is worth nothing until it is handed over. It needs one transaction: the
// broker mints first and throws the credential away if the transaction
// refuses. Mint does no I/O.
type Minter interface {
	Issuer
	Mint(ctx context.Context, l Lease) (Credential, error)
}

// An Inspector reads a credential back, so that it can be introspected.
type Inspector interface {
	// Inspect gives the lease that the token belongs to, or ErrNotFound if it
	// is not one of its tokens. It verifies the signature, not the time.
	Inspect(ctx context.Context, token string) (LeaseID, error)
}

// A Describer is an Issuer that says what its credentials can do.
type Describer interface {
	// Describe shows those who approve what a credential of these scopes and
	// parameters would let its holder do: the policy or the path, as the
	// upstream knows it. It does no I/O, and its text holds no secret.
	Describe(e *Entitlement, scopes []string, parameters map[string]string) string
}
