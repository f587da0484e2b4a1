package membership

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"sync"

	"accessbroker.internal/audit"
	"accessbroker.internal/broker"
)

// An IssuerConfig configures an Issuer.
type IssuerConfig struct {
	Name      string // of the issuer
	At        string // identifies the system by its address, in handles
	Directory Directory
	Ledger    *Ledger
	Names     Names

	// Describe describes the group of a spec for approvers. It does no I/O.
	Describe func(spec any) string
}

// An Issuer makes memberships. Packages issuers/scim and issuers/ldap create it with
// their directories. It is safe for concurrent use.
type Issuer struct {
	cfg IssuerConfig

	comparing sync.Mutex          // held during Compare
	resume    broker.MembershipID // where the next comparison begins; guarded by comparing
}

var _ interface {
	broker.Issuer
	broker.Owner
	broker.Describer
} = (*Issuer)(nil)

// NewIssuer returns an issuer. It does no I/O.
func NewIssuer(cfg IssuerConfig) *Issuer { return &Issuer{cfg: cfg} }

// Prepare finds the member and the group. The handle is their place.
func (i *Issuer) Prepare(ctx context.Context, o broker.Order) (broker.Prepared, error) {
	name, err := i.cfg.Names.of(o.Lease.Holder, func(key broker.PersonKey) (*broker.Account, error) { return i.cfg.Ledger.account(ctx, key) })
	if err != nil {
		return broker.Prepared{}, err
	}
	p, err := i.cfg.Directory.Find(ctx, o.Entitlement.Spec, name)
	if err != nil {
		return broker.Prepared{}, fmt.Errorf("finding the member and the group: %w", err)
	}
	p.At = i.cfg.At
	handle, err := json.Marshal(p)
	return broker.Prepared{Handle: handle}, err
}

// Issue makes the membership, unless it exists.
func (i *Issuer) Issue(ctx context.Context, o broker.Order) (broker.Credential, []byte, error) {
	p, err := i.place(o.Lease)
	if err != nil {
		return broker.Credential{}, nil, err
	}
	if err := i.cfg.Ledger.claim(ctx, i, p, claimOf(o)); err != nil {
		return broker.Credential{}, nil, fmt.Errorf("adding the member: %w", err)
	}
	joined := &broker.Joined{System: systemOf(o), Group: p.GroupName}
	id := p.ID()
	return broker.Credential{
		Type: broker.CredentialMembership, Joined: joined, Expires: o.Lease.Expires, Revocation: broker.RevokedImmediate,
		Hash: audit.HashObject("accessbroker/joined/v1", audit.NewObject().String("group", joined.Group).String("system", joined.System).Hex("membership", audit.Digest(id))),
	}, nil, nil
}

// systemOf returns the name of the system of an order, for people.
func systemOf(o broker.Order) string {
	if o.Entitlement != nil && o.Entitlement.System != "" {
		return o.Entitlement.System
	}
	return o.Lease.Issuer
}

// Revoke ends the lease's claim. It removes the member if no other lease relies on the
// membership, and confirms that the member is gone.
func (i *Issuer) Revoke(ctx context.Context, l broker.Lease) error {
	p, err := i.place(l)
	if err != nil {
		return err
	}
	if err := i.cfg.Ledger.release(ctx, i, p, l); err != nil {
		return fmt.Errorf("removing the member: %w", err)
	}
	return nil
}

// Owns reports whether the lease is one of this system.
func (i *Issuer) Owns(l broker.Lease) bool {
	_, err := i.place(l)
	return err == nil
}

// Describe implements broker.Describer.
func (i *Issuer) Describe(e *broker.Entitlement, _ []string, _ map[string]string) string {
	return i.cfg.Describe(e.Spec) + "\nThe membership ends with the lease. One that exists already stays as it is."
}

// place reads the handle of a lease. Unlike other credentials, a membership does not
// expire by itself, so a lease of another system is an error even after its expiry.
func (i *Issuer) place(l broker.Lease) (p Place, err error) {
	if err := json.Unmarshal(l.Handle, &p); err != nil || p.At != i.cfg.At || p.Group == "" || p.Member == "" {
		return Place{}, fmt.Errorf("%w: lease %s belongs to another issuer that had this name: configure that issuer again until its leases have ended", broker.ErrIssuerUnavailable, l.ID)
	}
	return p, nil
}

// contains is Directory.Contains, except that a group that is gone has no members.
func (i *Issuer) contains(ctx context.Context, p Place) (has, gone bool, err error) {
	has, err = i.cfg.Directory.Contains(ctx, p)
	if errors.Is(err, ErrGone) {
		return false, true, nil
	}
	return has, false, err
}
