package broker_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"accessbroker.internal/audit"
	"accessbroker.internal/broker"
)

// tracker is a ticket system whose tickets begin with INC-. Its clock is that of the test.
type tracker struct {
	mu      sync.Mutex
	now     time.Time
	down    bool
	tickets map[string]broker.Ticket
	looks   int
}

var _ broker.Tickets = (*tracker)(nil)

func ticketKey(id string) broker.StandingKey {
	return broker.StandingKey{Kind: broker.FactTicket, Name: "jira/" + id}
}

func (s *tracker) put(id string, t broker.Ticket) {
	s.mu.Lock()
	defer s.mu.Unlock()
	t.Key, t.Source, t.Tracker, t.ID = ticketKey(id), "tickets:jira", "jira", id
	s.tickets[id] = t
}

func (s *tracker) Look(_ context.Context, id string) (broker.StandingKey, *broker.Ticket, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.looks++
	t, ok := s.tickets[id]
	switch {
	case !strings.HasPrefix(id, "INC-"):
		return broker.StandingKey{}, nil, &broker.Refusal{Err: broker.ErrFactUnknown, Detail: "no ticket system has tickets of this form"}
	case s.down:
		return ticketKey(id), nil, &broker.Refusal{Err: broker.ErrFactUnknown, Detail: "the tracker does not answer"}
	case !ok:
		return broker.StandingKey{}, nil, &broker.Refusal{Err: broker.ErrFactUnknown, Detail: "there is no such ticket"}
	}
	t.Looked = s.now
	return t.Key, &t, nil
}

func (s *tracker) Seen(id string) *broker.Ticket {
	s.mu.Lock()
	defer s.mu.Unlock()
	if t, ok := s.tickets[id]; ok {
		return &t
	}
	return nil
}

// openFor returns an open ticket that is assigned to people.
func openFor(people ...string) broker.Ticket {
	return broker.Ticket{States: []string{"open"}, Assignees: people}
}

// ticketPolicies returns policies under which agents and people read and, with approval,
// close, under obligations.
func ticketPolicies(annotations string) string {
	return `@id("read") ` + annotations + ` permit (principal, action == Action::"request", resource == Entitlement::"db");
@id("tokens") ` + annotations + ` permit (principal, action == Action::"request", resource == Entitlement::"tickets") unless { context.scopes.contains("tickets:close") };
@id("close") @approval("1 of support") ` + annotations + ` permit (principal, action == Action::"request", resource == Entitlement::"tickets") when { context.scopes.contains("tickets:close") };`
}

const allTerms = `@ticket("INC-[0-9]+") @ticket_state("open") @ticket_assignee("requester, accountable") @change_window("required")`

type ticketWorld struct {
	*world
	tracker *tracker
	system  *system
	t       *testing.T
}

func newTicketWorld(t *testing.T, annotations string, onStale broker.OnStale) *ticketWorld {
	t.Helper()
	w := &ticketWorld{tracker: &tracker{now: noon, tickets: map[string]broker.Ticket{}}, system: &system{live: map[string]time.Time{}}, t: t}
	w.world = newWorld(t, worldConfig{
		policies: ticketPolicies(annotations), issuers: map[string]broker.Issuer{"tickets": signer{}, "db": w.system}, tickets: w.tracker,
		sources: map[string]broker.SourceRule{"tickets:jira": {
			StaleAfter: 5 * time.Minute, OnStale: onStale, Governs: func(k broker.StandingKey) bool { return k.Kind == broker.FactTicket },
		}},
	})
	t.Cleanup(func() { w.verify(t) })
	return w
}

// at moves the tracker's clock.
func (w *ticketWorld) at(now time.Time) time.Time {
	w.tracker.mu.Lock()
	defer w.tracker.mu.Unlock()
	w.tracker.now = now
	return now
}

// look is one look of the poll loop.
func (w *ticketWorld) look(id string, now time.Time) {
	w.t.Helper()
	w.at(now)
	_, known, err := w.tracker.Look(w.t.Context(), id)
	if err == nil {
		err = w.broker.Facts.ReportTicket(w.t.Context(), known)
	} else {
		err = w.broker.Facts.CheckTicket(w.t.Context(), ticketKey(id), now)
	}
	if err != nil {
		w.t.Fatal(err)
	}
	w.end(w.t, now)
	if _, err := w.broker.Reap(w.t.Context(), now); err != nil {
		w.t.Fatal(err)
	}
}

