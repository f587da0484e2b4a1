package supplier_test

import (
	"errors"
	"strings"
	"testing"
	"time"

	"accessbroker.internal/audit"
	"accessbroker.internal/broker"
)

// Everything of a supplier ends exactly with its contract, and no one has to act.
func TestAccessEndsWithTheContract(t *testing.T) {
	w := newWorld(t, files{})
	before := ends.Add(-time.Hour)
	issued, _, err := w.get(job(before), "tickets", 20*time.Hour, before)
	if err != nil {
		t.Fatal(err)
	}
	if !issued.Lease.Expires.Equal(ends) {
		t.Errorf("the lease expires at %v, want the end of the contract, %v", issued.Lease.Expires, ends)
	}
	if _, _, err := w.get(job(ends), "tickets", 0, ends.Add(-time.Second)); err != nil {
		t.Errorf("a second before the end: %v", err)
	}
	for _, now := range []time.Time{ends, ends.Add(time.Hour)} {
		if _, _, err := w.get(job(now), "tickets", 0, now); !errors.Is(err, broker.ErrDenied) && !errors.Is(err, broker.ErrFactEnded) {
			t.Errorf("at %v: got error %v, want a refusal because of the contract", now, err)
		}
		if _, err := w.broker.Collect(t.Context(), broker.Self(job(now), now), issued.Lease.Request, broker.IdempotencyKey{}); err == nil {
			t.Errorf("at %v: the grant is still collectable", now)
		}
	}
	w.end(t, ends)
	if n := w.upstream.working(ends.Add(-time.Millisecond)); n != 0 {
		t.Errorf("%d credentials work at the upstream after the end", n)
	}
	if n := w.count(t, audit.FactEnded); n != 1 {
		t.Errorf("got %d records of an ended fact, want 1", n)
	}
}

// A supplier that suppliers.yaml no longer has, or whose contract it cuts, loses its access
// with the reload; also if the broker was down when the file changed.
func TestAccessEndsWithTheFile(t *testing.T) {
	for name, test := range map[string]files{
		"removed": {suppliers: "{}", cedar: `@id("domain") permit (principal in TrustDomain::"supplier.test", action == Action::"request", resource);`},
		"cut":     {suppliers: strings.Replace(suppliersFile, "2026-10-31", "2026-09-30", 1)},
	} {
		for _, down := range []bool{false, true} {
			t.Run(name, func(t *testing.T) {
				w := newWorld(t, files{})
				if _, _, err := w.get(job(noon), "tickets", 0, noon); err != nil {
					t.Fatal(err)
				}
				if down {
					w.rules = test.rules(t)
					w.restart(t)
				} else {
					w.adopt(t, test, noon)
				}
				w.end(t, noon)
				if n := w.upstream.working(noon); n != 0 {
					t.Errorf("%d credentials still work", n)
				}
				if _, _, err := w.get(job(noon), "tickets", 0, noon); err == nil {
					t.Error("a new request is granted")
				}
				// A contract that begins again revives nothing that was granted before.
				w.adopt(t, files{}, noon.Add(time.Minute))
				w.end(t, noon.Add(time.Minute))
				if _, _, err := w.get(job(noon), "tickets", 0, noon.Add(time.Minute)); err != nil {
					t.Errorf("after the contract began again: %v", err)
				}
			})
		}
	}
}

func TestCeilingHoldsAgainstEveryPolicy(t *testing.T) {
	w := newWorld(t, files{cedar: `@id("all") permit (principal in TrustDomain::"supplier.test", action == Action::"request", resource);`})
	if _, _, err := w.get(job(noon), "tickets", 0, noon); err != nil {
		t.Fatal(err)
	}
	_, _, err := w.get(job(noon), "secret", 0, noon)
	var refusal *broker.Refusal
	if !errors.As(err, &refusal) || !errors.Is(err, broker.ErrDenied) || !strings.Contains(strings.Join(refusal.Reasons, " "), "ceiling") {
		t.Errorf("got %v, want a denial by the ceiling", err)
	}
	// A ceiling that is lowered ends what is above it at the next collection.
	w.adopt(t, files{suppliers: strings.Replace(suppliersFile, "[db, tickets]", "[db]", 1)}, noon)
	if _, _, err := w.get(job(noon), "tickets", 0, noon); !errors.Is(err, broker.ErrDenied) {
		t.Errorf("got %v, want a denial", err)
	}
}

