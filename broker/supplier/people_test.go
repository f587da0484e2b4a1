package supplier_test

import (
	"errors"
	"testing"
	"time"

	"accessbroker.internal/broker"
)

// A contractor's access ends with the end in people.yaml, exactly.
func TestPersonEndsByFile(t *testing.T) {
	w := newWorld(t, files{people: "login/kim: {ends: 2026-10-02T12:00:00Z, sponsor: procurement}\n",
		cedar: `@id("people") permit (principal is Person, action == Action::"request", resource);`})
	over := noon.Add(24 * time.Hour)
	issued, _, err := w.get(person("login/kim", over.Add(-time.Minute)), "tickets", 20*time.Hour, over.Add(-time.Minute))
	if err != nil || !issued.Lease.Expires.Equal(over) {
		t.Fatalf("got %+v, %v, want a credential until %v", issued, err, over)
	}
	if _, _, err := w.get(person("login/kim", over), "tickets", 0, over); err == nil {
		t.Error("a request at the end is granted")
	}
	w.end(t, over)
	if n := w.upstream.working(over.Add(-time.Second)); n != 0 {
		t.Errorf("%d credentials still work", n)
	}
	// An end that is moved into the past ends at once.
	if _, _, err := w.get(person("login/lea", noon), "tickets", time.Hour, noon); err != nil {
		t.Fatal(err)
	}
	w.adopt(t, files{people: "login/lea: {ends: 2026-09-30}\n", cedar: `@id("people") permit (principal is Person, action == Action::"request", resource);`}, noon)
	w.end(t, noon)
	if n := w.upstream.working(noon); n != 0 {
		t.Errorf("%d credentials of lea still work", n)
	}
}

// Nothing more is issued to an agent once everyone accountable for it has left, until a
// successor is named. What it has runs on.
func TestOrphans(t *testing.T) {
	agents := func(people ...string) []broker.WorkloadLabels {
		return []broker.WorkloadLabels{
			{Under: "spiffe://acme.test/agent", Kind: broker.KindAgent, Accountable: people},
			{Under: "spiffe://acme.test/batch", Kind: broker.KindWorkload, Accountable: people},
		}
	}
	grace := map[broker.Kind]time.Duration{broker.KindWorkload: 72 * time.Hour}
	batch := `@id("batch") permit (principal in Path::"spiffe://acme.test/batch", action == Action::"request", resource);`
	f := files{labels: agents("login/oto", "login/pia"), grace: grace, cedar: cedar + batch}
	w := newWorld(t, f)
	left := noon.Add(time.Hour)
	leave := func(id string) {
		t.Helper()
		err := w.broker.Facts.Report(t.Context(), broker.Caller{At: left}, broker.StandingKey{Kind: broker.FactPerson, Name: id},
			broker.Fact{Source: "scim:corp", State: broker.FactEnded, Cause: "account_disabled"})
		if err != nil {
			t.Fatal(err)
		}
		w.end(t, left)
	}
	issued, _, err := w.get(agent(noon), "tickets", 5*time.Hour, noon)
	if err != nil {
		t.Fatal(err)
	}
	leave("login/oto")
	if _, _, err := w.get(agent(left), "tickets", 0, left); err != nil {
		t.Errorf("with one accountable person left: %v", err)
	}
	leave("login/pia")
	if _, _, err := w.get(agent(left), "tickets", 0, left); !errors.Is(err, broker.ErrFactEnded) {
		t.Errorf("an orphan: got %v, want %v", err, broker.ErrFactEnded)
	}
	if _, err := w.broker.Collect(t.Context(), broker.Self(agent(left), left), issued.Lease.Request, broker.IdempotencyKey{}); !errors.Is(err, broker.ErrFactEnded) {
		t.Errorf("an orphan collects: %v", err)
	}
	if w.upstream.working(left) == 0 {
		t.Error("what the orphan had was ended")
	}
	job := func(now time.Time) broker.Identity { return workload("spiffe://acme.test/batch/night", now) }
	end := left.Add(72 * time.Hour)
	if _, _, err := w.get(job(end), "tickets", 0, end.Add(-time.Second)); err != nil {
		t.Errorf("a workload within the grace: %v", err)
	}
	if _, _, err := w.get(job(end), "tickets", 0, end); !errors.Is(err, broker.ErrFactEnded) {
		t.Errorf("a workload at the end of the grace: %v", err)
	}
	f.labels = agents("login/oto", "login/rio")
	w.adopt(t, f, left)
	if _, _, err := w.get(agent(left), "tickets", 0, left); err != nil {
		t.Errorf("with a successor: %v", err)
	}
}

