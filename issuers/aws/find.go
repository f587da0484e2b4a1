package aws

import (
	"context"
	"encoding/json"
	"maps"
	"slices"
	"strings"
	"time"

	"accessbroker.internal/broker"
)

var _ broker.Finder = (*Issuer)(nil)

// DenyLost selects the sessions of a role whose leases are lost. It is not a value of Role.
const DenyLost Deny = "lost"

// denyLostPrefix starts the name of the inline policy that denies lost sessions.
const denyLostPrefix = "access-broker-lost-"

// Find returns the roles of the catalogue with the sessions that were issued while records are
// lost. AWS lists no sessions. But a session of the broker has the id of its lease as its name,
// and STS states when it was issued, so one policy selects them. Sessions of roles that the
// operator does not let the broker deny end only at their expiry.
func (*Issuer) Find(_ context.Context, loss broker.Loss, f func(broker.Orphan) error) error {
	roles := map[string]*broker.Orphan{}
	for _, e := range loss.Catalogue {
		spec, ok := e.Spec.(*Spec)
		if !ok || e.Issuer != loss.Issuer {
			continue
		}
		arn := spec.role.RoleARN
		o := roles[arn]
		if o == nil {
			o = &broker.Orphan{OrphanKey: broker.OrphanKey{Target: arn}, Text: "the role's sessions of this broker that were issued in that time"}
			roles[arn] = o
		}
		if ends := loss.Until.Add(e.MaxTTL + clockSkew); ends.After(o.Expires) {
			o.Expires = ends
		}
		if spec.role.Revoke != DenyNone && o.Handle == nil {
			o.Handle = lostHandle(arn, loss)
		}
	}
	for _, arn := range slices.Sorted(maps.Keys(roles)) {
		if err := f(*roles[arn]); err != nil {
			return err
		}
	}
	return nil
}

// lostHandle returns the handle of a role's lost sessions. Clocks differ, so it selects
// sessions from a little before the first lost record, but none that is issued from now on.
func lostHandle(arn string, loss broker.Loss) []byte {
	_, path, _ := strings.Cut(arn, ":role/")
	since, until := loss.Since.Add(-clockSkew).UTC().Truncate(time.Second), loss.Until.UTC().Truncate(time.Second)
	text, _ := json.Marshal(denial{Role: path[strings.LastIndexByte(path, '/')+1:], Account: accountOf(arn), Deny: DenyLost, Since: &since, Until: &until}) // always marshals
	return text
}

// denyLost denies the sessions whose leases are lost. Once they have expired, it removes the
// policy.
func (a *Issuer) denyLost(ctx context.Context, d denial, over bool) error {
	if d.Since == nil || d.Until == nil {
		return broker.ErrNotRevocable
	}
	name := denyLostPrefix + d.Until.Format("20060102T150405Z")
	if over {
		return a.undeny(ctx, d.Role, name)
	}
	return a.denyIf(ctx, d.Role, name, map[string]any{
		"StringLike":            map[string]string{"aws:userid": "*:lse_*"},
		"DateGreaterThanEquals": map[string]string{"aws:TokenIssueTime": d.Since.Format(time.RFC3339)},
		"DateLessThanEquals":    map[string]string{"aws:TokenIssueTime": d.Until.Format(time.RFC3339)},
	})
}
