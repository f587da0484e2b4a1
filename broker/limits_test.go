package broker

import (
	"errors"
	"testing"
	"time"
)

// The store deletes a counter once it has expired, so a counter must not expire
// before the last entry that counts.
func TestCounterLastsAsLongAsItsEntries(t *testing.T) {
	limit := Limit{Count: 2, Per: 12 * time.Minute} // buckets of one minute
	var c Counter
	for range 2 {
		if err := c.take(limit, noon.Add(15*time.Second)); err != nil {
			t.Fatal(err)
		}
	}
	if want := noon.Add(15*time.Second + 13*time.Minute); !c.Expires.Equal(want) {
		t.Errorf("got expiry %s, want %s", c.Expires, want)
	}
	var refusal *Refusal
	if err := c.take(limit, noon.Add(30*time.Second)); !errors.As(err, &refusal) || refusal.Retry != 30*time.Second {
		t.Errorf("got %+v, want a retry at the end of the bucket, after 30s", err)
	}
	if err := c.take(limit, noon.Add(12*time.Minute)); !errors.Is(err, ErrLimit) {
		t.Errorf("after the period: got %v, want %v: the bucket is not over", err, ErrLimit)
	}
	if err := c.take(limit, noon.Add(13*time.Minute)); err != nil {
		t.Errorf("after the period and a bucket: got %v", err)
	}
	if len(c.Buckets) != 1 {
		t.Errorf("got %d buckets, want only the current one", len(c.Buckets))
	}
}

func TestCounterOfActiveEntries(t *testing.T) {
	var c Counter
	hold := func(name string, until, now time.Time, want bool) {
		t.Helper()
		if got := c.hold(2, name, until, now); got != want {
			t.Errorf("%s: got %t, want %t", name, got, want)
		}
	}
	hold("long", noon.Add(time.Hour), noon, true)
	hold("short", noon.Add(time.Minute), noon, true)
	if want := noon.Add(time.Hour); !c.Expires.Equal(want) {
		t.Errorf("got expiry %s, want %s", c.Expires, want)
	}
	hold("third", noon.Add(time.Hour), noon.Add(time.Minute-1), false)
	hold("third", noon.Add(2*time.Hour), noon.Add(time.Minute), true) // the short one is over
	if want := noon.Add(2 * time.Hour); !c.Expires.Equal(want) {
		t.Errorf("got expiry %s, want %s", c.Expires, want)
	}
	c.release("long")
	hold("fourth", noon.Add(time.Hour), noon.Add(time.Minute), true)
}

// A returned credential that works until it expires can be denied once, and only
// by a revocation.
func TestEndOfOutlivingLease(t *testing.T) {
	returned := Lease{Status: LeaseRevoked, Revocation: RevokedAtExpiry, EndHow: EndReturned, EndAsked: noon.Add(-time.Second), Ended: noon.Add(-time.Second), Handle: []byte("h"), Expires: noon.Add(time.Minute)}
	for name, test := range map[string]struct {
		change func(*Lease)
		a      endAttempt
		want   bool
	}{
		"a revocation":               {func(*Lease) {}, endAttempt{how: EndRevoked, outcome: outcomeUntried}, true},
		"a queued revocation":        {func(*Lease) {}, endAttempt{how: EndRevoked, outcome: outcomeQueued}, true},
		"a confirmed revocation":     {func(*Lease) {}, endAttempt{how: EndRevoked, outcome: outcomeConfirmed}, false},
		"returned again":             {func(*Lease) {}, endAttempt{how: EndReturned, outcome: outcomeUntried}, false},
		"without a handle":           {func(l *Lease) { l.Handle = nil }, endAttempt{how: EndRevoked, outcome: outcomeUntried}, false},
		"an empty handle":            {func(l *Lease) { l.Handle = []byte{} }, endAttempt{how: EndRevoked, outcome: outcomeUntried}, false},
		"revoked before":             {func(l *Lease) { l.EndHow = EndRevoked }, endAttempt{how: EndRevoked, outcome: outcomeUntried}, false},
		"expired":                    {func(l *Lease) { l.Expires = noon }, endAttempt{how: EndRevoked, outcome: outcomeUntried}, false},
		"ended by its issuer":        {func(l *Lease) { l.Revocation = RevokedImmediate }, endAttempt{how: EndRevoked, outcome: outcomeUntried}, false},
		"a lease that never existed": {func(l *Lease) { l.Status = LeaseFailed }, endAttempt{how: EndRevoked, outcome: outcomeUntried}, false},
	} {
		l := returned
		test.change(&l)
		before := l
		if got := l.end(test.a, noon); got != test.want {
			t.Errorf("%s: got %t, want %t", name, got, test.want)
		}
		if test.want && (l.Status != LeaseRevoking || l.EndHow != EndRevoked || !l.EndAsked.Equal(noon) || !l.Ended.IsZero()) {
			t.Errorf("%s: got %+v", name, l)
		}
		if !test.want && (l.Status != before.Status || l.EndHow != before.EndHow || !l.EndAsked.Equal(before.EndAsked)) {
			t.Errorf("%s: the lease changed to %+v", name, l)
		}
	}
}
