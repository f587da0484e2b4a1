package recovery

import (
	"testing"
	"time"

	"accessbroker.internal/broker"
)

// What has no expiry is not listed with a time at which it ends.
func TestUnfindableStatesWhenItEnds(t *testing.T) {
	until := time.Date(2026, 11, 3, 12, 0, 0, 0, time.UTC)
	loss := broker.Loss{Until: until, Issuer: "x", Catalogue: broker.Catalogue{
		"a": {Issuer: "x", MaxTTL: time.Hour}, "b": {Issuer: "x", MaxTTL: 2 * time.Hour}, "c": {Issuer: "y", MaxTTL: 3 * time.Hour, Persists: true},
	}}
	if o := unfindable(loss, nil); o == nil || !o.Expires.Equal(until.Add(2*time.Hour)) {
		t.Errorf("credentials that expire: got %+v", o)
	}
	loss.Issuer = "y"
	if o := unfindable(loss, nil); o == nil || !o.Expires.IsZero() {
		t.Errorf("memberships: got %+v", o)
	}
	loss.Issuer = "z"
	if o := unfindable(loss, nil); o != nil {
		t.Errorf("an issuer without entitlements: got %+v", o)
	}
}