func TestExtension(t *testing.T) {
	w := newWorld(t, files{})
	until := ends.Add(20 * 24 * time.Hour)
	ask := func(who string) (*broker.Extension, error) {
		return w.suppliers.AskExtension(t.Context(), by(who, noon), "acme-data", until, "the migration takes longer")
	}
	if _, err := ask("login/ben"); !errors.Is(err, broker.ErrNotApprover) {
		t.Errorf("someone who is not the sponsor: %v", err)
	}
	x, err := ask("login/ana")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := ask("login/ava"); !errors.Is(err, broker.ErrAlreadyVoted) {
		t.Errorf("a second extension: %v", err)
	}
	decide := func(who string, now time.Time) error {
		_, err := w.suppliers.DecideExtension(t.Context(), by(who, now), "acme-data", x.ID, true, "")
		return err
	}
	for who, want := range map[string]error{"login/ana": broker.ErrOwnRequest, "acme/kim": broker.ErrOwnRequest, "login/ben": broker.ErrNotApprover} {
		if err := decide(who, noon); !errors.Is(err, want) {
			t.Errorf("%s approves: got %v, want %v", who, err, want)
		}
	}
	if _, _, err := w.get(job(ends), "tickets", 0, ends); err == nil {
		t.Error("an extension that no one approved is in force")
	}
	if err := decide("login/ava", noon); err != nil {
		t.Fatal(err)
	}
	if err := decide("login/ava", noon); !errors.Is(err, broker.ErrNotPending) {
		t.Errorf("a second decision: %v", err)
	}
	issued, _, err := w.get(job(ends), "tickets", 20*time.Hour, ends)
	if err != nil {
		t.Fatalf("at the old end: %v", err)
	}
	if want := ends.Add(20 * time.Hour); !issued.Lease.Expires.Equal(want) {
		t.Errorf("the lease expires at %v, want %v", issued.Lease.Expires, want)
	}
	w.restart(t)
	if _, _, err := w.get(job(ends), "tickets", 0, ends); err != nil {
		t.Errorf("after a restart: %v", err)
	}
	if _, _, err := w.get(job(until), "tickets", 0, until); err == nil {
		t.Error("the extension has no end")
	}
	// Once suppliers.yaml has another end, whether later or sooner, it decides.
	w.adopt(t, files{suppliers: strings.Replace(suppliersFile, "2026-10-31", "2026-11-01", 1)}, noon)
	if now := ends.Add(25 * time.Hour); true {
		if _, _, err := w.get(job(now), "tickets", 0, now); err == nil {
			t.Error("the extension holds although suppliers.yaml has another end")
		}
	}
}

func TestExtensionForms(t *testing.T) {
	w := newWorld(t, files{})
	for name, test := range map[string]struct {
		until  time.Time
		reason string
		want   error
	}{
		"no reason":              {ends.Add(time.Hour), " ", broker.ErrJustificationRequired},
		"not later":              {ends, "why", broker.ErrInvalidTTL},
		"too late":               {ends.Add(91 * 24 * time.Hour), "why", broker.ErrInvalidTTL},
		"a fraction of a second": {ends.Add(time.Hour + time.Millisecond), "why", broker.ErrInvalidTTL},
		"control characters":     {ends.Add(time.Hour), "why\x1b[2J", broker.ErrInvalidRequest},
	} {
		if _, err := w.suppliers.AskExtension(t.Context(), by("login/ana", noon), "acme-data", test.until, test.reason); !errors.Is(err, test.want) {
			t.Errorf("%s: got %v, want %v", name, err, test.want)
		}
	}
	if _, err := w.suppliers.AskExtension(t.Context(), by("login/ana", noon), "acme", ends.Add(time.Hour), "why"); !errors.Is(err, broker.ErrNotFound) {
		t.Errorf("another supplier: %v", err)
	}
	x, err := w.suppliers.AskExtension(t.Context(), by("login/ana", noon), "acme-data", ends.Add(time.Hour), "why")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.suppliers.DecideExtension(t.Context(), by("login/ava", noon), "acme-data", x.ID, false, ""); !errors.Is(err, broker.ErrCommentRequired) {
		t.Errorf("a denial without a comment: %v", err)
	}
	if x, err := w.suppliers.DecideExtension(t.Context(), by("login/ava", noon), "acme-data", x.ID, false, "use the new supplier"); err != nil || x.Decision != broker.ExtensionDenied {
		t.Errorf("a denial: %+v, %v", x, err)
	}
	if _, _, err := w.get(job(ends), "tickets", 0, ends); err == nil {
		t.Error("a denied extension is in force")
	}
}

