package broker_test

import (
	"errors"
	"testing"
	"time"

	"accessbroker.internal/broker"
)

// listedWorld is a world whose tickets have places in status lists.
type listedWorld struct {
	*world
	t       *testing.T
	issuers map[string]broker.Issuer
}

func newListedWorld(t *testing.T) *listedWorld {
	w := &listedWorld{newWorld(t, worldConfig{}), t, map[string]broker.Issuer{"tickets": &signer{}}}
	w.restartListed(nil)
	return w
}

// restartListed starts the broker again, with changed rules.
func (w *listedWorld) restartListed(change func(broker.Catalogue)) {
	w.t.Helper()
	rules := testRules(w.t, testPolicies)
	rules.Catalogue["tickets"].StatusList = true
	if change != nil {
		change(rules.Catalogue)
	}
	w.broker = start(w.t, broker.Config{Store: w.store, Issuers: w.issuers, Blocks: w.store.Blocks, Statuses: w.store}, rules)
}

func (w *listedWorld) issue(now time.Time) *broker.Lease {
	w.t.Helper()
	issued, _, err := w.broker.AskAndCollect(w.t.Context(), broker.Self(agent(now), now), read("tickets:read"), broker.IdempotencyKey{})
	if err != nil {
		w.t.Fatal(err)
	}
	if issued.Lease.Listed.IsZero() || issued.Lease.Listed.Index >= broker.StatusListSize {
		w.t.Fatalf("got the place %+v", issued.Lease.Listed)
	}
	return issued.Lease
}

// invalid reports whether the list marks the lease's token as invalid.
func (w *listedWorld) invalid(l *broker.Lease, now time.Time) bool {
	w.t.Helper()
	marks, err := w.broker.StatusLists.Marks(w.t.Context(), l.Listed.List, now)
	if err != nil {
		w.t.Fatal(err)
	}
	return marks.Bits[l.Listed.Index/8]&(1<<(l.Listed.Index%8)) != 0
}

func (w *listedWorld) lists(now time.Time) int {
	w.t.Helper()
	lists, err := w.broker.StatusLists.Lists(w.t.Context(), now)
	if err != nil {
		w.t.Fatal(err)
	}
	return len(lists)
}

// Tokens share a list for an hour. A broker that starts again opens another one, so that no
// place is used twice, and still serves the old one.
func TestStatusListsOverTime(t *testing.T) {
	// Not parallel: IDs of other tests would be later than this test's clock. They may be
	// already.
	noon := broker.NewLeaseID(noon).Time().Add(time.Millisecond)
	w := newListedWorld(t)
	first, second := w.issue(noon), w.issue(noon.Add(59*time.Minute))
	if first.Listed.List != second.Listed.List || first.Listed.Index == second.Listed.Index {
		t.Errorf("within an hour: got the places %v and %v", first.Listed, second.Listed)
	}
	third := w.issue(noon.Add(time.Hour))
	if third.Listed.List == first.Listed.List {
		t.Error("after an hour: the same list")
	}
	now := noon.Add(time.Hour)
	if _, err := w.broker.Revoke(t.Context(), broker.Self(agent(now), now), second.ID, ""); err != nil {
		t.Fatal(err)
	}
	w.restartListed(nil)
	fourth := w.issue(now)
	if fourth.Listed.List == third.Listed.List {
		t.Error("after a restart: the same list")
	}
	if w.lists(now) != 3 {
		t.Errorf("got %d lists, want 3", w.lists(now))
	}
	for l, want := range map[*broker.Lease]bool{first: false, second: true, third: false, fourth: false} {
		if got := w.invalid(l, now); got != want {
			t.Errorf("lease %s: got invalid %t, want %t", l.ID, got, want)
		}
	}
	end := noon.Add(time.Hour + 15*time.Minute) // when the last token of the first list has expired
	if _, err := w.broker.StatusLists.Marks(t.Context(), first.Listed.List, end); !errors.Is(err, broker.ErrNotFound) {
		t.Errorf("a list of expired tokens: got %v, want not found", err)
	}
	if _, err := w.broker.StatusLists.Marks(t.Context(), broker.StatusListID{1}, now); !errors.Is(err, broker.ErrNotFound) {
		t.Errorf("a list that was never opened: got %v, want not found", err)
	}
}

// Tokens of an entitlement that left the catalogue are invalid, as for an introspection.
func TestStatusListFollowsTheCatalogue(t *testing.T) {
	t.Parallel()
	w := newListedWorld(t)
	l := w.issue(noon)
	if w.invalid(l, noon) {
		t.Fatal("a new token is invalid")
	}
	w.restartListed(func(c broker.Catalogue) { delete(c, "tickets") })
	if !w.invalid(l, noon) {
		t.Error("without the entitlement: the token is valid")
	}
	w.restartListed(nil)
	if w.invalid(l, noon) {
		t.Error("with the entitlement again: the token is invalid")
	}
}