func (w *ticketWorld) file(who broker.Identity, ask broker.Ask, now time.Time) (*broker.Request, error) {
	return w.broker.Ask(w.t.Context(), broker.Self(who, now), ask, broker.IdempotencyKey{})
}

func dbFor(ticket string) broker.Ask {
	return broker.Ask{Entitlement: "db", Ticket: ticket, Justification: "x"}
}

func closeFor(ticket string) broker.Ask {
	ask := read("tickets:close")
	ask.Ticket = ticket
	return ask
}

func TestTicketTermsAtTheAsk(t *testing.T) {
	window := func(from, until time.Duration) broker.Ticket {
		return broker.Ticket{States: []string{"open"}, From: noon.Add(from), Until: noon.Add(until)}
	}
	state, assignee, inWindow := `@ticket_state("open")`, `@ticket_assignee("requester, accountable")`, `@change_window("required")`
	for name, test := range map[string]struct {
		annotations string
		ticket      broker.Ticket
		who         broker.Identity
		ask         func(*broker.Ask)
		want        error
	}{
		"open":                           {annotations: state, ticket: openFor()},
		"closed":                         {annotations: state, ticket: broker.Ticket{}, want: broker.ErrFactEnded},
		"another state":                  {annotations: `@ticket_state("implementing")`, ticket: openFor(), want: broker.ErrTicketUnfit},
		"two states":                     {annotations: `@ticket_state("implementing")`, ticket: broker.Ticket{States: []string{"implementing", "open"}}},
		"no ticket":                      {annotations: state, ticket: openFor(), ask: func(a *broker.Ask) { a.Ticket = "" }, want: broker.ErrTicketRequired},
		"a ticket of no tracker":         {annotations: state, ticket: openFor(), ask: func(a *broker.Ask) { a.Ticket = "OPS-7" }, want: broker.ErrFactUnknown},
		"a ticket that is not there":     {annotations: state, ticket: openFor(), ask: func(a *broker.Ask) { a.Ticket = "INC-8" }, want: broker.ErrFactUnknown},
		"of the agent's owner":           {annotations: assignee, ticket: openFor("login/ana")},
		"of the agent itself":            {annotations: assignee, ticket: openFor("spiffe://acme.test/agent/triage")},
		"of one of two people":           {annotations: assignee, ticket: openFor("login/ana", "login/mallory")},
		"of another person":              {annotations: assignee, ticket: openFor("login/mallory"), want: broker.ErrTicketUnfit},
		"of nobody":                      {annotations: assignee, ticket: openFor(), want: broker.ErrTicketUnfit},
		"closed, of the owner":           {annotations: assignee, ticket: broker.Ticket{Assignees: []string{"login/ana"}}, want: broker.ErrFactEnded},
		"of the person":                  {annotations: assignee, ticket: openFor("login/gus"), who: approver("gus", noon)},
		"of another person, by a person": {annotations: assignee, ticket: openFor("login/ana"), who: approver("gus", noon), want: broker.ErrTicketUnfit},
		"the requester's alone":          {annotations: `@ticket_assignee("requester")`, ticket: openFor("login/ana"), want: broker.ErrTicketUnfit},
		"the owner's alone":              {annotations: `@ticket_assignee("accountable")`, ticket: openFor("spiffe://acme.test/agent/triage"), want: broker.ErrTicketUnfit},
		"in the window":                  {annotations: inWindow, ticket: window(-time.Hour, time.Hour)},
		"at its start":                   {annotations: inWindow, ticket: window(0, time.Hour)},
		"before the window":              {annotations: inWindow, ticket: window(time.Second, time.Hour), want: broker.ErrTicketUnfit},
		"at its end":                     {annotations: inWindow, ticket: window(-time.Hour, 0), want: broker.ErrTicketUnfit},
		"without a window":               {annotations: inWindow, ticket: openFor(), want: broker.ErrTicketUnfit},
		"a start in the window":          {annotations: inWindow, ticket: window(time.Hour, 2*time.Hour), ask: func(a *broker.Ask) { a.NotBefore = noon.Add(time.Hour) }},
		"a start after the window":       {annotations: inWindow, ticket: window(-time.Hour, time.Hour), ask: func(a *broker.Ask) { a.NotBefore = noon.Add(time.Hour) }, want: broker.ErrTicketUnfit},
		"without terms":                  {annotations: `@ticket("INC-[0-9]+")`, ticket: broker.Ticket{}},
	} {
		t.Run(name, func(t *testing.T) {
			w := newTicketWorld(t, test.annotations, "")
			w.tracker.put("INC-7", test.ticket)
			ask, who := dbFor("INC-7"), test.who
			if test.ask != nil {
				test.ask(&ask)
			}
			if who.ID == "" {
				who = agent(noon)
			}
			r, err := w.file(who, ask, noon)
			if !errors.Is(err, test.want) || test.want == nil && err != nil {
				t.Fatalf("got %v, want %v", err, test.want)
			}
			if name == "without terms" {
				if w.tracker.looks != 0 || len(r.RestsOn) > 1 {
					t.Errorf("got %d looks, a request that rests on %v", w.tracker.looks, r.RestsOn)
				}
				return
			}
			_, known := w.broker.Facts.Standing(t.Context(), ticketKey("INC-7"))
			if err == nil && !slices.Contains(r.RestsOn, ticketKey("INC-7")) {
				t.Errorf("the request rests on %v", r.RestsOn)
			}
			if (known == nil) != (err == nil) { // refused requests store no tickets
				t.Errorf("the standing of the ticket: %v", known)
			}
		})
	}
}