// The approval of a person who has left covers no new collection.
func TestApprovalsOfPeopleWhoLeft(t *testing.T) {
	w := newWorld(t, files{})
	leave := func(id string, now time.Time) {
		t.Helper()
		err := w.broker.Facts.Report(t.Context(), broker.Caller{At: now}, broker.StandingKey{Kind: broker.FactPerson, Name: id},
			broker.Fact{Source: "scim:corp", State: broker.FactEnded, Cause: "account_disabled"})
		if err != nil {
			t.Fatal(err)
		}
		w.end(t, now)
	}
	kim := person("login/kim", noon)
	_, r, err := w.get(kim, "tickets", 0, noon)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.broker.Vote(t.Context(), by("login/dan", noon), r.ID, broker.Vote{Approve: true, Digest: r.Digest}); err != nil {
		t.Fatal(err)
	}
	if _, err := w.broker.Collect(t.Context(), broker.Self(kim, noon), r.ID, broker.IdempotencyKey{}); err != nil {
		t.Fatal(err)
	}
	leave("login/dan", noon)
	if _, err := w.broker.Collect(t.Context(), broker.Self(kim, noon), r.ID, broker.IdempotencyKey{}); !errors.Is(err, broker.ErrNeedsNewRequest) {
		t.Errorf("got %v, want %v", err, broker.ErrNeedsNewRequest)
	}
	leave("login/ben", noon)
	if _, _, err := w.get(person("login/lea", noon), "tickets", 0, noon); !errors.Is(err, broker.ErrNobodyCanApprove) {
		t.Errorf("a request that only people who left could approve: %v", err)
	}
}

// An approval from before an end counts no more when the person is back: someone else may have
// given it with a stolen account.
func TestApprovalsDoNotRevive(t *testing.T) {
	w := newWorld(t, files{})
	state := func(f broker.Fact, now time.Time) {
		t.Helper()
		f.Source = "scim:corp"
		if err := w.broker.Facts.Report(t.Context(), broker.Caller{At: now}, broker.StandingKey{Kind: broker.FactPerson, Name: "login/dan"}, f); err != nil {
			t.Fatal(err)
		}
		w.end(t, now)
	}
	kim := person("login/kim", noon)
	_, r, err := w.get(kim, "tickets", 0, noon)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.broker.Vote(t.Context(), by("login/dan", noon), r.ID, broker.Vote{Approve: true, Digest: r.Digest}); err != nil {
		t.Fatal(err)
	}
	state(broker.Fact{State: broker.FactEnded, Cause: "account_disabled"}, noon.Add(time.Minute))
	back := noon.Add(2 * time.Minute)
	state(broker.Fact{State: broker.FactActive}, back)
	if _, err := w.broker.Collect(t.Context(), broker.Self(kim, back), r.ID, broker.IdempotencyKey{}); !errors.Is(err, broker.ErrNeedsNewRequest) {
		t.Errorf("got %v, want %v", err, broker.ErrNeedsNewRequest)
	}
	_, r, err = w.get(person("login/lea", noon), "tickets", 0, back)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.broker.Vote(t.Context(), by("login/dan", back), r.ID, broker.Vote{Approve: true, Digest: r.Digest}); err != nil {
		t.Fatal(err)
	}
	if _, err := w.broker.Collect(t.Context(), broker.Self(person("login/lea", noon), back), r.ID, broker.IdempotencyKey{}); err != nil {
		t.Errorf("an approval after the return: %v", err)
	}
}

// The end that a provider claims counts from the login on, and a later login moves it.
func TestPersonEndsByClaim(t *testing.T) {
	w := newWorld(t, files{cedar: `@id("people") permit (principal is Person, action == Action::"request", resource);`})
	kim := person("login/kim", noon)
	state := func(end time.Time, now time.Time) {
		t.Helper()
		kim.Person.StatesEnd, kim.Person.Ends = true, end
		if err := w.broker.Facts.StateClaims(t.Context(), kim, now); err != nil {
			t.Fatal(err)
		}
		w.end(t, now)
	}
	over := noon.Add(time.Hour)
	state(over, noon)
	issued, _, err := w.get(kim, "tickets", 20*time.Hour, noon)
	if err != nil || !issued.Lease.Expires.Equal(over) {
		t.Fatalf("got %+v, %v, want a credential until %v", issued, err, over)
	}
	for now, want := range map[time.Time]bool{over.Add(-time.Second): false, over: true} {
		if ended, err := w.broker.Facts.SessionEnded(t.Context(), "login/kim", noon, now); err != nil || ended != want {
			t.Errorf("at %v: got an ended session %v, %v, want %v", now, ended, err, want)
		}
	}
	w.end(t, over)
	state(over.Add(time.Hour), over.Add(time.Minute))
	later := over.Add(time.Minute)
	kim.Proof.Expires = later.Add(time.Hour)
	if _, _, err := w.get(kim, "tickets", 0, later.Add(time.Second)); err != nil {
		t.Errorf("after the end moved: %v", err)
	}
	if ended, err := w.broker.Facts.SessionEnded(t.Context(), "login/kim", noon, later); err != nil || !ended {
		t.Errorf("the old session revives: %v, %v", ended, err)
	}
}

// Directories write "never" as the year 9999.
func TestAnEndFarAwayIsNone(t *testing.T) {
	w := newWorld(t, files{cedar: `@id("people") permit (principal is Person, action == Action::"request", resource);`})
	key := broker.StandingKey{Kind: broker.FactPerson, Name: "login/kim"}
	never := time.Date(9999, 12, 31, 23, 59, 59, 0, time.UTC)
	if err := w.broker.Facts.Report(t.Context(), broker.Caller{At: noon}, key, broker.Fact{Source: "scim:corp", State: broker.FactActive, Until: never}); err != nil {
		t.Fatal(err)
	}
	w.end(t, noon)
	if _, _, err := w.get(person("login/kim", noon), "tickets", 0, noon); err != nil {
		t.Error(err)
	}
}