// The longest token of a list decides how long it is served: a longer one opens another list.
func TestStatusListCoversItsTokens(t *testing.T) {
	noon := broker.NewLeaseID(noon).Time().Add(time.Millisecond) // see TestStatusListsOverTime
	w := newListedWorld(t)
	short := w.issue(noon)
	rules := testRules(t, testPolicies)
	rules.Catalogue["tickets"].StatusList, rules.Catalogue["tickets"].MaxTTL, rules.Catalogue["tickets"].DefaultTTL = true, 3*time.Hour, 3*time.Hour
	if err := w.broker.SetRules(t.Context(), broker.Caller{At: noon}, rules); err != nil {
		t.Fatal(err)
	}
	now := noon.Add(time.Minute)
	issued, _, err := w.broker.AskAndCollect(t.Context(), broker.Self(agent(now), now), broker.Ask{Entitlement: "tickets", Scopes: []string{"tickets:read"}, TTL: 3 * time.Hour}, broker.IdempotencyKey{})
	if err != nil {
		t.Fatal(err)
	}
	long := issued.Lease
	if long.Listed.List == short.Listed.List {
		t.Error("a token that outlives the list is in it")
	}
	if w.invalid(long, long.Expires.Add(-time.Second)) {
		t.Error("a token that is about to expire is invalid")
	}
}

// Tokens without status_list have no place, and a broker whose store has no lists issues none
// that needs one.
func TestTokensWithoutStatusLists(t *testing.T) {
	t.Parallel()
	w := newListedWorld(t)
	w.restartListed(func(c broker.Catalogue) { c["tickets"].StatusList = false })
	issued, _, err := w.broker.AskAndCollect(t.Context(), broker.Self(agent(noon), noon), read("tickets:read"), broker.IdempotencyKey{})
	if err != nil || !issued.Lease.Listed.IsZero() || w.lists(noon) != 0 {
		t.Errorf("got %+v, %v, and %d lists", issued, err, w.lists(noon))
	}
	rules := testRules(t, testPolicies)
	rules.Catalogue["tickets"].StatusList = true
	b := start(t, broker.Config{Store: w.store, Issuers: w.issuers}, rules)
	now := noon.Add(time.Minute)
	if _, _, err := b.AskAndCollect(t.Context(), broker.Self(agent(now), now), read("tickets:comment"), broker.IdempotencyKey{}); !errors.Is(err, broker.ErrUnavailable) {
		t.Errorf("without a reader: got %v, want unavailable", err)
	}
}

// A token below one that was revoked is invalid in its list before its own lease has ended: the
// end reaches it only within moments, and an introspection follows the chain.
func TestStatusListFollowsTheChain(t *testing.T) {
	t.Parallel()
	w := newListedWorld(t)
	parent := w.issue(noon)
	child := *parent
	child.ID, child.Request, child.Parent = broker.NewLeaseID(noon), broker.NewRequestID(noon), parent.ID
	child.Listed.Index = (parent.Listed.Index + 1) % broker.StatusListSize
	other := child
	other.ID, other.Request, other.Parent = broker.NewLeaseID(noon), broker.NewRequestID(noon), broker.LeaseID{}
	other.Listed.Index = (parent.Listed.Index + 2) % broker.StatusListSize
	link := broker.StandingKey{Kind: broker.FactLease, Name: parent.ID.String()}
	put := func(rows ...broker.Row) {
		t.Helper()
		if err := w.store.Update(t.Context(), nil, func(tx broker.Tx) error {
			for _, r := range rows {
				tx.Put(r)
			}
			return nil
		}); err != nil {
			t.Fatal(err)
		}
	}
	put(&child, &other, &broker.Request{
		ID: child.Request, Status: broker.RequestApproved, Requester: agent(noon), Entitlement: "tickets", RestsOn: []broker.StandingKey{link},
		CollectUntil: child.Expires, FirstExpires: child.Expires, Created: noon,
	})
	if w.invalid(&child, noon) {
		t.Fatal("a child of an active token is invalid")
	}
	put(&broker.Standing{StandingKey: link, Version: 1, Ended: noon, Fallen: noon, Ending: true})
	if !w.invalid(&child, noon) || w.invalid(&other, noon) {
		t.Errorf("while the end is worked off: child %t, another token %t; want true, false", w.invalid(&child, noon), w.invalid(&other, noon))
	}
	child.Status, child.Ended = broker.LeaseRevoked, noon
	put(&child, &broker.Standing{StandingKey: link, Version: 2, Ended: noon, Fallen: noon})
	if !w.invalid(&child, noon) || w.invalid(&other, noon) {
		t.Error("after the end: the places differ")
	}
}
