package broker

import (
	"errors"
	"testing"
)

// A kill switch that was interrupted continues with the selector of its block.
func TestSelectorOfBlock(t *testing.T) {
	for _, s := range []Selector{
		{Holder: "spiffe://acme.test/agent/a"}, {Holder: "login/ana"}, {Under: "spiffe://acme.test/agent"},
		{TrustDomain: "acme.test"}, {Entitlement: "db"}, {Issuer: "vault"},
	} {
		key, err := s.key()
		if err != nil || key.selector() != s {
			t.Errorf("got %+v from block %q, %v, want %+v", key.selector(), key, err, s)
		}
	}
	for _, s := range []Selector{{}, {Entitlement: "db", Issuer: "vault"}, {Holder: "a\nb"}} {
		if key, err := s.key(); !errors.Is(err, ErrInvalidRequest) {
			t.Errorf("%+v: got block %q, %v, want %v", s, key, err, ErrInvalidRequest)
		}
	}
}
