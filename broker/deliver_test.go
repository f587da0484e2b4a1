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

// A receiver is a channel that writes down what it is told.
type receiver struct {
	mu      sync.Mutex
	told    []told
	answer  error
	block   chan struct{} // nil: it answers at once
	entered chan struct{}
}

type told struct {
	event   broker.NoticeEvent
	id      broker.NoticeID
	earlier []string
	notice  broker.Notice
}

func (r *receiver) Notify(ctx context.Context, n *broker.Notice, _ *broker.Request, earlier []string, _ time.Time) (string, error) {
	if r.block != nil {
		r.entered <- struct{}{}
		select {
		case <-r.block:
		case <-ctx.Done():
			return "", ctx.Err()
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.told = append(r.told, told{n.Event, n.ID, earlier, *n})
	return "ref-" + string(n.Event), r.answer
}

func (r *receiver) events() (out []broker.NoticeEvent) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, t := range r.told {
		out = append(out, t.event)
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

// What waits is told once, and what was made of it later leads back to it.
func TestPeopleAreTold(t *testing.T) {
	r := &receiver{}
	w := peopleWorld(t, `@approval("1 of support")`).withChannel(t, r)
	asked := w.ask(t, read("tickets:close"))
	w.deliver(t, noon)
	w.deliver(t, noon.Add(time.Second))
	if got := r.events(); !slices.Equal(got, []broker.NoticeEvent{broker.NoticePending}) {
		t.Fatalf("told %v", got)
	}
	if _, err := w.vote(t, approver("ben", noon), asked, yes, noon.Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	w.deliver(t, noon.Add(time.Minute))
	if got := r.events(); !slices.Equal(got, []broker.NoticeEvent{broker.NoticePending, broker.NoticeApproved}) {
		t.Fatalf("told %v", got)
	}
	if !slices.Equal(r.told[1].earlier, []string{"ref-request.pending"}) {
		t.Errorf("the later message does not know the earlier one: %q", r.told[1].earlier)
	}
}

// A channel that fails hears the same notice again, later and later, until its
// time is over; nothing is lost by a restart.
func TestTellingAgain(t *testing.T) {
	r := &receiver{answer: errors.New("no route")}
	w := peopleWorld(t, `@approval("1 of support") @lapse_after("48h")`).withChannel(t, r)
	w.ask(t, read("tickets:close"))
	w.deliver(t, noon)
	w.deliver(t, noon.Add(100*time.Millisecond))
	if len(r.events()) != 1 {
		t.Fatalf("a channel that just failed was told %d times", len(r.events()))
	}
	w.broker = w.restart(t, map[string]broker.Issuer{"tickets": signer{}, "db": &system{}})
	w.outbox = notify.NewOutbox(notify.OutboxConfig{Store: w.store})
	w.withChannel(t, r)
	w.deliver(t, noon.Add(time.Hour))
	r.answer = &notify.RetryAfter{Err: errors.New("too many"), After: 10 * time.Minute}
	w.deliver(t, noon.Add(2*time.Hour))
	w.deliver(t, noon.Add(2*time.Hour+9*time.Minute))
	if len(r.events()) != 3 {
		t.Fatalf("told %d times; it had said when to come back", len(r.events()))
	}
	r.answer = nil
	w.deliver(t, noon.Add(2*time.Hour+11*time.Minute))
	w.deliver(t, noon.Add(3*time.Hour))
	if len(r.events()) != 4 {
		t.Fatalf("told %d times", len(r.events()))
	}
	for _, again := range r.told {
		if again.id != r.told[0].id {
			t.Error("a notice that is told again has another id")
		}
	}
}

func TestTellingEnds(t *testing.T) {
	for name, test := range map[string]struct {
		answer error
		before func(*testing.T, *world, *broker.Request)
		at     time.Duration
		want   []broker.NoticeEvent
	}{
		"what was decided meanwhile is not asked for": {
			before: func(t *testing.T, w *world, r *broker.Request) {
				if _, err := w.vote(t, approver("ben", noon), r, broker.Vote{}, noon); err != nil {
					t.Fatal(err)
				}
			},
			want: []broker.NoticeEvent{broker.NoticeDenied},
		},
		"what lapsed is not asked for":  {at: 2 * time.Hour},
		"a channel that is gone":        {answer: notify.ErrChannelGone, want: []broker.NoticeEvent{broker.NoticePending}},
		"a channel that does not exist": {before: func(t *testing.T, w *world, _ *broker.Request) { w.setNotifiers(t, nil) }},
		"what was tried for a whole day": {
			before: func(t *testing.T, w *world, r *broker.Request) {
				if _, err := w.vote(t, approver("ben", noon), r, yes, noon); err != nil {
					t.Fatal(err)
				}
			},
			at: 25 * time.Hour,
		},
	} {
		t.Run(name, func(t *testing.T) {
			r := &receiver{answer: test.answer}
			w := peopleWorld(t, `@approval("1 of support")`).withChannel(t, r)
			asked := w.ask(t, read("tickets:close"))
			if test.before != nil {
				test.before(t, w, asked)
			}
			for range 3 {
				w.deliver(t, noon.Add(test.at))
				w.withChannel(t, r) // whatever is left would be told now
				test.at += 10 * time.Minute
			}
			if got := r.events(); !slices.Equal(got, test.want) {
				t.Errorf("told %v, not %v", got, test.want)
			}
		})
	}
}

// A channel that hangs holds up no other.
func TestSlowChannel(t *testing.T) {
	slow, quick := &receiver{block: make(chan struct{}), entered: make(chan struct{}, 2)}, &receiver{}
	w := peopleWorld(t, `@approval("1 of support, 1 of security")`)
	w.setNotifiers(t, map[string]notify.Notifier{"hook:support": slow, "hook:security": quick})
	w.ask(t, read("tickets:close"))
	done := make(chan error, 1)
	go func() {
		_, err := w.outbox.Deliver(t.Context(), noon)
		done <- err
	}()
	<-slow.entered
	other := read("tickets:close")
	other.Justification = "another one"
	w.ask(t, other)
	for len(quick.events()) < 2 { // each returns although the slow one hangs
		w.deliver(t, noon.Add(time.Second))
	}
	close(slow.block)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

// waiting counts what a channel has waiting, by event.
func (w *world) waiting(t *testing.T, channel string) map[broker.NoticeEvent]int {
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

// queue puts notices of a request, as if somebody had made as many.
func (w *world) queue(t *testing.T, r *broker.Request, channel string, event broker.NoticeEvent, n int) {
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

// A channel that fails, and has much to be told, hides nothing from another one.
func TestFullChannelHidesNoOther(t *testing.T) {
	failing, quick := &receiver{answer: errors.New("no route")}, &receiver{}
	w := peopleWorld(t, `@approval("1 of support")`)
	w.setNotifiers(t, map[string]notify.Notifier{"hook:support": failing, "hook:security": quick})
	r := w.ask(t, read("tickets:close"))
	r.Requester.ID = "" // as many requesters have
	w.queue(t, r, "hook:support", broker.NoticePending, 5000)
	w.deliver(t, noon)
	w.ask(t, withReason(glass("tickets:read"), "the till is on fire"))
	w.deliver(t, noon)
	if got := quick.events(); !slices.Equal(got, []broker.NoticeEvent{broker.NoticeBreakGlass}) {
		t.Errorf("the other channel was told %v", got)
	}
	if got := failing.events(); len(got) != 1 {
		t.Errorf("the channel that fails was called %d times", len(got))
	}
}

// An alarm comes before all that waits for its channel longer.
func TestAlarmsComeFirst(t *testing.T) {
	r := &receiver{}
	w := peopleWorld(t, `@approval("1 of support")`).withChannel(t, r)
	w.ask(t, read("tickets:close"))
	if _, err := w.broker.Ask(t.Context(), broker.Self(agent(noon), noon.Add(time.Minute)), withReason(glass("tickets:read"), "the till is on fire"), broker.IdempotencyKey{}); err != nil {
		t.Fatal(err)
	}
	w.deliver(t, noon.Add(time.Minute))
	if got := r.events(); len(got) < 2 || got[0] != broker.NoticeBreakGlass || got[len(got)-1] != broker.NoticePending {
		t.Errorf("told %v", got)
	}
}

// Whoever withdraws before anybody was asked leaves nothing to be told.
func TestWithdrawnUnheard(t *testing.T) {
	r := &receiver{}
	w := peopleWorld(t, `@approval("1 of support")`).withChannel(t, r)
	heard := w.ask(t, read("tickets:close"))
	w.deliver(t, noon)
	unheard := w.ask(t, withReason(read("tickets:close"), "another one"))
	for _, asked := range []*broker.Request{heard, unheard} {
		if _, err := w.broker.Withdraw(t.Context(), broker.Self(agent(noon), noon), asked.ID); err != nil {
			t.Fatal(err)
		}
	}
	w.deliver(t, noon)
	if got := r.events(); !slices.Equal(got, []broker.NoticeEvent{broker.NoticePending, broker.NoticeWithdrawn}) {
		t.Errorf("told %v", got)
	}
}

// One requester fills no queue: what is long over goes first, then what asks,
// and an alarm never.
func TestOneRequesterFillsNoQueue(t *testing.T) {
	r := &receiver{answer: errors.New("no route")}
	w := peopleWorld(t, `@approval("1 of support")`).withChannel(t, r)
	w.deliver(t, noon)
	open := w.ask(t, read("tickets:close"))
	over := w.ask(t, withReason(read("tickets:close"), "another one"))
	if _, err := w.broker.Withdraw(t.Context(), broker.Self(agent(noon), noon), over.ID); err != nil {
		t.Fatal(err)
	}
	w.queue(t, over, "hook:support", broker.NoticePending, 300)
	w.queue(t, over, "hook:support", broker.NoticeWithdrawn, 300)
	w.queue(t, open, "hook:support", broker.NoticeBreakGlass, 300)
	w.deliver(t, noon)
	if got := w.waiting(t, "hook:support"); got[broker.NoticePending] != 1 || got[broker.NoticeWithdrawn] != 0 || got[broker.NoticeBreakGlass] != 300 {
		t.Errorf("what is over still waits, or an alarm does not: %v", got)
	}
	w.queue(t, open, "hook:support", broker.NoticePending, 300)
	w.deliver(t, noon)
	if got := w.waiting(t, "hook:support"); got[broker.NoticePending] != 100 || got[broker.NoticeBreakGlass] != 300 {
		t.Errorf("one requester has waiting %v", got)
	}
}

// What is told of a request later leads back to all messages, also if some of
// them went to a channel that was told before.
func TestEveryMessageIsKnown(t *testing.T) {
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
		t.Fatalf("told %v", got)
	}
	if got := r.told[2].earlier; !slices.Equal(got, []string{"ref-request.pending", "ref-request.escalated"}) {
		t.Errorf("what is told last knows of %q", got)
	}
}
