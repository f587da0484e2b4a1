package broker_test

import (
	"context"
	"errors"
	"slices"
	"sync"
	"testing"
	"time"

	"accessbroker.internal/broker"
	"accessbroker.internal/notify"
)

// A receiver is a notifier that records its calls.
type receiver struct {
	mu    sync.Mutex
	calls []call
	err   error
}

type call struct {
	event   broker.NoticeEvent
	id      broker.NoticeID
	earlier []string
	notice  broker.Notice
}

func (r *receiver) Notify(_ context.Context, n *broker.Notice, _ *broker.Request, earlier []string, _ time.Time) (string, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.calls = append(r.calls, call{n.Event, n.ID, earlier, *n})
	return "ref-" + string(n.Event), r.err
}

func (r *receiver) events() (out []broker.NoticeEvent) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, c := range r.calls {
		out = append(out, c.event)
	}
	return out
}

func (w *world) deliver(t *testing.T, at time.Time) {
	t.Helper()
	if _, err := w.outbox.Deliver(t.Context(), at); err != nil {
		t.Fatal(err)
	}
}

// setNotifiers replaces the notifiers, as a reload of the configuration does.
func (w *world) setNotifiers(t *testing.T, byChannel map[string]notify.Notifier) {
	t.Helper()
	rules := *w.broker.Rules()
	rules.PeopleChannel = byChannel[broker.PeopleChannel] != nil
	if err := w.broker.SetRules(t.Context(), broker.Caller{At: noon}, &rules); err != nil {
		t.Fatal(err)
	}
	w.outbox.SetNotifiers(byChannel)
}

func (w *world) withChannel(t *testing.T, r *receiver) *world {
	t.Helper()
	w.setNotifiers(t, map[string]notify.Notifier{"hook:support": r})
	return w
}

