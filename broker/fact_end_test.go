package broker_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"accessbroker.internal/audit"
	"accessbroker.internal/broker"
)

const factPolicies = testPolicies + `
@id("people-db") permit (principal is Person, action == Action::"request", resource == Entitlement::"db");
@id("people-read") permit (principal is Person, action == Action::"request", resource == Entitlement::"tickets") when { ["tickets:read"].containsAll(context.scopes) };
@id("people-close") @approval("1 of support") permit (principal is Person, action == Action::"request", resource == Entitlement::"tickets") when { context.scopes.contains("tickets:close") };
`

func factWorld(t testing.TB, cfg worldConfig) (*world, *system) {
	t.Helper()
	sys := &system{live: map[string]time.Time{}}
	cfg.issuers, cfg.policies = map[string]broker.Issuer{"tickets": signer{}, "db": sys}, factPolicies
	w := newWorld(t, cfg)
	if tt, ok := t.(*testing.T); ok {
		t.Cleanup(func() { w.verify(tt) })
	}
	return w, sys
}

var gus = broker.StandingKey{Kind: broker.FactPerson, Name: "login/gus"}

func (w *world) report(t testing.TB, key broker.StandingKey, f broker.Fact, now time.Time) {
	t.Helper()
	if f.Source == "" {
		f.Source = "file"
	}
	if err := w.broker.Facts.Report(context.Background(), broker.Caller{At: now}, key, f); err != nil {
		t.Fatal(err)
	}
}

func (w *world) end(t testing.TB, now time.Time) {
	t.Helper()
	if err := w.broker.Facts.End(context.Background(), now); err != nil {
		t.Fatal(err)
	}
}

func (w *world) collect(t testing.TB, who broker.Identity, ask broker.Ask, now time.Time) (*broker.Issued, error) {
	t.Helper()
	issued, _, err := w.broker.AskAndCollect(context.Background(), broker.Self(who, now), ask, broker.IdempotencyKey{})
	return issued, err
}

var (
	ended  = broker.Fact{State: broker.FactEnded, Cause: "contract_ended"}
	active = broker.Fact{State: broker.FactActive}
)

