package issuers

import (
	"encoding/json"
	"strings"

	"accessbroker.internal/broker"
)

// An issuer ends what it made by its lease's handle. One of the same name but
// of another kind, or elsewhere, can't: Made tells a lease of another one. A
// lease without a handle is nobody's: only time ends it.

// Made says whether the lease is not another issuer's.
func (*Token) Made(l broker.Lease) bool { return len(l.Handle) == 0 }

// Made says whether the lease is not another issuer's, or another Vault's.
func (v *Vault) Made(l broker.Lease) bool {
	var h vaultHandle
	return len(l.Handle) == 0 || json.Unmarshal(l.Handle, &h) == nil && h.At == v.at
}

// Made says whether the lease is not another issuer's, or of an account in
// which this one can deny nothing.
func (a *AWS) Made(l broker.Lease) bool {
	if len(l.Handle) == 0 || string(l.Handle) == awsNothing {
		return true
	}
	_, ok := a.denialOf(l)
	return ok
}

// denialOf reads the handle of a lease whose session can be denied, by us.
func (a *AWS) denialOf(l broker.Lease) (d awsDenial, ok bool) {
	if json.Unmarshal(l.Handle, &d) != nil || !awsRoleName.MatchString(d.Role) || d.Deny != AWSDenySession && d.Deny != AWSDenyRole {
		return d, false
	}
	// The role of that name in another account would be denied what it may.
	return d, d.Account == "" || a.cfg.Revoker == "" || d.Account == awsAccount(a.cfg.Revoker)
}

// awsAccount gives the account that an ARN of IAM is in.
func awsAccount(arn string) string {
	parts := strings.SplitN(arn, ":", 6)
	if len(parts) < 6 {
		return ""
	}
	return parts[4]
}
