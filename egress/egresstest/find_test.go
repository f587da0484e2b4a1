package egresstest

import "testing"

// The search finds a secret in every form, so that a test that finds none means something.
func TestFinderKnowsEveryForm(t *testing.T) {
	const secret = "hvs.q7Zk/M2+x9\"RtUwYbN4&cLdJ-fGs"
	f := NewFinder(secret, "eyJhbGciOiJFZERTQSJ9.eyJzdWIiOiJ4In0.c2lnbmF0dXJlLW9mLXRoZS10b2tlbg")
	for name, form := range Forms {
		if got := f.Find([]byte("before " + form(secret) + " after")); got != secret {
			t.Errorf("%s: got %q", name, got)
		}
	}
	if got := f.Find([]byte(`{"token": "********************************", "id": "eyJhbGciOiJFZERTQSJ9.eyJzdWIiOiJ4In0"}`)); got != "" {
		t.Errorf("got %q in a text without a secret", got)
	}
}