// The end of a person ends what they have, what they wait for and what they could
// collect, and nothing of others.
func TestEndOfAPersonEndsTheirAccess(t *testing.T) {
	w, sys := factWorld(t, worldConfig{})
	w.report(t, gus, active, noon)
	for _, who := range []string{"gus", "hal"} {
		for _, ask := range []broker.Ask{{Entitlement: "db"}, read("tickets:read")} {
			if _, err := w.collect(t, approver(who, noon), ask, noon); err != nil {
				t.Fatal(err)
			}
		}
	}
	grant, err := w.broker.Ask(t.Context(), broker.Self(approver("gus", noon), noon), broker.Ask{Entitlement: "db", Duration: 30 * time.Minute}, broker.IdempotencyKey{})
	if err != nil {
		t.Fatal(err)
	}
	waiting, err := w.broker.Ask(t.Context(), broker.Self(approver("gus", noon), noon), read("tickets:close"), broker.IdempotencyKey{})
	if err != nil {
		t.Fatal(err)
	}
	at := noon.Add(time.Minute)
	w.report(t, gus, ended, at)
	// Before the first pass, nothing more is granted.
	if _, err := w.collect(t, approver("gus", noon), broker.Ask{Entitlement: "db"}, at); !errors.Is(err, broker.ErrFactEnded) {
		t.Errorf("a new request: %v", err)
	}
	if _, err := w.broker.Collect(t.Context(), broker.Self(approver("gus", noon), at), grant.ID, broker.IdempotencyKey{}); !errors.Is(err, broker.ErrFactEnded) {
		t.Errorf("a collection: %v", err)
	}
	w.end(t, at)
	if _, err := w.broker.Reap(t.Context(), at); err != nil {
		t.Fatal(err)
	}
	if n := sys.working(at); n != 1 {
		t.Errorf("%d upstream credentials work, want that of hal", n)
	}
	byHolder := map[string]int{}
	for _, l := range w.leases(t) {
		if l.Status != broker.LeaseActive {
			byHolder[l.Holder]++
			if l.EndHow != broker.EndFact || l.EndedBy == nil || l.EndedBy.Subject != gus || l.EndedBy.Cause != "contract_ended" {
				t.Errorf("the end of %s: %s, %v", l.ID, l.EndHow, l.EndedBy)
			}
		}
	}
	if byHolder["login/gus"] != 2 || len(byHolder) != 1 {
		t.Errorf("got ended leases %v", byHolder)
	}
	for _, r := range []*broker.Request{grant, waiting} {
		after, err := w.broker.Request(t.Context(), broker.Self(approver("gus", noon), at), r.ID)
		if err != nil || after.EndedBy == nil || after.EndedBy.Subject != gus {
			t.Errorf("request %s: %+v, %v", r.ID, after, err)
		}
	}
	if _, err := w.broker.Collect(t.Context(), broker.Self(approver("gus", noon), at), waiting.ID, broker.IdempotencyKey{}); !errors.Is(err, broker.ErrFactEnded) {
		t.Errorf("collecting what was waiting: %v", err)
	}
	causes := 0
	for _, r := range w.records(t) {
		if r.End != nil && r.End.Fact == "person login/gus" && r.End.Cause == "contract_ended" {
			causes++
		}
	}
	if causes < 5 { // two leases, their grants, the grant, the pending request
		t.Errorf("%d records name the cause", causes)
	}
	// The person returns. What was granted before stays ended.
	w.report(t, gus, active, at)
	later := at.Add(time.Minute)
	if _, err := w.broker.Collect(t.Context(), broker.Self(approver("gus", noon), later), grant.ID, broker.IdempotencyKey{}); !errors.Is(err, broker.ErrFactEnded) {
		t.Errorf("collecting an old grant: %v", err)
	}
	if _, err := w.collect(t, approver("gus", noon), broker.Ask{Entitlement: "db"}, later); err != nil {
		t.Errorf("a new request after the return: %v", err)
	}
}

// A grant of a workload is not in the index of facts. It does not revive either.
func TestEndOfAnAgentIsFinalForItsGrants(t *testing.T) {
	w, sys := factWorld(t, worldConfig{})
	key := broker.StandingKey{Kind: broker.FactAgent, Name: agent(noon).ID}
	issued, err := w.collect(t, agent(noon), broker.Ask{Entitlement: "db"}, noon)
	if err != nil {
		t.Fatal(err)
	}
	w.report(t, key, ended, noon)
	w.end(t, noon)
	if _, err := w.broker.Reap(t.Context(), noon); err != nil || sys.working(noon) != 0 {
		t.Errorf("%d credentials work, %v", sys.working(noon), err)
	}
	w.report(t, key, active, noon.Add(time.Second))
	if _, err := w.broker.Collect(t.Context(), broker.Self(agent(noon), noon.Add(2*time.Second)), issued.Request.ID, broker.IdempotencyKey{}); !errors.Is(err, broker.ErrFactEnded) {
		t.Errorf("an old grant: %v", err)
	}
	if _, err := w.collect(t, agent(noon), broker.Ask{Entitlement: "db"}, noon.Add(2*time.Second)); err != nil {
		t.Errorf("a new request: %v", err)
	}
}

