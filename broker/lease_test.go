package broker

import (
	"errors"
	"fmt"
	"testing"
	"time"
)

func TestLeaseState(t *testing.T) {
	for _, c := range []struct {
		name string
		l    Lease
		at   time.Time
		want LeaseStatus
		live bool
	}{
		{"issuing", Lease{Status: LeaseIssuing}, noon, LeaseIssuing, true},
		{"active", Lease{Status: LeaseActive, Expires: noon.Add(1)}, noon, LeaseActive, true},
		{"expired on the instant", Lease{Status: LeaseActive, Expires: noon}, noon, LeaseExpired, false},
		{"expired, and its issuer was not told", Lease{Status: LeaseActive, Expires: noon, Revocation: RevokedImmediate}, noon, LeaseExpired, true},
		{"expired, which ends it", Lease{Status: LeaseActive, Expires: noon, Revocation: RevokedAtExpiry}, noon, LeaseExpired, false},
		{"expired, and nothing ends it", Lease{Status: LeaseActive, Expires: noon, Revocation: RevokedNever}, noon, LeaseExpired, false},
		{"revoking", Lease{Status: LeaseRevoking, EndAsked: noon}, noon, LeaseRevoking, true},
		{"stuck", Lease{Status: LeaseRevoking, EndAsked: noon, LastError: "issuer_unavailable"}, noon.Add(StuckAfter), LeaseStuck, true},
		{"taken by its upstream, and not confirmed", Lease{Status: LeaseRevoking, EndAsked: noon}, noon.Add(StuckAfter), LeaseRevoking, true},
		{"revoked", Lease{Status: LeaseRevoked}, noon, LeaseRevoked, false},
		{"failed", Lease{Status: LeaseFailed}, noon, LeaseFailed, false},
		{"abandoned", Lease{Status: LeaseAbandoned}, noon, LeaseAbandoned, false},
		{"zero", Lease{}, noon, 0, false},
	} {
		if got := c.l.State(c.at); got != c.want {
			t.Errorf("%s: State = %d, want %d", c.name, got, c.want)
		}
		if got := c.l.Live(c.at); got != c.live {
			t.Errorf("%s: Live = %t, want %t", c.name, got, c.live)
		}
	}
}

func TestLeaseDue(t *testing.T) {
	for _, c := range []struct {
		name string
		l    Lease
		want time.Time
	}{
		{"issuing: its deadline", Lease{Status: LeaseIssuing, Deadline: noon}, noon},
		{"active and revocable: its expiry", Lease{Status: LeaseActive, Expires: noon, Revocation: RevokedImmediate}, noon},
		{"active, only time ends it: never", Lease{Status: LeaseActive, Expires: noon, Revocation: RevokedAtExpiry}, time.Time{}},
		{"revoking: the next try", Lease{Status: LeaseRevoking, NextTry: noon}, noon},
		{"revoked: never", Lease{Status: LeaseRevoked, Expires: noon}, time.Time{}},
	} {
		if got := c.l.Due(); got != c.want {
			t.Errorf("%s: %s, want %s", c.name, got, c.want)
		}
	}
}

func TestActivateOnlyFromIssuing(t *testing.T) {
	for status := LeaseIssuing; status <= LeaseAbandoned; status++ {
		l := Lease{Status: status, Expires: noon}
		err := l.activate(Credential{Type: "bearer", Expires: noon.Add(-time.Minute)}, nil)
		if (err == nil) != (status == LeaseIssuing) {
			t.Errorf("activate from %d: %v", status, err)
		}
		if err == nil && !l.Expires.Equal(noon.Add(-time.Minute)) {
			t.Error("a credential that ends earlier does not shorten its lease")
		}
	}
	l := Lease{Status: LeaseIssuing, Expires: noon}
	if err := l.activate(Credential{Expires: noon.Add(time.Hour), Revocation: RevokedAtExpiry}, nil); err != nil || !l.Expires.Equal(noon) {
		t.Error("a credential lengthened its lease")
	}
	if l.Revocation != RevokedAtExpiry {
		t.Errorf("its revocation is %q, not what the upstream told", l.Revocation)
	}
}

