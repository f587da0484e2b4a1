package ui

import "testing"

// TestResult checks that every status of a lease explains what it means for the
// credential. An expired lease needs no explanation.
func TestResult(t *testing.T) {
	for _, revocation := range []string{"immediate", "at_expiry", "at_rotation", "never"} {
		texts := map[string]bool{}
		for _, status := range []string{"active", "revoked", "failed", "abandoned"} {
			texts[result(status, revocation)] = true
		}
		if len(texts) != 4 || texts[""] {
			t.Errorf("%s: %v", revocation, texts)
		}
	}
	if result("revoking", "pending") == "" || result("expired", "immediate") != "" {
		t.Errorf("%q, %q", result("revoking", "pending"), result("expired", "immediate"))
	}
}
