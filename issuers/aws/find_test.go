package aws

import (
	"errors"
	"strings"
	"testing"
	"time"

	"accessbroker.internal/broker"
	"accessbroker.internal/issuers/issuertest"
)

// The sessions of a role whose leases are lost are denied by the form of their names and the
// time of their issue, until all of them have expired. A role that the broker may not deny is
// listed.
func TestFindDeniesLostSessions(t *testing.T) {
	for _, deny := range []Deny{DenySession, DenyRole} {
		a, iam, _, l := revocable(t, deny)
		role, e := reportsRole()
		role.Revoke = deny
		e.Spec, e.MaxTTL = compile(t, a.cfg, role, e), time.Hour
		longer := *e
		longer.MaxTTL = 2 * time.Hour
		elsewhere := *e
		elsewhere.Issuer = "another"
		loss := broker.Loss{Since: issuertest.Noon.Add(-30 * time.Minute), Until: issuertest.Noon, Issuer: e.Issuer, Catalogue: broker.Catalogue{"a": e, "b": &longer, "c": &elsewhere}}
		var found []broker.Orphan
		if err := a.Find(t.Context(), loss, func(o broker.Orphan) error { found = append(found, o); return nil }); err != nil || len(found) != 1 {
			t.Fatalf("got %v, %v, want one role", found, err)
		}
		o := found[0]
		if o.Lease != "" || !strings.HasSuffix(o.Target, ":role/reports") || o.Expires.Before(loss.Until.Add(2*time.Hour)) {
			t.Errorf("got %+v", o)
		}
		lost := broker.Lease{Handle: o.Handle, Expires: o.Expires, EndHow: broker.EndRevoked, EndAsked: loss.Until}
		for range 2 { // the first answer may have been lost
			if err := a.Revoke(t.Context(), lost); !errors.Is(err, broker.ErrQueued) {
				t.Fatalf("denying: %v", err)
			}
		}
		want := `{"Statement":[{"Action":"*","Condition":{"DateGreaterThanEquals":{"aws:TokenIssueTime":"` + loss.Since.Add(-clockSkew).Format(time.RFC3339) +
			`"},"DateLessThanEquals":{"aws:TokenIssueTime":"` + loss.Until.Format(time.RFC3339) + `"},"StringLike":{"aws:userid":"*:lse_*"}},"Effect":"Deny","Resource":"*"}],"Version":"2012-10-17"}`
		if len(iam.policies) != 1 {
			t.Errorf("IAM has %v", iam.policies)
		}
		for name, policy := range iam.policies {
			if policy != want || !strings.HasPrefix(name, "reports/"+denyLostPrefix) {
				t.Errorf("got %s: %s, want %s", name, policy, want)
			}
		}
		if !a.Owns(broker.Lease{Handle: o.Handle}) || !strings.HasPrefix(l.ID.String(), "lse_") {
			t.Errorf("the issuer does not own %s, or the names of sessions have another form: %s", o.Handle, l.ID)
		}
		lost.Expires = issuertest.Noon // now
		if err := a.Revoke(t.Context(), lost); !errors.Is(err, broker.ErrNotRevocable) || len(iam.policies) != 0 {
			t.Errorf("after their expiry: %v; IAM has %v", err, iam.policies)
		}
	}
	a, _, _, _ := revocable(t, DenySession)
	role, e := reportsRole()
	e.Spec, e.MaxTTL = compile(t, a.cfg, role, e), time.Hour
	n := 0
	if err := a.Find(t.Context(), broker.Loss{Issuer: e.Issuer, Catalogue: broker.Catalogue{"a": e}}, func(o broker.Orphan) error {
		if n++; o.Handle != nil {
			t.Errorf("a role that the broker may not deny has the handle %s", o.Handle)
		}
		return nil
	}); err != nil || n != 1 {
		t.Errorf("got %d roles, %v", n, err)
	}
}