// The terms hold at each collection: what changes in the tracker is seen at once.
func TestTicketTermsAtEachCollection(t *testing.T) {
	good := broker.Ticket{States: []string{"open"}, Assignees: []string{"login/ana"}, From: noon, Until: noon.Add(10 * time.Hour)}
	for name, test := range map[string]struct {
		change func(*broker.Ticket)
		want   error
		cause  string
	}{
		"closed":       {func(t *broker.Ticket) { t.States = nil }, broker.ErrFactEnded, broker.CauseTicketClosed},
		"reassigned":   {func(t *broker.Ticket) { t.Assignees = []string{"login/mallory"} }, broker.ErrTicketUnfit, broker.CauseTicketAssignee},
		"unassigned":   {func(t *broker.Ticket) { t.Assignees = nil }, broker.ErrTicketUnfit, broker.CauseTicketAssignee},
		"postponed":    {func(t *broker.Ticket) { t.From = noon.Add(2 * time.Hour) }, broker.ErrTicketUnfit, broker.CauseWindowAhead},
		"over":         {func(t *broker.Ticket) { t.Until = noon.Add(time.Second) }, broker.ErrTicketUnfit, broker.CauseWindowOver},
		"no window":    {func(t *broker.Ticket) { t.From, t.Until = time.Time{}, time.Time{} }, broker.ErrTicketUnfit, broker.CauseNoWindow},
		"other state":  {func(t *broker.Ticket) { t.States = []string{"implementing"} }, broker.ErrTicketUnfit, broker.CauseTicketState},
		"another name": {func(t *broker.Ticket) { t.Assignees = []string{"login/ana", "login/ben"}; t.Title = "renamed" }, nil, ""},
	} {
		t.Run(name, func(t *testing.T) {
			w := newTicketWorld(t, allTerms, "")
			w.tracker.put("INC-7", good)
			first, err := w.collect(t, agent(noon), dbFor("INC-7"), noon)
			if err != nil {
				t.Fatal(err)
			}
			pending, err := w.file(agent(noon), closeFor("INC-7"), noon)
			if err != nil {
				t.Fatal(err)
			}
			changed := good
			test.change(&changed)
			w.tracker.put("INC-7", changed)
			at := w.at(noon.Add(time.Minute))
			_, err = w.broker.Collect(t.Context(), broker.Self(agent(at), at), first.Request.ID, broker.IdempotencyKey{})
			if !errors.Is(err, test.want) || test.want == nil && err != nil {
				t.Fatalf("a collection: got %v, want %v", err, test.want)
			}
			w.look("INC-7", at)
			l, after := w.lease(t, first.Lease.ID), w.request(t, pending.ID)
			if test.want == nil {
				if l.Status != broker.LeaseActive || after.Status != broker.RequestPending {
					t.Errorf("got lease %v, request %v, want both as before", l.Status, after.Status)
				}
				return
			}
			want := broker.FactEnd{Subject: ticketKey("INC-7"), Cause: test.cause}
			if l.EndHow != broker.EndFact || l.EndedBy == nil || *l.EndedBy != want || w.system.working(at) != 0 {
				t.Errorf("the lease: how %q by %v, %d credentials work", l.EndHow, l.EndedBy, w.system.working(at))
			}
			if after.EndedBy == nil || *after.EndedBy != want {
				t.Errorf("the pending request: ended by %v", after.EndedBy)
			}
			if _, err := w.vote(t, approver("ben", at), after, broker.Vote{Approve: true, Digest: pending.Digest}, at); err == nil {
				t.Error("a vote on the ended request counts")
			}
		})
	}
}

