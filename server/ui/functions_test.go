package ui

import "testing"

// Every state of a lease says what it means for the credential; one that time
// has ended needs no words.
func TestFate(t *testing.T) {
	for _, revocation := range []string{"immediate", "at_expiry", "at_rotation", "never"} {
		said := map[string]bool{}
		for _, status := range []string{"active", "revoked", "failed", "abandoned"} {
			said[fate(status, revocation)] = true
		}
		if len(said) != 4 || said[""] {
			t.Errorf("%s: %v", revocation, said)
		}
	}
	if fate("revoking", "pending") == "" || fate("expired", "immediate") != "" {
		t.Errorf("%q, %q", fate("revoking", "pending"), fate("expired", "immediate"))
	}
}
