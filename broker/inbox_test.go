package broker_test

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"accessbroker.internal/broker"
)

// ids returns the requests of a page of an inbox, by group.
func groupIDs(in *broker.Inbox) (groups [][]broker.RequestID) {
	for _, g := range in.Groups {
		var ids []broker.RequestID
		for _, r := range g.Requests {
			ids = append(ids, r.ID)
		}
		groups = append(groups, ids)
	}
	return groups
}

func (w *world) inbox(t *testing.T, name string, at time.Time, q broker.InboxQuery) *broker.Inbox {
	t.Helper()
	in, err := w.broker.Inbox(t.Context(), broker.Self(approver(name, at), at), q)
	if err != nil {
		t.Fatal(err)
	}
	return in
}

// Identical requests form groups of bounded size. The pages of the inbox contain every
// group once, in both directions.
func TestInboxGroupsAndPages(t *testing.T) {
	w := peopleWorld(t, `@approval("1 of support")`)
	const n = broker.MaxGroup
	var all []broker.RequestID
	for i := range n {
		ask := read("tickets:close")
		ask.Justification = fmt.Sprintf("duplicate %d", i)
		all = append(all, w.ask(t, ask).ID)
	}
	other := read("tickets:close")
	other.TTL = 5 * time.Minute
	if _, err := w.broker.Ask(t.Context(), broker.Self(agent(noon), noon), other, broker.IdempotencyKey{}); err == nil {
		t.Fatal("one caller has more pending requests than are permitted")
	}
	r, err := w.broker.Ask(t.Context(), broker.Self(workload("spiffe://acme.test/agent/other", noon), noon), other, broker.IdempotencyKey{})
	if err != nil {
		t.Fatal(err)
	}
	in := w.inbox(t, "ben", noon, broker.InboxQuery{})
	if got := groupIDs(in); in.Total != n+1 || in.Matching != n+1 || in.Rows != 2 || !slices.Equal(got[0], all) || !slices.Equal(got[1], []broker.RequestID{r.ID}) {
		t.Fatalf("got %d in %d rows: %v", in.Total, in.Rows, got)
	}
	var pages [][]broker.RequestID
	q := broker.InboxQuery{Single: true, Limit: 8, Order: broker.ByAge}
	for {
		in := w.inbox(t, "ben", noon, q)
		pages = append(pages, slices.Concat(groupIDs(in)...))
		if q.After = in.Next; q.After.IsZero() {
			break
		}
	}
	if got := slices.Concat(pages...); len(pages) != 3 || !slices.Equal(got, append(slices.Clone(all), r.ID)) {
		t.Errorf("got %d pages: %v", len(pages), pages)
	}
	last := w.inbox(t, "ben", noon, broker.InboxQuery{Single: true, Limit: 8, Order: broker.ByAge, After: broker.InboxPlace{ID: all[15]}})
	back := w.inbox(t, "ben", noon, broker.InboxQuery{Single: true, Limit: 8, Order: broker.ByAge, Before: last.Previous})
	if got := slices.Concat(groupIDs(back)...); !slices.Equal(got, pages[1]) || back.First != 8 {
		t.Errorf("the page before the last: got %v from %d, want %v", got, back.First, pages[1])
	}
}

// An inbox that follows single changes equals one that is read anew, also after changes
// that another process made.
func TestInboxFollowsChanges(t *testing.T) {
	w := peopleWorld(t, `@approval("1 of support")`)
	reason := func(i int) broker.Ask {
		ask := read("tickets:close")
		ask.Justification = fmt.Sprint(i)
		return ask
	}
	first := w.ask(t, reason(1))
	if in := w.inbox(t, "ben", noon, broker.InboxQuery{}); in.Total != 1 {
		t.Fatalf("got %d requests, want 1", in.Total)
	}
	shown := w.inbox(t, "ben", noon, broker.InboxQuery{}).Seen
	second, third := w.ask(t, reason(2)), w.ask(t, reason(3))
	if _, err := w.vote(t, approver("cleo", noon), first, yes, noon); err != nil {
		t.Fatal(err)
	}
	if _, err := w.broker.Withdraw(t.Context(), broker.Self(agent(noon), noon), third.ID); err != nil {
		t.Fatal(err)
	}
	if _, _, err := w.broker.AskAndCollect(t.Context(), broker.Self(agent(noon), noon), breakGlass("tickets:read"), broker.IdempotencyKey{}); err != nil {
		t.Fatal(err)
	}
	in := w.inbox(t, "ben", noon, broker.InboxQuery{Seen: shown, Shown: []broker.RequestID{first.ID, second.ID}})
	if in.Total != 2 || in.New != 2 || !slices.Equal(in.Gone, []broker.RequestID{first.ID}) {
		t.Errorf("after changes: got %d requests, %d new, gone %v; want 2, 2, %v", in.Total, in.New, in.Gone, first.ID)
	}
	outside := *second
	outside.Status, outside.Lapses = broker.RequestWithdrawn, time.Time{}
	if err := w.store.Update(t.Context(), []broker.Key{second.ID}, func(tx broker.Tx) error { tx.Put(&outside); return nil }); err != nil {
		t.Fatal(err)
	}
	later := noon.Add(time.Minute)
	if in := w.inbox(t, "ben", later, broker.InboxQuery{Seen: shown}); in.Total != 1 || in.New != 1 {
		t.Errorf("after a change by another process: got %d requests, %d new, want 1, 1", in.Total, in.New)
	}
	if in := w.inbox(t, "ben", later, broker.InboxQuery{Seen: in.Seen}); in.New != 0 {
		t.Errorf("of what was seen: got %d new, want 0", in.New)
	}
}
