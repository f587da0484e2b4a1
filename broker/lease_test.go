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
		{"expired, and its issuer was not called", Lease{Status: LeaseActive, Expires: noon, Revocation: RevokedImmediate}, noon, LeaseExpired, true},
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
			t.Errorf("activate from status %d: got %v", status, err)
		}
		if err == nil && !l.Expires.Equal(noon.Add(-time.Minute)) {
			t.Error("a credential that expires earlier does not shorten its lease")
		}
	}
	l := Lease{Status: LeaseIssuing, Expires: noon}
	if err := l.activate(Credential{Expires: noon.Add(time.Hour), Revocation: RevokedAtExpiry}, nil); err != nil || !l.Expires.Equal(noon) {
		t.Error("a credential extended its lease")
	}
	if l.Revocation != RevokedAtExpiry {
		t.Errorf("got revocation %q, want the upstream's", l.Revocation)
	}
}

func TestEnd(t *testing.T) {
	down := fmt.Errorf("revoking: %w", ErrIssuerUnavailable)
	for _, c := range []struct {
		name   string
		before Lease
		a      endAttempt
		wrote  bool
		status LeaseStatus
		truth  Revocation
	}{
		{"confirmed", Lease{Status: LeaseActive, Revocation: RevokedImmediate}, attempt(EndReturned, nil), true, LeaseRevoked, RevokedImmediate},
		{"only time", Lease{Status: LeaseActive, Revocation: RevokedAtExpiry}, attempt(EndReturned, ErrNotRevocable), true, LeaseRevoked, RevokedAtExpiry},
		{"rotation", Lease{Status: LeaseActive, Revocation: RevokedAtRotation}, attempt(EndReturned, ErrNotRevocable), true, LeaseRevoked, RevokedAtRotation},
		{"never claims more than it knows", Lease{Status: LeaseActive, Revocation: RevokedImmediate}, attempt(EndReturned, ErrNotRevocable), true, LeaseRevoked, RevokedAtExpiry},
		{"upstream down", Lease{Status: LeaseActive, Revocation: RevokedImmediate}, attempt(EndReturned, down), true, LeaseRevoking, RevokedPending},
		{"down again", Lease{Status: LeaseRevoking, Revocation: RevokedPending}, attempt(EndReturned, down), true, LeaseRevoking, RevokedPending},
		{"at last", Lease{Status: LeaseRevoking, Revocation: RevokedPending}, attempt(EndReturned, nil), true, LeaseRevoked, RevokedImmediate},
		{"queued", Lease{Status: LeaseActive, Revocation: RevokedImmediate, Expires: noon.Add(time.Minute)}, attempt(EndReturned, fmt.Errorf("revoking: %w", ErrQueued)), true, LeaseRevoking, RevokedPending},
		{"queued until its time is over", Lease{Status: LeaseRevoking, Revocation: RevokedPending, Expires: noon}, attempt(EndReturned, ErrQueued), true, LeaseRevoked, RevokedAtExpiry},
		{"never existed", Lease{Status: LeaseIssuing}, attempt(EndFailed, nil), true, LeaseFailed, ""},
		{"ended before", Lease{Status: LeaseRevoked, Revocation: RevokedAtExpiry}, attempt(EndRevoked, nil), false, LeaseRevoked, RevokedAtExpiry},
		{"abandoned before", Lease{Status: LeaseAbandoned}, attempt(EndRevoked, nil), false, LeaseAbandoned, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			l := c.before
			if wrote := l.end(c.a, noon); wrote != c.wrote || l.Status != c.status || l.Revocation != c.truth {
				t.Errorf("got %t, status %d, revocation %q, want %t, %d, %q", wrote, l.Status, l.Revocation, c.wrote, c.status, c.truth)
			}
			if c.a.outcome == outcomeQueued {
				if l.Status == LeaseRevoking && (l.LastError != "" || !l.NextTry.Equal(l.Expires)) {
					t.Errorf("queued: got last error %q, next try at %s", l.LastError, l.NextTry)
				}
				return
			}
			if l.Status == LeaseRevoking && (l.LastError != "issuer_unavailable" || !l.NextTry.After(noon)) {
				t.Errorf("failed: got last error %q, next try at %s", l.LastError, l.NextTry)
			}
		})
	}
}