func TestEnd(t *testing.T) {
	down := fmt.Errorf("revoking: %w", ErrIssuerUnavailable)
	for _, c := range []struct {
		name   string
		before Lease
		e      ending
		wrote  bool
		status LeaseStatus
		truth  Revocation
	}{
		{"confirmed", Lease{Status: LeaseActive, Revocation: RevokedImmediate}, ending{EndReturned, nil}, true, LeaseRevoked, RevokedImmediate},
		{"only time", Lease{Status: LeaseActive, Revocation: RevokedAtExpiry}, ending{EndReturned, ErrNotRevocable}, true, LeaseRevoked, RevokedAtExpiry},
		{"rotation", Lease{Status: LeaseActive, Revocation: RevokedAtRotation}, ending{EndReturned, ErrNotRevocable}, true, LeaseRevoked, RevokedAtRotation},
		{"never claims more than it knows", Lease{Status: LeaseActive, Revocation: RevokedImmediate}, ending{EndReturned, ErrNotRevocable}, true, LeaseRevoked, RevokedAtExpiry},
		{"upstream down", Lease{Status: LeaseActive, Revocation: RevokedImmediate}, ending{EndReturned, down}, true, LeaseRevoking, RevokedPending},
		{"down again", Lease{Status: LeaseRevoking, Revocation: RevokedPending}, ending{EndReturned, down}, true, LeaseRevoking, RevokedPending},
		{"at last", Lease{Status: LeaseRevoking, Revocation: RevokedPending}, ending{EndReturned, nil}, true, LeaseRevoked, RevokedImmediate},
		{"queued", Lease{Status: LeaseActive, Revocation: RevokedImmediate, Expires: noon.Add(time.Minute)}, ending{EndReturned, fmt.Errorf("revoking: %w", ErrQueued)}, true, LeaseRevoking, RevokedPending},
		{"queued until its time is over", Lease{Status: LeaseRevoking, Revocation: RevokedPending, Expires: noon}, ending{EndReturned, ErrQueued}, true, LeaseRevoked, RevokedAtExpiry},
		{"never existed", Lease{Status: LeaseIssuing}, ending{EndFailed, nil}, true, LeaseFailed, ""},
		{"ended before", Lease{Status: LeaseRevoked, Revocation: RevokedAtExpiry}, ending{EndRevoked, nil}, false, LeaseRevoked, RevokedAtExpiry},
		{"abandoned before", Lease{Status: LeaseAbandoned}, ending{EndRevoked, nil}, false, LeaseAbandoned, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			l := c.before
			if wrote := l.end(c.e, noon); wrote != c.wrote || l.Status != c.status || l.Revocation != c.truth {
				t.Errorf("end = %t, status %d, revocation %q; want %t, %d, %q", wrote, l.Status, l.Revocation, c.wrote, c.status, c.truth)
			}
			if errors.Is(c.e.err, ErrQueued) {
				if l.Status == LeaseRevoking && (l.LastError != "" || !l.NextTry.Equal(l.Expires)) {
					t.Errorf("a queued ending leaves %q, next at %s", l.LastError, l.NextTry)
				}
				return
			}
			if l.Status == LeaseRevoking && (l.LastError != "issuer_unavailable" || !l.NextTry.After(noon)) {
				t.Errorf("a failed try leaves %q, next at %s", l.LastError, l.NextTry)
			}
		})
	}
}

func TestEndingIsCountedFromWhenItWasDue(t *testing.T) {
	for _, how := range []string{EndExpired, EndReturned, EndRevoked} {
		l := Lease{Status: LeaseActive, Revocation: RevokedImmediate, Expires: noon}
		l.end(ending{how, nil}, noon.Add(3*time.Second))
		if !l.EndAsked.Equal(noon) {
			t.Errorf("an expired lease that is %s should have ended at %s, not %s", how, noon, l.EndAsked)
		}
	}
}

func TestBackoffGrowsAndNeverEnds(t *testing.T) {
	for n := range 1000 {
		d := backoff(n)
		if d < 750*time.Millisecond || d > 375*time.Second {
			t.Fatalf("backoff(%d) = %s", n, d)
		}
	}
}

func TestLimit(t *testing.T) {
	c := &Counter{}
	limit := Limit{Policy: "p", Count: 3, Per: time.Hour}
	for range 3 {
		if err := c.take(limit, noon); err != nil {
			t.Fatal(err)
		}
	}
	var refusal *Refusal
	if err := c.take(limit, noon.Add(59*time.Minute)); !errors.As(err, &refusal) || !errors.Is(err, ErrLimit) || refusal.Retry <= 0 {
		t.Fatalf("a fourth within the hour: %v", err)
	}
	// A slice later than an hour, at most, they no longer count.
	if err := c.take(limit, noon.Add(time.Hour+5*time.Minute)); err != nil {
		t.Fatal(err)
	}
	if len(c.Buckets) > slicesPerPeriod+1 {
		t.Errorf("%d buckets are kept", len(c.Buckets))
	}
}

// No period of the limit's length ever holds more than the limit, wherever it
// begins.
func TestLimitHoldsInEveryPeriod(t *testing.T) {
	c := &Counter{}
	limit := Limit{Policy: "p", Count: 5, Per: 10 * time.Minute}
	var taken []time.Time
	for at := noon; at.Before(noon.Add(3 * time.Hour)); at = at.Add(7 * time.Second) {
		if c.take(limit, at) == nil {
			taken = append(taken, at)
		}
	}
	for i := range taken {
		if j := i + limit.Count; j < len(taken) && taken[j].Sub(taken[i]) <= limit.Per {
			t.Fatalf("%d between %s and %s", limit.Count+1, taken[i], taken[j])
		}
	}
	if most := 5 * 18; len(taken) < most*9/12 {
		t.Errorf("only %d were taken, of %d allowed", len(taken), most)
	}
}

func TestHold(t *testing.T) {
	c := &Counter{}
	hold := func(name string, until, now time.Time) bool { return c.hold(2, name, until, now) }
	if !hold("a", noon.Add(time.Minute), noon) || !hold("b", noon.Add(2*time.Minute), noon) {
		t.Fatal("two places can't be held")
	}
	if hold("c", noon.Add(time.Minute), noon) {
		t.Fatal("three places are held")
	}
	c.release("a")
	if !hold("c", noon.Add(time.Minute), noon) {
		t.Fatal("a place that was given back can't be held")
	}
	if !hold("d", noon.Add(time.Hour), noon.Add(time.Minute)) {
		t.Fatal("a place whose time is over can't be held")
	}
}