// An extension that races the end of the contract loses if the end came first, and then
// revives nothing.
func TestExtensionRacesTheEnd(t *testing.T) {
	for name, test := range map[string]struct {
		at   time.Duration // of the approval, relative to the end
		wins bool
	}{"just before": {-time.Second, true}, "exactly at the end": {0, false}, "just after": {time.Second, false}} {
		for _, ended := range []bool{false, true} {
			t.Run(name, func(t *testing.T) {
				w := newWorld(t, files{})
				before := ends.Add(-time.Hour)
				if _, _, err := w.get(job(before), "tickets", 20*time.Hour, before); err != nil {
					t.Fatal(err)
				}
				x, err := w.suppliers.AskExtension(t.Context(), by("login/ana", before), "acme-data", ends.Add(48*time.Hour), "why")
				if err != nil {
					t.Fatal(err)
				}
				now := ends.Add(test.at)
				if ended && !test.wins {
					w.end(t, ends)
				}
				_, err = w.suppliers.DecideExtension(t.Context(), by("login/ava", now), "acme-data", x.ID, true, "")
				if test.wins != (err == nil) || !test.wins && !errors.Is(err, broker.ErrFactEnded) {
					t.Errorf("got error %v, want a success: %v", err, test.wins)
				}
				w.end(t, ends.Add(time.Minute))
				later := ends.Add(2 * time.Minute)
				if _, _, err := w.get(job(later), "tickets", 0, later); (err == nil) != test.wins {
					t.Errorf("a new request after the end: %v, want a success: %v", err, test.wins)
				}
				s, err := w.broker.Facts.Standing(t.Context(), broker.SupplierKey("acme-data"))
				if err != nil || s.Ended.IsZero() != test.wins {
					t.Errorf("got a standing that ended at %v, %v", s.Ended, err)
				}
			})
		}
	}
}

// The sponsor is notified 30, 7 and 1 days before the end, each time once, whatever restarts
// and repeats there are; and again if the end moves.
func TestSponsorIsNotified(t *testing.T) {
	w := newWorld(t, files{})
	day := 24 * time.Hour
	pass := func(now time.Time) {
		t.Helper()
		for range 3 {
			if err := w.suppliers.Pass(t.Context(), now); err != nil {
				t.Fatal(err)
			}
			w.restart(t)
		}
	}
	for _, step := range []struct {
		before time.Duration
		want   int
	}{{31 * day, 0}, {30 * day, 1}, {10 * day, 1}, {7 * day, 2}, {25 * time.Hour, 2}, {day, 3}, {time.Hour, 3}, {0, 3}, {-day, 3}} {
		pass(ends.Add(-step.before))
		if got := w.notices(t); got != step.want || w.count(t, audit.SupplierEnding) != step.want {
			t.Errorf("%v before the end: got %d notices and %d records, want %d", step.before, got, w.count(t, audit.SupplierEnding), step.want)
		}
	}
	w.adopt(t, files{suppliers: strings.Replace(suppliersFile, "2026-10-31", "2026-11-08", 1)}, ends.Add(-2*day))
	pass(ends.Add(-2 * day)) // ten days before the new end: the notice of 30 days
	if got := w.notices(t); got != 4 {
		t.Errorf("after the end moved: got %d notices, want 4", got)
	}
}

// After a long time without the broker, only the latest notice is sent.
func TestOnlyTheLatestNoticeIsSent(t *testing.T) {
	w := newWorld(t, files{})
	if err := w.suppliers.Pass(t.Context(), ends.Add(-time.Hour)); err != nil {
		t.Fatal(err)
	}
	if got := w.notices(t); got != 1 {
		t.Errorf("got %d notices, want 1", got)
	}
}

// notices returns the number of notices about the ends of contracts.
func (w *world) notices(t *testing.T) (n int) {
	t.Helper()
	err := w.store.View(t.Context(), func(tx broker.Tx) error {
		list, err := tx.Notices(broker.NoticeQuery{Channel: "hook:procurement", Now: ends.AddDate(1, 0, 0), Limit: 100})
		for _, notice := range list {
			if notice.Event == broker.NoticeContractEnds {
				n++
			}
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// A contractor has an internal account as well. The end of the contract ends what the
// contractor has by either.
func TestContractEndsLinkedAccounts(t *testing.T) {
	f := files{
		aliases: [][]string{{"acme/kim", "login/kim"}},
		cedar:   `@id("people") permit (principal is Person, action == Action::"request", resource == Entitlement::"tickets");`,
	}
	w := newWorld(t, f)
	before := ends.Add(-time.Minute)
	issued, _, err := w.get(person("login/kim", before), "tickets", 0, before)
	if err != nil || issued.Lease.Expires.After(ends) {
		t.Fatalf("before the end: got %+v, %v, want a lease until %v at most", issued, err, ends)
	}
	w.end(t, ends)
	if _, _, err := w.get(person("login/kim", ends), "tickets", 0, ends); !errors.Is(err, broker.ErrFactEnded) {
		t.Errorf("after the end: got %v", err)
	}
	if _, _, err := w.get(person("login/lea", ends), "tickets", 0, ends); err != nil {
		t.Errorf("someone else: %v", err)
	}
}