// An identical request does not lead back to a grant that can't be collected any more.
func TestAnIdenticalRequestAfterAnEndIsNew(t *testing.T) {
	w, _ := factWorld(t, worldConfig{})
	key := broker.StandingKey{Kind: broker.FactAgent, Name: agent(noon).ID}
	ask := broker.Ask{Entitlement: "tickets", Scopes: []string{"tickets:close"}, Justification: "incident"}
	file := func(at time.Time) *broker.Request {
		t.Helper()
		r, err := w.broker.Ask(t.Context(), broker.Self(agent(noon), at), ask, broker.IdempotencyKey{})
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	first := file(noon)
	if _, err := w.vote(t, approver("ben", noon), first, broker.Vote{Approve: true, Digest: first.Digest}, noon); err != nil {
		t.Fatal(err)
	}
	if again := file(noon.Add(time.Second)); again.ID != first.ID {
		t.Fatalf("an identical request before the end: got %s, want %s", again.ID, first.ID)
	}
	w.report(t, key, ended, noon.Add(time.Minute))
	w.end(t, noon.Add(time.Minute))
	w.report(t, key, active, noon.Add(2*time.Minute))
	if again := file(noon.Add(3 * time.Minute)); again.ID == first.ID || again.State(noon.Add(3*time.Minute)) != broker.RequestPending {
		t.Errorf("after the end: got %s in state %v", again.ID, again.State(noon.Add(3*time.Minute)))
	}
}

// No one has to act when the known end comes.
func TestAccessEndsWithTheFact(t *testing.T) {
	w, _ := factWorld(t, worldConfig{})
	until := noon.Add(3 * time.Minute)
	w.report(t, gus, broker.Fact{State: broker.FactActive, Until: until}, noon)
	w.report(t, gus, broker.Fact{Source: "scim:corp", State: broker.FactActive, Until: noon.Add(time.Hour)}, noon)
	issued, err := w.collect(t, approver("gus", noon), read("tickets:read"), noon)
	if err != nil {
		t.Fatal(err)
	}
	if !issued.Lease.Expires.Equal(until) || !issued.Request.CollectUntil.Equal(until) {
		t.Errorf("the lease ends at %v, the grant at %v, want %v", issued.Lease.Expires, issued.Request.CollectUntil, until)
	}
	waiting, err := w.broker.Ask(t.Context(), broker.Self(approver("gus", noon), noon), read("tickets:close"), broker.IdempotencyKey{})
	if err != nil || !waiting.Lapses.Equal(until) {
		t.Errorf("the pending request lapses at %v, want %v; %v", waiting.Lapses, until, err)
	}
	if _, err := w.vote(t, approver("ana", noon), waiting, broker.Vote{Approve: true, Digest: waiting.Digest}, until); !errors.Is(err, broker.ErrFactEnded) {
		t.Errorf("a vote exactly at the end: %v", err)
	}
	if _, err := w.collect(t, approver("gus", noon), read("tickets:read"), until); !errors.Is(err, broker.ErrFactEnded) {
		t.Errorf("exactly at the end: %v", err)
	}
	if _, err := w.broker.Ask(t.Context(), broker.Self(approver("gus", noon), noon), broker.Ask{Entitlement: "db", NotBefore: until}, broker.IdempotencyKey{}); !errors.Is(err, broker.ErrInvalidTTL) {
		t.Errorf("a start at the end: %v", err)
	}
	w.end(t, until)
	s, err := w.broker.Facts.Standing(t.Context(), gus)
	if err != nil || !s.Ended.Equal(until) || s.Cause != broker.CauseUntil || s.Ending {
		t.Errorf("the standing after its time: %+v, %v", s, err)
	}
	if last := w.records(t); last[len(last)-1].Kind == audit.FactChanged {
		t.Errorf("the last record is %+v", last[len(last)-1])
	}
}

// An end that comes earlier than was known ends what outlives it.
func TestAnEndMovesForward(t *testing.T) {
	w, _ := factWorld(t, worldConfig{})
	w.report(t, gus, broker.Fact{State: broker.FactActive, Until: noon.Add(time.Hour)}, noon)
	issued, err := w.collect(t, approver("gus", noon), read("tickets:read"), noon)
	if err != nil {
		t.Fatal(err)
	}
	w.report(t, gus, broker.Fact{State: broker.FactActive, Until: noon.Add(time.Minute)}, noon)
	w.end(t, noon.Add(59*time.Second))
	if l := w.lease(t, issued.Lease.ID); l.Status != broker.LeaseActive {
		t.Errorf("it ended early: %+v", l)
	}
	w.end(t, noon.Add(time.Minute))
	if l := w.lease(t, issued.Lease.ID); l.Status == broker.LeaseActive || l.EndHow != broker.EndFact {
		t.Errorf("it outlives the fact: %+v", l)
	}
}

func (w *world) lease(t testing.TB, id broker.LeaseID) *broker.Lease {
	t.Helper()
	l, err := w.store.Lease(context.Background(), id)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// A silent source lets nothing new through. The operator decides about running leases.
func TestStaleSources(t *testing.T) {
	for _, test := range []struct {
		onStale broker.OnStale
		silence bool
		runs    bool
	}{{broker.OnStaleEnd, false, false}, {broker.OnStaleHold, false, true}, {"", true, false}, {broker.OnStaleHold, true, true}} {
		t.Run(fmt.Sprintf("%s silence=%t", test.onStale, test.silence), func(t *testing.T) {
			rule := broker.SourceRule{StaleAfter: 5 * time.Minute, OnStale: test.onStale, Silence: test.silence}
			w, _ := factWorld(t, worldConfig{sources: map[string]broker.SourceRule{"scim:corp": rule}})
			confirm := func(now time.Time) {
				if test.silence {
					if err := w.broker.Facts.Confirm(t.Context(), "scim:corp", now); err != nil {
						t.Fatal(err)
					}
					return
				}
				w.report(t, gus, broker.Fact{Source: "scim:corp", State: broker.FactActive}, now)
			}
			w.report(t, gus, broker.Fact{Source: "scim:corp", State: broker.FactActive}, noon)
			confirm(noon)
			issued, err := w.collect(t, approver("gus", noon), read("tickets:read"), noon)
			if err != nil {
				t.Fatal(err)
			}
			confirm(noon.Add(4 * time.Minute))
			w.end(t, noon.Add(6*time.Minute))
			if l := w.lease(t, issued.Lease.ID); l.Status != broker.LeaseActive {
				t.Fatalf("a confirmed fact ends access: %+v", l)
			}
			at := noon.Add(9 * time.Minute)
			if _, err := w.collect(t, approver("gus", at), read("tickets:read"), at); !errors.Is(err, broker.ErrFactUnknown) {
				t.Errorf("a new request while the source is silent: %v", err)
			}
			w.end(t, at)
			w.end(t, at)
			if l := w.lease(t, issued.Lease.ID); (l.Status == broker.LeaseActive) != test.runs {
				t.Errorf("the lease has status %v after the source went silent", l.Status)
			}
			confirm(at.Add(time.Minute))
			w.end(t, at.Add(time.Minute))
			if _, err := w.collect(t, approver("gus", at), read("tickets:read"), at.Add(2*time.Minute)); err != nil {
				t.Errorf("a new request once the source is back: %v", err)
			}
		})
	}
}

// A person whom the source of record does not know has no access.
func TestGoverningSources(t *testing.T) {
	rule := broker.SourceRule{Governs: func(k broker.StandingKey) bool { return k.Kind == broker.FactPerson }}
	w, _ := factWorld(t, worldConfig{sources: map[string]broker.SourceRule{"scim:corp": rule}})
	if _, err := w.collect(t, approver("gus", noon), read("tickets:read"), noon); !errors.Is(err, broker.ErrFactUnknown) {
		t.Errorf("not known: %v", err)
	}
	w.report(t, gus, active, noon) // by another source
	if _, err := w.collect(t, approver("gus", noon), read("tickets:read"), noon); !errors.Is(err, broker.ErrFactUnknown) {
		t.Errorf("not known to the governing source: %v", err)
	}
	w.report(t, gus, broker.Fact{Source: "scim:corp", State: broker.FactActive}, noon)
	if _, err := w.collect(t, approver("gus", noon), read("tickets:read"), noon); err != nil {
		t.Errorf("known: %v", err)
	}
	if _, err := w.collect(t, agent(noon), read("tickets:read"), noon); err != nil {
		t.Errorf("a workload: %v", err)
	}
}

// interposed runs a function once, right before an Update that reads a standing of a kind.
type interposed struct {
	broker.Store
	before atomic.Pointer[func()]
}

func (s *interposed) Update(ctx context.Context, reads []broker.Key, f func(broker.Tx) error) error {
	if slices.ContainsFunc(reads, func(k broker.Key) bool { _, ok := k.(broker.RevisionKey); return ok }) {
		if run := s.before.Swap(nil); run != nil {
			(*run)()
		}
	}
	return s.Store.Update(ctx, reads, f)
}

// An end between the decision and its transaction lets no credential out.
func TestAnEndOvertakesAnIssuance(t *testing.T) {
	for _, ask := range []broker.Ask{{Entitlement: "db"}, read("tickets:read")} {
		t.Run(ask.Entitlement, func(t *testing.T) {
			var store *interposed
			w, sys := factWorld(t, worldConfig{wrap: func(s broker.Store) broker.Store {
				store = &interposed{Store: s}
				return store
			}})
			w.report(t, gus, active, noon)
			run := func() { w.report(t, gus, ended, noon) }
			store.before.Store(&run)
			if _, err := w.collect(t, approver("gus", noon), ask, noon); !errors.Is(err, broker.ErrFactEnded) {
				t.Errorf("got %v", err)
			}
			if store.before.Load() != nil || sys.working(noon) != 0 || w.count(t, broker.LeaseActive) != 0 {
				t.Errorf("%d credentials, %d leases", sys.working(noon), w.count(t, broker.LeaseActive))
			}
		})
	}
}

// An end that the process did not finish is finished by the next one.
func TestAnInterruptedEndContinues(t *testing.T) {
	w, sys := factWorld(t, worldConfig{})
	if _, err := w.collect(t, approver("gus", noon), broker.Ask{Entitlement: "db"}, noon); err != nil {
		t.Fatal(err)
	}
	w.report(t, gus, ended, noon) // and the process dies
	w.broker = w.restart(t, map[string]broker.Issuer{"tickets": signer{}, "db": sys})
	w.end(t, noon)
	if _, err := w.broker.Reap(t.Context(), noon); err != nil || sys.working(noon) != 0 {
		t.Errorf("%d credentials work, %v", sys.working(noon), err)
	}
}

// refusing fails every Update that reads a certain request.
type refusing struct {
	broker.Store
	request atomic.Pointer[broker.RequestID]
}

func (s *refusing) Update(ctx context.Context, reads []broker.Key, f func(broker.Tx) error) error {
	if id := s.request.Load(); id != nil && slices.Contains(reads, broker.Key(*id)) {
		return errFault
	}
	return s.Store.Update(ctx, reads, f)
}

// A grant that can't be ended does not keep those on later pages, and is tried again.
func TestOneFailureKeepsNoOthers(t *testing.T) {
	var store *refusing
	w, _ := factWorld(t, worldConfig{wrap: func(s broker.Store) broker.Store {
		store = &refusing{Store: s}
		return store
	}})
	var newest *broker.Issued
	const grants = 520 // more than a page
	for range grants {
		issued, err := w.collect(t, approver("gus", noon), read("tickets:read"), noon)
		if err != nil {
			t.Fatal(err)
		}
		newest = issued
	}
	w.report(t, gus, ended, noon)
	id := newest.Request.ID
	store.request.Store(&id)
	if err := w.broker.Facts.End(t.Context(), noon); !errors.Is(err, errFault) {
		t.Errorf("the failure: %v", err)
	}
	if n := w.count(t, broker.LeaseActive); n != 0 {
		t.Errorf("%d leases are active", n)
	}
	grant := func() *broker.Request {
		t.Helper()
		r, err := w.broker.Request(t.Context(), broker.Self(approver("gus", noon), noon), id)
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	if r := grant(); r.EndedBy != nil {
		t.Fatalf("the grant whose end fails: %+v", r)
	}
	store.request.Store(nil)
	w.end(t, noon)
	if r := grant(); r.EndedBy == nil {
		t.Errorf("the grant was not tried again: %+v", r)
	}
}

// A person whose own access has ended decides nothing.
func TestEndedPeopleDoNotVote(t *testing.T) {
	w, _ := factWorld(t, worldConfig{})
	waiting, err := w.broker.Ask(t.Context(), broker.Self(approver("gus", noon), noon), read("tickets:close"), broker.IdempotencyKey{})
	if err != nil {
		t.Fatal(err)
	}
	w.report(t, broker.StandingKey{Kind: broker.FactPerson, Name: "login/ana"}, ended, noon)
	if _, err := w.vote(t, approver("ana", noon), waiting, broker.Vote{Approve: true, Digest: waiting.Digest}, noon); !errors.Is(err, broker.ErrFactEnded) {
		t.Errorf("got %v", err)
	}
	if _, err := w.vote(t, approver("ben", noon), waiting, broker.Vote{Approve: true, Digest: waiting.Digest}, noon); err != nil {
		t.Errorf("another approver: %v", err)
	}
}

// Repeated statements change nothing and are not recorded.
func TestConfirmationsAreNotRecorded(t *testing.T) {
	w, _ := factWorld(t, worldConfig{sources: map[string]broker.SourceRule{"file": {StaleAfter: time.Hour}}})
	w.report(t, gus, active, noon)
	before := w.store.Head().Size
	for i := range 30 {
		w.report(t, gus, active, noon.Add(time.Duration(i)*time.Minute))
	}
	if after := w.store.Head().Size; after != before {
		t.Errorf("%d records of confirmations", after-before)
	}
	s, err := w.broker.Facts.Standing(t.Context(), gus)
	if late := noon.Add(30*time.Minute + 24*time.Minute); err != nil || s.Facts[0].StaleAt.Before(late) {
		t.Errorf("it goes stale at %v, want at least %v; %v", s.Facts[0].StaleAt, late, err)
	}
}

func TestReportsOfManyAndOfOneTwice(t *testing.T) {
	w, _ := factWorld(t, worldConfig{})
	var reports []broker.Report
	for i := range 600 {
		key := broker.StandingKey{Kind: broker.FactPerson, Name: fmt.Sprintf("login/p%03d", i)}
		reports = append(reports, broker.Report{Subject: key, Fact: broker.Fact{Source: "scim:corp", State: broker.FactActive}})
	}
	again := reports[0]
	again.Fact.State, again.Fact.Cause = broker.FactEnded, "account_disabled"
	if err := w.broker.Facts.ReportAll(t.Context(), broker.Caller{At: noon}, slices.Insert(reports, 5, again)); err != nil {
		t.Fatal(err)
	}
	list, err := w.broker.Facts.List(t.Context(), broker.FactPerson, "login/p597", 10)
	if err != nil || len(list) != 2 || list[0].Name != "login/p598" {
		t.Errorf("got %d, %v", len(list), err)
	}
	s, err := w.broker.Facts.Standing(t.Context(), reports[0].Subject)
	if err != nil || s.Facts[0].State != broker.FactEnded {
		t.Errorf("the later report counts: %+v, %v", s, err)
	}
	if err := w.broker.Facts.Forget(t.Context(), broker.Caller{At: noon}, reports[1].Subject, "scim:corp"); err != nil {
		t.Fatal(err)
	}
	if s, err := w.broker.Facts.Standing(t.Context(), reports[1].Subject); err != nil || len(s.Facts) != 0 {
		t.Errorf("forgotten: %+v, %v", s, err)
	}
}

// BenchmarkFactEnd ends one fact on which 10,000 leases rest, each of a grant of its own.
func BenchmarkFactEnd(b *testing.B) {
	leases := 10_000
	if testing.Short() {
		leases = 200
	}
	for b.Loop() {
		b.StopTimer()
		w, _ := factWorld(b, worldConfig{})
		w.report(b, gus, active, noon)
		who := approver("gus", noon)
		runParallel(64, leases, func() error {
			_, err := w.collect(b, who, broker.Ask{Entitlement: "db"}, noon)
			return err
		}, b)
		b.StartTimer()
		start, before := time.Now(), w.store.Head().Size
		w.report(b, gus, ended, noon)
		done := make(chan error, 1)
		go func() { done <- w.broker.Facts.End(context.Background(), noon) }()
		for w.store.Head().Size-before < int64(leases)+1 { // the records of the end and of each lease
			time.Sleep(time.Millisecond)
		}
		b.ReportMetric(time.Since(start).Seconds(), "s-until-queued")
		if err := <-done; err != nil {
			b.Fatal(err)
		}
		b.StopTimer()
		queued := 0
		for q := (broker.LeaseQuery{Holder: "login/gus", Live: true, Now: noon, Limit: 1000}); ; {
			err := w.store.View(context.Background(), func(tx broker.Tx) error {
				page, next, err := tx.Leases(q)
				for _, l := range page {
					if l.Status == broker.LeaseRevoking {
						queued++
					}
				}
				q.Before = next
				return err
			})
			if err != nil {
				b.Fatal(err)
			}
			if q.Before.IsZero() {
				break
			}
		}
		if queued != leases {
			b.Fatalf("%d leases are queued for revocation, want %d", queued, leases)
		}
		b.StartTimer()
	}
	b.ReportMetric(float64(leases)*float64(b.N)/b.Elapsed().Seconds(), "leases/s")
}

// A fact whose time has not begun does not hold. Once it has begun, its end must end what
// rests on it, although no source stated anything at the beginning.
func TestEndOfAFactThatBeganLater(t *testing.T) {
	for _, seen := range []bool{false, true} {
		w, sys := factWorld(t, worldConfig{})
		begins := noon.Add(time.Minute)
		later := broker.Fact{State: broker.FactActive, From: begins, Until: noon.Add(10 * time.Hour)}
		w.report(t, gus, later, noon)
		w.end(t, noon)
		now := begins.Add(time.Minute)
		if seen {
			w.end(t, now)
		}
		issued, err := w.collect(t, approver("gus", noon), broker.Ask{Entitlement: "db"}, now)
		if err != nil || issued == nil {
			t.Fatalf("after the beginning: got %v, %v", issued, err)
		}
		w.report(t, gus, ended, now.Add(time.Minute))
		w.end(t, now.Add(time.Minute))
		if _, err := w.broker.Reap(t.Context(), now.Add(time.Minute)); err != nil {
			t.Fatal(err)
		}
		if l := w.lease(t, issued.Lease.ID); l.EndHow != broker.EndFact || len(sys.live) != 0 {
			t.Errorf("noticed the beginning: %v: the lease did not end with the fact: %+v", seen, l)
		}
	}
}

// An answer of a tracker that was overtaken by a later one does not open the ticket again.
func TestOvertakenAnswerOpensNoTicket(t *testing.T) {
	w, _ := factWorld(t, worldConfig{})
	key := broker.StandingKey{Kind: broker.FactTicket, Name: "jira/INC-7"}
	state := func(f broker.Fact, looked time.Time) string {
		t.Helper()
		f.Source, f.Confirmed = "tickets:jira", looked
		w.report(t, key, f, noon.Add(time.Minute))
		w.end(t, noon.Add(time.Minute))
		s, err := w.broker.Facts.Standing(t.Context(), key)
		if err != nil {
			t.Fatal(err)
		}
		return w.broker.Facts.Fault(s, noon.Add(time.Minute))
	}
	closed := broker.Fact{State: broker.FactEnded, Cause: broker.CauseTicketClosed}
	if got := state(closed, noon.Add(time.Second)); got != broker.CauseTicketClosed {
		t.Fatalf("closed: got %q", got)
	}
	if got := state(active, noon); got != broker.CauseTicketClosed {
		t.Errorf("an older answer: got %q", got)
	}
	if got := state(active, noon.Add(2*time.Second)); got != "" {
		t.Errorf("opened again: got %q", got)
	}
}