func (w *ticketWorld) request(t *testing.T, id broker.RequestID) *broker.Request {
	t.Helper()
	var r *broker.Request
	err := w.store.View(t.Context(), func(tx broker.Tx) (err error) {
		r, err = broker.Get[*broker.Request](tx, id)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// One ticket carries several grants. Reassigned, it ends those that need another assignee,
// and no others.
func TestReassignmentEndsOnlyWhatItMust(t *testing.T) {
	w := newTicketWorld(t, `@ticket_assignee("requester, accountable")`, "")
	w.tracker.put("INC-7", openFor("login/ana", "login/gus"))
	owned, err := w.collect(t, agent(noon), dbFor("INC-7"), noon) // login/ana is accountable
	if err != nil {
		t.Fatal(err)
	}
	own, err := w.collect(t, approver("gus", noon), dbFor("INC-7"), noon)
	if err != nil {
		t.Fatal(err)
	}
	w.tracker.put("INC-7", openFor("login/gus"))
	w.look("INC-7", noon.Add(time.Minute))
	if l := w.lease(t, owned.Lease.ID); l.EndHow != broker.EndFact || l.EndedBy.Cause != broker.CauseTicketAssignee {
		t.Errorf("the lease of the agent: %q, %v", l.EndHow, l.EndedBy)
	}
	if l := w.lease(t, own.Lease.ID); l.Status != broker.LeaseActive {
		t.Errorf("the lease of the assignee: %v", l.Status)
	}
	w.tracker.put("INC-7", broker.Ticket{Assignees: []string{"login/gus"}})
	w.look("INC-7", noon.Add(2*time.Minute))
	if l := w.lease(t, own.Lease.ID); l.EndHow != broker.EndFact || l.EndedBy.Cause != broker.CauseTicketClosed {
		t.Errorf("after the ticket closed: %q, %v", l.EndHow, l.EndedBy)
	}
	if w.system.working(noon) != 0 {
		t.Errorf("%d credentials work", w.system.working(noon))
	}
}

// A ticket that opens again revives nothing; a new request is needed.
func TestFlappingTicket(t *testing.T) {
	w := newTicketWorld(t, `@ticket_state("open")`, "")
	w.tracker.put("INC-7", openFor())
	issued, err := w.collect(t, agent(noon), dbFor("INC-7"), noon)
	if err != nil {
		t.Fatal(err)
	}
	now := noon
	for i := range 5 {
		now = now.Add(time.Minute)
		w.tracker.put("INC-7", broker.Ticket{})
		w.look("INC-7", now)
		w.tracker.put("INC-7", openFor())
		now = now.Add(time.Minute)
		w.look("INC-7", now)
		if _, err := w.broker.Collect(t.Context(), broker.Self(agent(now), now), issued.Request.ID, broker.IdempotencyKey{}); !errors.Is(err, broker.ErrFactEnded) {
			t.Fatalf("round %d: the old grant: got %v", i, err)
		}
		now = now.Add(time.Second)
		if issued, err = w.collect(t, agent(now), dbFor("INC-7"), w.at(now)); err != nil {
			t.Fatalf("round %d: a new request: %v", i, err)
		}
	}
	if n := w.system.working(now); n != 1 {
		t.Errorf("%d credentials work, want the last", n)
	}
}

// The end of the window is the end of the grant and of its leases, although the ticket
// stays open.
func TestChangeWindowBoundsTheGrant(t *testing.T) {
	w := newTicketWorld(t, `@change_window("required")`, "")
	until := noon.Add(3 * time.Minute)
	w.tracker.put("INC-7", broker.Ticket{States: []string{"open"}, From: noon, Until: until})
	issued, err := w.collect(t, agent(noon), dbFor("INC-7"), noon)
	if err != nil {
		t.Fatal(err)
	}
	if !issued.Lease.Expires.Equal(until) || !issued.Request.CollectUntil.Equal(until) {
		t.Errorf("the lease expires at %s, the grant ends at %s, want %s", issued.Lease.Expires, issued.Request.CollectUntil, until)
	}
	waiting, err := w.file(agent(noon), closeFor("INC-7"), noon)
	if err != nil || !waiting.Lapses.Equal(until) {
		t.Errorf("the pending request lapses at %s, want %s, %v", waiting.Lapses, until, err)
	}
	// The window is extended, and then shortened.
	w.tracker.put("INC-7", broker.Ticket{States: []string{"open"}, From: noon, Until: noon.Add(time.Hour)})
	w.look("INC-7", noon.Add(time.Minute))
	second, err := w.collect(t, agent(noon), dbFor("INC-7"), w.at(noon.Add(2*time.Minute)))
	if err != nil || !second.Lease.Expires.Equal(noon.Add(12*time.Minute)) {
		t.Fatalf("after the extension: %+v, %v", second, err)
	}
	w.tracker.put("INC-7", broker.Ticket{States: []string{"open"}, From: noon, Until: noon.Add(5 * time.Minute)})
	w.look("INC-7", noon.Add(4*time.Minute))
	if l := w.lease(t, second.Lease.ID); l.Status != broker.LeaseActive {
		t.Errorf("the lease ended within the shorter window: %v", l.Status)
	}
	w.tracker.down = true // the end of the window needs no answer
	w.look("INC-7", noon.Add(5*time.Minute))
	if l := w.lease(t, second.Lease.ID); l.EndHow != broker.EndFact || l.EndedBy.Cause != broker.CauseWindowOver {
		t.Errorf("the lease after the shorter window: %q, %v", l.EndHow, l.EndedBy)
	}
}

// While the tracker does not answer, what it stated counts until it is stale. Then nothing
// new is granted, and the operator decides about running leases.
func TestTrackerDoesNotAnswer(t *testing.T) {
	for _, onStale := range []broker.OnStale{broker.OnStaleEnd, broker.OnStaleHold} {
		t.Run(string(onStale), func(t *testing.T) {
			w := newTicketWorld(t, `@ticket_state("open")`, onStale)
			w.tracker.put("INC-7", openFor())
			w.tracker.put("INC-8", openFor())
			issued, err := w.collect(t, agent(noon), dbFor("INC-7"), noon)
			if err != nil {
				t.Fatal(err)
			}
			w.tracker.down = true
			soon := noon.Add(4 * time.Minute)
			if _, err := w.collect(t, agent(noon), dbFor("INC-7"), soon); err != nil {
				t.Errorf("before it is stale: %v", err)
			}
			if _, err := w.collect(t, agent(noon), dbFor("INC-8"), soon); !errors.Is(err, broker.ErrFactUnknown) {
				t.Errorf("a ticket that was never seen: %v", err)
			}
			stale := noon.Add(5 * time.Minute)
			if _, err := w.collect(t, agent(noon), dbFor("INC-7"), stale); !errors.Is(err, broker.ErrFactUnknown) {
				t.Errorf("a new request: %v", err)
			}
			if _, err := w.broker.Collect(t.Context(), broker.Self(agent(noon), stale), issued.Request.ID, broker.IdempotencyKey{}); !errors.Is(err, broker.ErrFactUnknown) {
				t.Errorf("a collection: %v", err)
			}
			w.look("INC-7", stale)
			if l := w.lease(t, issued.Lease.ID); (l.Status == broker.LeaseActive) != (onStale == broker.OnStaleHold) {
				t.Errorf("the lease: %v", l.Status)
			}
			w.tracker.down = false
			back := w.at(stale.Add(time.Minute))
			if _, err := w.collect(t, agent(noon), dbFor("INC-7"), back); err != nil {
				t.Errorf("once it answers: %v", err)
			}
		})
	}
}

func TestTicketThatIsGone(t *testing.T) {
	w := newTicketWorld(t, `@ticket_state("open")`, "")
	w.tracker.put("INC-7", openFor())
	issued, err := w.collect(t, agent(noon), dbFor("INC-7"), noon)
	if err != nil {
		t.Fatal(err)
	}
	for _, id := range []string{"INC-7", "INC-8"} {
		if err := w.broker.Facts.LoseTicket(t.Context(), ticketKey(id), "tickets:jira", noon); err != nil {
			t.Fatal(err)
		}
	}
	w.end(t, noon)
	if l := w.lease(t, issued.Lease.ID); l.EndHow != broker.EndFact || l.EndedBy.Cause != broker.CauseTicketGone {
		t.Errorf("got %q, %v", l.EndHow, l.EndedBy)
	}
	if _, err := w.broker.Facts.Standing(t.Context(), ticketKey("INC-8")); !errors.Is(err, broker.ErrNotFound) {
		t.Errorf("a ticket that the broker never knew: %v", err)
	}
}

// Votes count only while the ticket carries the request. The tracker is not asked for them.
func TestVotesNeedTheTicket(t *testing.T) {
	w := newTicketWorld(t, allTerms, "")
	good := broker.Ticket{States: []string{"open"}, Assignees: []string{"login/ana"}, From: noon, Until: noon.Add(time.Hour)}
	w.tracker.put("INC-7", good)
	r, err := w.file(agent(noon), closeFor("INC-7"), noon)
	if err != nil {
		t.Fatal(err)
	}
	looks := w.tracker.looks
	// The tracker states the change before the ender has run.
	moved := good
	moved.Assignees, moved.Key, moved.Source, moved.Looked = []string{"login/ben"}, ticketKey("INC-7"), "tickets:jira", noon
	if err := w.broker.Facts.Report(t.Context(), broker.Caller{At: noon}, ticketKey("INC-7"), moved.Fact()); err != nil {
		t.Fatal(err)
	}
	if _, err := w.vote(t, approver("ben", noon), r, broker.Vote{Approve: true, Digest: r.Digest}, noon); !errors.Is(err, broker.ErrTicketUnfit) {
		t.Errorf("after a reassignment: got %v", err)
	}
	if w.tracker.looks != looks {
		t.Errorf("the vote asked the tracker %d times", w.tracker.looks-looks)
	}
}

// Policy may demand a ticket's state after the grant. Then the next lease rests on the
// ticket, and is found by it.
func TestLaterTermsBindLaterLeases(t *testing.T) {
	w := newTicketWorld(t, `@ticket("INC-[0-9]+")`, "")
	w.tracker.put("INC-7", openFor())
	first, err := w.collect(t, agent(noon), dbFor("INC-7"), noon)
	if err != nil {
		t.Fatal(err)
	}
	w.adopt(t, ticketPolicies(`@ticket("INC-[0-9]+") @ticket_state("open")`), testGroups)
	second, err := w.broker.Collect(t.Context(), broker.Self(agent(noon), noon), first.Request.ID, broker.IdempotencyKey{})
	if err != nil {
		t.Fatal(err)
	}
	w.tracker.put("INC-7", broker.Ticket{})
	w.look("INC-7", noon.Add(time.Minute))
	if l := w.lease(t, second.Lease.ID); l.EndHow != broker.EndFact {
		t.Errorf("the lease under the later terms: %v %q", l.Status, l.EndHow)
	}
}

func TestDryRunStoresNoTicket(t *testing.T) {
	w := newTicketWorld(t, allTerms, "")
	w.tracker.put("INC-7", broker.Ticket{States: []string{"open"}, Assignees: []string{"login/ana"}, From: noon, Until: noon.Add(time.Hour)})
	w.tracker.put("INC-8", broker.Ticket{})
	before := w.store.Head().Size
	for id, want := range map[string]error{"INC-7": nil, "INC-8": broker.ErrFactEnded} {
		ask := dbFor(id)
		ask.DryRun = true
		if _, err := w.file(agent(noon), ask, noon); !errors.Is(err, want) {
			t.Errorf("%s: got %v, want %v", id, err, want)
		}
	}
	if after := w.store.Head().Size; after != before {
		t.Errorf("%d records", after-before)
	}
	if list, err := w.broker.Facts.List(t.Context(), broker.FactTicket, "", 10); err != nil || len(list) != 0 {
		t.Errorf("got tickets %v, %v", list, err)
	}
}

// A ticket that no one looks at any more is forgotten without an end.
func TestUnusedTicketIsLeft(t *testing.T) {
	w := newTicketWorld(t, `@ticket_state("open")`, "")
	w.tracker.put("INC-7", openFor())
	issued, err := w.collect(t, agent(noon), dbFor("INC-7"), noon)
	if err != nil {
		t.Fatal(err)
	}
	for at, want := range map[time.Time]bool{noon: true, issued.Request.CollectUntil.Add(time.Hour): false} {
		if got, err := w.broker.Facts.HasResting(t.Context(), ticketKey("INC-7"), at); err != nil || got != want {
			t.Errorf("at %s: got %t, %v", at, got, err)
		}
	}
	later := noon.Add(2 * time.Minute)
	if err := w.broker.Facts.LeaveTicket(t.Context(), ticketKey("INC-7"), later); err != nil {
		t.Fatal(err)
	}
	w.end(t, noon.Add(time.Hour))
	for _, r := range w.records(t) {
		if r.Kind == audit.FactEnded {
			t.Errorf("got the end %+v", r.Fact)
		}
	}
	// What still rests on it, because its request came at the same moment, counts.
	w.tracker.put("INC-7", broker.Ticket{})
	w.look("INC-7", later)
	if l := w.lease(t, issued.Lease.ID); l.EndHow != broker.EndFact {
		t.Errorf("the lease: %v %q", l.Status, l.EndHow)
	}
}

// The digest that approvers sign covers the terms.
func TestTermsAreInTheDigest(t *testing.T) {
	digests := map[string]string{}
	for _, annotations := range []string{``, `@ticket("INC-[0-9]+")`, `@ticket_state("open")`, `@ticket_state("implementing")`, `@ticket_assignee("requester")`, `@ticket_assignee("requester, accountable")`, `@change_window("required")`, allTerms} {
		w := newTicketWorld(t, annotations, "")
		w.tracker.put("INC-7", broker.Ticket{States: []string{"implementing", "open"}, Assignees: []string{"spiffe://acme.test/agent/triage"}, From: noon, Until: noon.Add(time.Hour)})
		r, err := w.file(agent(noon), closeFor("INC-7"), noon)
		if err != nil {
			t.Fatalf("%s: %v", annotations, err)
		}
		var tickets string
		for _, record := range w.records(t) {
			if record.Kind == audit.RequestCreated {
				tickets = fmt.Sprint(record.Decision.Tickets)
			}
		}
		if other, ok := digests[tickets]; ok {
			t.Errorf("%q and %q have the same digest of terms", annotations, other)
		}
		digests[tickets] = annotations
		if r.Digest == (audit.Digest{}) {
			t.Error("no digest")
		}
	}
}

// A change between the decision and its transaction lets no credential out.
func TestReassignmentOvertakesAnIssuance(t *testing.T) {
	w := newTicketWorld(t, `@ticket_assignee("accountable")`, "")
	w.tracker.put("INC-7", openFor("login/ana"))
	if _, err := w.collect(t, agent(noon), dbFor("INC-7"), noon); err != nil {
		t.Fatal(err)
	}
	var store *interposed
	ww := newWorld(t, worldConfig{
		policies: ticketPolicies(`@ticket_assignee("accountable")`), issuers: map[string]broker.Issuer{"tickets": signer{}, "db": w.system}, tickets: w.tracker,
		wrap: func(s broker.Store) broker.Store {
			store = &interposed{Store: s}
			return store
		},
	})
	before := w.system.working(noon)
	run := func() {
		w.tracker.put("INC-7", openFor("login/mallory"))
		_, known, err := w.tracker.Look(t.Context(), "INC-7")
		if err == nil {
			err = ww.broker.Facts.ReportTicket(t.Context(), known)
		}
		if err != nil {
			t.Error(err)
		}
	}
	store.before.Store(&run)
	if _, err := ww.collect(t, agent(noon), dbFor("INC-7"), noon); !errors.Is(err, broker.ErrTicketUnfit) {
		t.Errorf("got %v", err)
	}
	if store.before.Load() != nil || w.system.working(noon) != before || ww.count(t, broker.LeaseActive) != 0 {
		t.Errorf("%d credentials more, %d leases", w.system.working(noon)-before, ww.count(t, broker.LeaseActive))
	}
}
