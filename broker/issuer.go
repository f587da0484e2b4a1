package broker

import "context"

// An Issuer makes and ends credentials. It is safe for concurrent use, and
// every call ends by its context's deadline.
type Issuer interface {
	// Prepare gives what it takes to end the credential, made and recorded
	// before the credential exists. It holds no secret.
	Prepare(ctx context.Context, l Lease) (handle []byte, err error)

	// Issue makes the credential, at most once a lease; it expires no later
	// than l.Expires. The handle, if not nil, replaces Prepare's.
	Issue(ctx context.Context, l Lease) (Credential, []byte, error)

	// Revoke ends the credential. Ending what is gone is no error;
	// ErrNotRevocable says that only time ends it.
	Revoke(ctx context.Context, l Lease) error
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
