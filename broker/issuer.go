package broker

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"time"
)

// An Issuer issues and revokes credentials. It is safe for concurrent use, and
// every call returns by its context's deadline.
type Issuer interface {
	// Prepare returns the handle by which the credential can be revoked. The handle
	// is recorded before the credential exists.
	Prepare(ctx context.Context, o Order) (Prepared, error)

	// Issue issues the credential, at most once per lease. The credential expires
	// no later than the lease. A handle that is not nil replaces that of Prepare,
	// even with an error.
	Issue(ctx context.Context, o Order) (Credential, []byte, error)

	// Revoke ends the credential by the lease's handle alone, because the
	// catalogue may have changed. It returns nil if the credential has ended or
	// does not exist, ErrNotRevocable if only time ends it, and ErrQueued if
	// the upstream accepted the order without confirming its execution.
	Revoke(ctx context.Context, l Lease) error
}

// ErrQueued means that the upstream accepted a revocation and does not confirm
// its execution. The lease stays pending until its credential expires. Callers
// never see it.
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

// An Order is a credential to issue: the lease, and the entitlement that was
// decided on.
type Order struct {
	Lease       Lease
	Entitlement *Entitlement
	Key         Secret // from Prepared
}

// Prepared is the result of Prepare.
type Prepared struct {
	Handle []byte // revokes the credential; it contains no secret, and is stored
	Key    Secret // for Issue; kept only in the memory of this process
}

// A Minter is an Issuer that signs credentials itself; they are worthless until
// they are returned. The broker mints before the transaction, and discards the
// credential if the transaction fails. Mint does no I/O.
type Minter interface {
	Issuer
	Mint(ctx context.Context, l Lease) (Credential, error)
}

// An Inspector finds the lease of a credential, for introspection.
type Inspector interface {
	// Inspect returns the lease of the token, or ErrNotFound if this issuer did
	// not sign it. It verifies the signature, not the time.
	Inspect(ctx context.Context, token string) (LeaseID, error)
}

// An Owner recognises its leases, so that a start can detect a removed or replaced
// issuer that has leases to end.
type Owner interface {
	// Owns reports whether this issuer can end the lease.
	Owns(l Lease) bool
}

// A Describer describes its credentials for approvers.
type Describer interface {
	// Describe returns what a credential with these scopes and parameters can
	// do, in terms of the upstream: its policy or its path. It does no I/O, and
	// the text has no secret.
	Describe(e *Entitlement, scopes []string, parameters map[string]string) string
}

// A Secret has the fields of a credential, for example "token" or "password".
// Printing and logging it show "[secret]", and marshalling it fails. Only
// package server calls Reveal and RevealField.
type Secret struct{ fields []secretField }

// A secretField is one of few, so a list takes less memory than a map.
type secretField struct{ name, value string }

// NewSecret returns a Secret with a copy of the fields.
func NewSecret(fields map[string]string) (s Secret) {
	for name, value := range fields {
		s.fields = append(s.fields, secretField{name, value})
	}
	return s
}

// NewSecretField returns a Secret with one field.
func NewSecretField(name, value string) Secret { return Secret{[]secretField{{name, value}}} }

// Reveal returns the fields; nil if there are none.
func (s Secret) Reveal() map[string]string {
	if s.fields == nil {
		return nil
	}
	fields := make(map[string]string, len(s.fields))
	for _, f := range s.fields {
		fields[f.name] = f.value
	}
	return fields
}

// RevealField returns one field, or "" if no field has that name.
func (s Secret) RevealField(name string) string {
	for _, f := range s.fields {
		if f.name == name {
			return f.value
		}
	}
	return ""
}

const redacted = "[secret]"

// Format prints "[secret]", whatever the verb.
func (Secret) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, redacted) }

// LogValue logs "[secret]".
func (Secret) LogValue() slog.Value { return slog.StringValue(redacted) }

// MarshalText fails, so that no secret is marshalled by accident.
func (Secret) MarshalText() ([]byte, error) { return nil, errSecret }

// MarshalJSON fails, as MarshalText does.
func (Secret) MarshalJSON() ([]byte, error) { return nil, errSecret }

// GobEncode fails, as MarshalText does.
func (Secret) GobEncode() ([]byte, error) { return nil, errSecret }

var errSecret = errors.New("a secret can't be marshalled")