// A pending request is notified once. The notice of the decision has the reference
// of the earlier message.
func TestGroupIsNotifiedOfRequestAndDecision(t *testing.T) {
	r := &receiver{}
	w := peopleWorld(t, `@approval("1 of support")`).withChannel(t, r)
	asked := w.ask(t, read("tickets:close"))
	w.deliver(t, noon)
	w.deliver(t, noon.Add(time.Second))
	if got := r.events(); !slices.Equal(got, []broker.NoticeEvent{broker.NoticePending}) {
		t.Fatalf("got events %v", got)
	}
	if _, err := w.vote(t, approver("ben", noon), asked, yes, noon.Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	w.deliver(t, noon.Add(time.Minute))
	if got := r.events(); !slices.Equal(got, []broker.NoticeEvent{broker.NoticePending, broker.NoticeApproved}) {
		t.Fatalf("got events %v", got)
	}
	if !slices.Equal(r.calls[1].earlier, []string{"ref-request.pending"}) {
		t.Errorf("got earlier references %q", r.calls[1].earlier)
	}
}

func TestNoticeIsDropped(t *testing.T) {
	for name, test := range map[string]struct {
		err    error
		before func(*testing.T, *world, *broker.Request)
		at     time.Duration
		want   []broker.NoticeEvent
	}{
		"the request was denied": {
			before: func(t *testing.T, w *world, r *broker.Request) {
				if _, err := w.vote(t, approver("ben", noon), r, denial, noon); err != nil {
					t.Fatal(err)
				}
			},
			want: []broker.NoticeEvent{broker.NoticeDenied},
		},
		"the request lapsed":     {at: 2 * time.Hour},
		"the channel is gone":    {err: notify.ErrChannelGone, want: []broker.NoticeEvent{broker.NoticePending}},
		"the channel is unknown": {before: func(t *testing.T, w *world, _ *broker.Request) { w.setNotifiers(t, nil) }},
		"the notice expired": {
			before: func(t *testing.T, w *world, r *broker.Request) {
				if _, err := w.vote(t, approver("ben", noon), r, yes, noon); err != nil {
					t.Fatal(err)
				}
			},
			at: 25 * time.Hour,
		},
	} {
		t.Run(name, func(t *testing.T) {
			r := &receiver{err: test.err}
			w := peopleWorld(t, `@approval("1 of support")`).withChannel(t, r)
			asked := w.ask(t, read("tickets:close"))
			if test.before != nil {
				test.before(t, w, asked)
			}
			for range 3 {
				w.deliver(t, noon.Add(test.at))
				w.withChannel(t, r) // would receive a notice that is left
				test.at += 10 * time.Minute
			}
			if got := r.events(); !slices.Equal(got, test.want) {
				t.Errorf("got events %v, want %v", got, test.want)
			}
		})
	}
}

// queued counts the undelivered notices of a channel by event.
func (w *world) queued(t *testing.T, channel string) map[broker.NoticeEvent]int {
	t.Helper()
	count := map[broker.NoticeEvent]int{}
	err := w.store.View(t.Context(), func(tx broker.Tx) error {
		for _, urgent := range []bool{true, false} {
			list, err := tx.Notices(broker.NoticeQuery{Channel: channel, Urgent: urgent, Now: noon.Add(1000 * time.Hour), Limit: 10_000})
			if err != nil {
				return err
			}
			for _, n := range list {
				count[n.Event]++
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return count
}

// enqueue adds n notices about a request.
func (w *world) enqueue(t *testing.T, r *broker.Request, channel string, event broker.NoticeEvent, n int) {
	t.Helper()
	err := w.store.Update(t.Context(), nil, func(tx broker.Tx) error {
		for i := range n {
			id := broker.NoticeID{byte(i >> 8), byte(i), 1}
			copy(id[3:], event)
			tx.Put(&broker.Notice{ID: id, Event: event, Request: r.ID, Group: "support", Channel: channel,
				Created: noon, Due: noon, Expires: noon.Add(24 * time.Hour), Requester: r.Requester.ID})
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// A failing channel with many notices does not delay another one.
func TestFullChannelDelaysNoOther(t *testing.T) {
	failing, quick := &receiver{err: errors.New("no route")}, &receiver{}
	w := peopleWorld(t, `@approval("1 of support")`)
	w.setNotifiers(t, map[string]notify.Notifier{"hook:support": failing, "hook:security": quick})
	r := w.ask(t, read("tickets:close"))
	r.Requester.ID = "" // so that they are no backlog of one requester
	w.enqueue(t, r, "hook:support", broker.NoticePending, 5000)
	w.deliver(t, noon)
	w.ask(t, withReason(breakGlass("tickets:read"), "the till is on fire"))
	w.deliver(t, noon)
	if got := quick.events(); !slices.Equal(got, []broker.NoticeEvent{broker.NoticeBreakGlass}) {
		t.Errorf("the other channel got %v", got)
	}
	if got := failing.events(); len(got) != 1 {
		t.Errorf("the failing channel got %d calls, want 1", len(got))
	}
}

func TestUrgentNoticesComeFirst(t *testing.T) {
	r := &receiver{}
	w := peopleWorld(t, `@approval("1 of support")`).withChannel(t, r)
	w.ask(t, read("tickets:close"))
	if _, err := w.broker.Ask(t.Context(), broker.Self(agent(noon), noon.Add(time.Minute)), withReason(breakGlass("tickets:read"), "the till is on fire"), broker.IdempotencyKey{}); err != nil {
		t.Fatal(err)
	}
	w.deliver(t, noon.Add(time.Minute))
	if got := r.events(); len(got) < 2 || got[0] != broker.NoticeBreakGlass || got[len(got)-1] != broker.NoticePending {
		t.Errorf("got events %v", got)
	}
}

// A request that is withdrawn before its first notice causes no message.
func TestWithdrawalBeforeDelivery(t *testing.T) {
	r := &receiver{}
	w := peopleWorld(t, `@approval("1 of support")`).withChannel(t, r)
	delivered := w.ask(t, read("tickets:close"))
	w.deliver(t, noon)
	undelivered := w.ask(t, withReason(read("tickets:close"), "another one"))
	for _, asked := range []*broker.Request{delivered, undelivered} {
		if _, err := w.broker.Withdraw(t.Context(), broker.Self(agent(noon), noon), asked.ID); err != nil {
			t.Fatal(err)
		}
	}
	w.deliver(t, noon)
	if got := r.events(); !slices.Equal(got, []broker.NoticeEvent{broker.NoticePending, broker.NoticeWithdrawn}) {
		t.Errorf("got events %v", got)
	}
}

// The outbox trims the backlog of one requester: out-of-date notices first, then those
// that ask for approval, and never urgent ones.
func TestOneRequesterCannotFillTheQueue(t *testing.T) {
	r := &receiver{err: errors.New("no route")}
	w := peopleWorld(t, `@approval("1 of support")`).withChannel(t, r)
	w.deliver(t, noon)
	open := w.ask(t, read("tickets:close"))
	over := w.ask(t, withReason(read("tickets:close"), "another one"))
	if _, err := w.broker.Withdraw(t.Context(), broker.Self(agent(noon), noon), over.ID); err != nil {
		t.Fatal(err)
	}
	w.enqueue(t, over, "hook:support", broker.NoticePending, 300)
	w.enqueue(t, over, "hook:support", broker.NoticeWithdrawn, 300)
	w.enqueue(t, open, "hook:support", broker.NoticeBreakGlass, 300)
	w.deliver(t, noon)
	if got := w.queued(t, "hook:support"); got[broker.NoticePending] != 1 || got[broker.NoticeWithdrawn] != 0 || got[broker.NoticeBreakGlass] != 300 {
		t.Errorf("got %v queued, want 1 pending, no withdrawn and 300 break-glass", got)
	}
	w.enqueue(t, open, "hook:support", broker.NoticePending, 300)
	w.deliver(t, noon)
	if got := w.queued(t, "hook:support"); got[broker.NoticePending] != 100 || got[broker.NoticeBreakGlass] != 300 {
		t.Errorf("got %v queued, want 100 pending and 300 break-glass", got)
	}
}

// A notice has the references of all earlier messages about the request on its
// channel.
func TestNoticeHasAllEarlierReferences(t *testing.T) {
	r := &receiver{}
	w := peopleWorld(t, `@approval("1 of support") @escalate("15m to security")`).withChannel(t, r) // security's is support's
	asked := w.ask(t, read("tickets:close"))
	w.deliver(t, noon)
	w.deliver(t, noon.Add(15*time.Minute))
	if _, err := w.vote(t, approver("ben", noon.Add(20*time.Minute)), asked, yes, noon.Add(20*time.Minute)); err != nil {
		t.Fatal(err)
	}
	w.deliver(t, noon.Add(20*time.Minute))
	if got := r.events(); !slices.Equal(got, []broker.NoticeEvent{broker.NoticePending, broker.NoticeEscalated, broker.NoticeApproved}) {
		t.Fatalf("got events %v", got)
	}
	if got := r.calls[2].earlier; !slices.Equal(got, []string{"ref-request.pending", "ref-request.escalated"}) {
		t.Errorf("got earlier references %q", got)
	}
}
