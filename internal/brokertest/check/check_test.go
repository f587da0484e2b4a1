package check_test

import (
	"fmt"
	"io"
	"strings"
	"testing"
	"time"

	"accessbroker.internal/broker"
	"accessbroker.internal/internal/brokertest"
	"accessbroker.internal/internal/brokertest/check"
)

// A recorder keeps failures instead of failing the test.
type recorder struct {
	testing.TB
	failures []string
}

func (r *recorder) Helper()           {}
func (r *recorder) Error(args ...any) { r.failures = append(r.failures, fmt.Sprint(args...)) }
func (r *recorder) Errorf(f string, args ...any) {
	r.failures = append(r.failures, fmt.Sprintf(f, args...))
}

func TestCheckFails(t *testing.T) {
	w := brokertest.NewWorld(t)
	s, err := w.Open(io.Discard, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	now := time.Now()
	forged := &broker.Lease{
		ID: broker.NewLeaseID(now), Status: broker.LeaseActive, Revocation: broker.RevokedAtExpiry, Holder: "spiffe://acme.test/a",
		Issuer: "tickets", Entitlement: "tickets-api", Opened: now, Expires: now.Add(time.Hour),
	}
	w.Forge(s.Store(), forged)
	jwt := "eyJhbGciOiJFUzI1NiJ9.eyJzdWIiOiJhZ2VudCJ9.c2lnbmF0dXJl"
	for name, test := range map[string]struct {
		check func(testing.TB)
		want  string // "" for no failure
	}{
		"lease without record": {func(tb testing.TB) { check.Store(tb, s.Store(), check.Options{Key: s.LogKey()}) }, "has no record"},
		"excepted lease":       {func(tb testing.TB) { check.Store(tb, s.Store(), check.Options{Except: []broker.LeaseID{forged.ID}}) }, ""},
		"another log's key":    {func(tb testing.TB) { check.Store(tb, s.Store(), check.Options{Key: "other+00000000+AAAA"}) }, "does not verify"},
		"secret in a line":     {func(tb testing.TB) { check.Secrets(tb, "a line with sesame in it", []string{"", "sesame"}) }, "contains a secret"},
		"no secret":            {func(tb testing.TB) { check.Secrets(tb, "a line", []string{"", "sesame"}) }, ""},
		"token in a line":      {func(tb testing.TB) { check.Tokens(tb, "token="+jwt) }, "contains a token"},
		"no token":             {func(tb testing.TB) { check.Tokens(tb, "eyJ is not a token") }, ""},
	} {
		r := &recorder{TB: t}
		test.check(r)
		got := strings.Join(r.failures, "\n")
		if (got == "") != (test.want == "") || !strings.Contains(got, test.want) {
			t.Errorf("%s: got failures %q, want %q", name, got, test.want)
		}
	}
}