// TestTransitions compares the state machine with its specification: the outcome,
// before or after expiry, and the resulting lease.
func TestTransitions(t *testing.T) {
	const code = "issuer_unavailable"
	before, after := noon.Add(time.Minute), noon
	for _, c := range []struct {
		name       string
		a          endAttempt
		expires    time.Time
		status     LeaseStatus
		revocation Revocation
		nextTry    time.Time // zero: never; for outcomeFailed, only whether it is set
		handle     bool
		lastError  string
	}{
		{"untried before expiry", endAttempt{how: EndRevoked, outcome: outcomeUntried}, before, LeaseRevoking, RevokedPending, noon, true, ""},
		{"untried after expiry", endAttempt{how: EndRevoked, outcome: outcomeUntried}, after, LeaseRevoking, RevokedPending, noon, true, ""},
		{"confirmed before expiry", attempt(EndRevoked, nil), before, LeaseRevoked, RevokedImmediate, time.Time{}, false, ""},
		{"confirmed after expiry", attempt(EndRevoked, nil), after, LeaseRevoked, RevokedImmediate, time.Time{}, false, ""},
		{"queued before expiry", attempt(EndRevoked, ErrQueued), before, LeaseRevoking, RevokedPending, before, true, ""},
		{"queued after expiry", attempt(EndRevoked, ErrQueued), after, LeaseRevoked, RevokedAtExpiry, time.Time{}, false, ""},
		{"time only before expiry", attempt(EndRevoked, ErrNotRevocable), before, LeaseRevoked, RevokedAtExpiry, time.Time{}, true, ""},
		{"time only after expiry", attempt(EndRevoked, ErrNotRevocable), after, LeaseRevoked, RevokedAtExpiry, time.Time{}, true, ""},
		{"failed before expiry", attempt(EndRevoked, ErrIssuerUnavailable), before, LeaseRevoking, RevokedPending, noon, true, code},
		{"failed after expiry", attempt(EndRevoked, ErrIssuerUnavailable), after, LeaseRevoking, RevokedPending, noon, true, code},
	} {
		t.Run(c.name, func(t *testing.T) {
			l := Lease{Status: LeaseActive, Revocation: RevokedImmediate, Handle: []byte("handle"), Expires: c.expires}
			if !l.end(c.a, noon) {
				t.Fatal("the attempt changed nothing")
			}
			if l.Status != c.status || l.Revocation != c.revocation || (l.Handle != nil) != c.handle || l.LastError != c.lastError {
				t.Errorf("got status %d, revocation %q, handle %q, error %q", l.Status, l.Revocation, l.Handle, l.LastError)
			}
			if failed := c.a.outcome == outcomeFailed; failed && !l.NextTry.After(noon) || !failed && !l.NextTry.Equal(c.nextTry) {
				t.Errorf("got the next call at %s, want %s", l.NextTry, c.nextTry)
			}
			if ended := l.Status == LeaseRevoked; ended != l.Ended.Equal(noon) {
				t.Errorf("got ended at %s with status %d", l.Ended, l.Status)
			}
			if wantAttempts := map[bool]int{true: 1}[c.a.outcome == outcomeFailed]; l.Attempts != wantAttempts {
				t.Errorf("got %d failed attempts, want %d", l.Attempts, wantAttempts)
			}
		})
	}
}

func TestRevocationLagStartsWhenDue(t *testing.T) {
	for _, how := range []string{EndExpired, EndReturned, EndRevoked} {
		l := Lease{Status: LeaseActive, Revocation: RevokedImmediate, Expires: noon}
		l.end(attempt(how, nil), noon.Add(3*time.Second))
		if !l.EndAsked.Equal(noon) {
			t.Errorf("an expired lease that is %s should have ended at %s, not %s", how, noon, l.EndAsked)
		}
	}
}

func TestBackoffGrowsToAMaximum(t *testing.T) {
	for n := range 1000 {
		d := Backoff(n)
		if d < 750*time.Millisecond || d > 375*time.Second {
			t.Fatalf("Backoff(%d) = %s", n, d)
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
		t.Fatalf("fourth within the hour: %v", err)
	}
	// They stop counting at most one bucket after the hour.
	if err := c.take(limit, noon.Add(time.Hour+5*time.Minute)); err != nil {
		t.Fatal(err)
	}
	if len(c.Buckets) > bucketsPerPeriod+1 {
		t.Errorf("%d buckets are kept", len(c.Buckets))
	}
}

// No period of the limit's length contains more uses than the limit.
func TestLimitInEveryPeriod(t *testing.T) {
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
		t.Errorf("got %d uses, want %d", len(taken), most)
	}
}

func TestHold(t *testing.T) {
	c := &Counter{}
	hold := func(name string, until, now time.Time) bool { return c.hold(2, name, until, now) }
	if !hold("a", noon.Add(time.Minute), noon) || !hold("b", noon.Add(2*time.Minute), noon) {
		t.Fatal("two places cannot be taken")
	}
	if hold("c", noon.Add(time.Minute), noon) {
		t.Fatal("three places were taken")
	}
	c.release("a")
	if !hold("c", noon.Add(time.Minute), noon) {
		t.Fatal("a released place cannot be taken")
	}
	if !hold("d", noon.Add(time.Hour), noon.Add(time.Minute)) {
		t.Fatal("an expired place cannot be taken")
	}
}
