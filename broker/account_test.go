package broker

import (
	"testing"
	"time"
)

// A constant nonce would let an old signature decide again.
func TestNoncesDiffer(t *testing.T) {
	if a, b := NewNonce(), NewNonce(); a == b || a.IsZero() {
		t.Errorf("got nonces %s and %s", a, b)
	}
}

func TestPasskeyThatIsRemovedIsSkipped(t *testing.T) {
	a := Account{Passkeys: []Passkey{{ID: []byte{1}, Removed: noon}, {ID: []byte{2}}, {ID: []byte{3}, Counts: noon.Add(time.Hour)}}}
	ids, err := a.Signable(noon)
	if err != nil || len(ids) != 1 || ids[0][0] != 2 {
		t.Errorf("got %v, %v, want the second passkey", ids, err)
	}
	if p := a.Passkey([]byte{1}); p != nil {
		t.Errorf("got removed passkey %+v", p)
	}
}

func TestActivateKeepsTheRotation(t *testing.T) {
	l := Lease{Status: LeaseIssuing, Expires: noon, Handle: []byte("prepared")}
	if err := l.activate(Credential{Type: "bearer", Expires: noon, Revocation: RevokedAtRotation, Rotates: noon.Add(time.Hour)}, nil); err != nil {
		t.Fatal(err)
	}
	if !l.WorksUntil().Equal(noon.Add(time.Hour)) || string(l.Handle) != "prepared" {
		t.Errorf("got lease %+v, want the rotation in an hour and the prepared handle", l)
	}
}
