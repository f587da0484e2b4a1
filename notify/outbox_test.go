package notify_test

import (
	"context"
	"errors"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"accessbroker.internal/broker"
	"accessbroker.internal/internal/storetest/tables"
	"accessbroker.internal/notify"
	"accessbroker.internal/store"
)

var noon = time.Date(2026, 6, 1, 12, 0, 0, 0, time.UTC)

// A receiver is a Notifier that records its calls.
type receiver struct {
	mu      sync.Mutex
	calls   []broker.Notice
	err     error
	block   chan struct{} // nil: return at once
	entered chan struct{}
}

func (r *receiver) Notify(ctx context.Context, n *broker.Notice, _ *broker.Request, _ []string, _ time.Time) (string, error) {
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
	r.calls = append(r.calls, *n)
	return "", r.err
}

func (r *receiver) count() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.calls)
}

// A queue is a store with notices about one pending request and one withdrawn one.
type queue struct {
	t                  *testing.T
	store              *store.Store
	outbox             *notify.Outbox
	pending, withdrawn broker.RequestID
	notices            int
}

func newQueue(t *testing.T, byChannel map[string]notify.Notifier) *queue {
	t.Helper()
	s, err := store.Open(t.Context(), store.Config{URL: tables.URL(t, filepath.Join(t.TempDir(), "broker.db")), Reserve: 1 << 16, NoSync: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	q := &queue{t: t, store: s, pending: broker.RequestID{1}, withdrawn: broker.RequestID{2}}
	q.restart(byChannel)
	q.update(func(tx broker.Tx) {
		tx.Put(&broker.Request{ID: q.pending, Status: broker.RequestPending, Created: noon, Lapses: noon.Add(48 * time.Hour)})
		tx.Put(&broker.Request{ID: q.withdrawn, Status: broker.RequestWithdrawn, Created: noon})
	}, q.pending, q.withdrawn)
	return q
}

// restart replaces the outbox, as a restart of the broker does.
func (q *queue) restart(byChannel map[string]notify.Notifier) {
	q.outbox = notify.NewOutbox(notify.OutboxConfig{Store: q.store})
	q.outbox.SetNotifiers(byChannel)
}

func (q *queue) update(f func(broker.Tx), reads ...broker.Key) {
	q.t.Helper()
	if err := q.store.Update(q.t.Context(), reads, func(tx broker.Tx) error { f(tx); return nil }); err != nil {
		q.t.Fatal(err)
	}
}

// add adds n notices of one requester that are due at noon.
func (q *queue) add(channel string, event broker.NoticeEvent, request broker.RequestID, n int) {
	q.t.Helper()
	q.update(func(tx broker.Tx) {
		for range n {
			q.notices++
			tx.Put(&broker.Notice{
				ID: broker.NoticeID{byte(q.notices >> 8), byte(q.notices)}, Event: event, Request: request, Channel: channel,
				Created: noon, Due: noon, Expires: noon.Add(24 * time.Hour), Requester: "spiffe://acme.test/a",
			})
		}
	})
}

func (q *queue) deliver(at time.Time) {
	q.t.Helper()
	if _, err := q.outbox.Deliver(q.t.Context(), at); err != nil {
		q.t.Fatal(err)
	}
}

// A failed notice is retried later and later with the same id, also after a
// restart, or when the receiver asks for it.
func TestFailedNoticeIsRetried(t *testing.T) {
	r := &receiver{err: errors.New("no route")}
	byChannel := map[string]notify.Notifier{"hook:dba": r}
	q := newQueue(t, byChannel)
	q.add("hook:dba", broker.NoticePending, q.pending, 1)
	for _, step := range []struct {
		after   time.Duration
		err     error
		restart bool
		calls   int
	}{
		{after: 0, err: r.err, calls: 1},
		{after: 100 * time.Millisecond, err: r.err, calls: 1},
		{after: time.Hour, err: r.err, restart: true, calls: 2},
		{after: 2 * time.Hour, err: &notify.RetryAfter{Err: errors.New("too many"), After: 10 * time.Minute}, calls: 3},
		{after: 2*time.Hour + 9*time.Minute, calls: 3},
		{after: 2*time.Hour + 11*time.Minute, calls: 4},
		{after: 3 * time.Hour, calls: 4},
	} {
		if step.restart {
			q.restart(byChannel)
		}
		r.err = step.err
		q.deliver(noon.Add(step.after))
		if got := r.count(); got != step.calls {
			t.Fatalf("after %s: got %d calls, want %d", step.after, got, step.calls)
		}
	}
	for _, n := range r.calls {
		if n.ID != r.calls[0].ID {
			t.Errorf("got id %s for a retry of %s", n.ID, r.calls[0].ID)
		}
	}
}

// A process whose call of a receiver takes so long that another process takes over the channel
// and delivers the notice does not put the notice into the queue again.
func TestLateFailureDoesNotRepeatADelivery(t *testing.T) {
	late, next := &receiver{block: make(chan struct{}), entered: make(chan struct{}, 1), err: errors.New("cut")}, &receiver{}
	q := newQueue(t, map[string]notify.Notifier{"hook:dba": late})
	q.add("hook:dba", broker.NoticePending, q.pending, 1)
	paused, done := q.outbox, make(chan error, 1)
	go func() {
		_, err := paused.Deliver(t.Context(), noon)
		done <- err
	}()
	<-late.entered
	q.restart(map[string]notify.Notifier{"hook:dba": next})
	q.deliver(noon)
	close(late.block)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	q.deliver(noon.Add(time.Hour))
	if got := next.count(); got != 1 {
		t.Errorf("got %d deliveries by the process that took over, want 1", got)
	}
}

func TestSlowChannelDelaysNoOther(t *testing.T) {
	slow, quick := &receiver{block: make(chan struct{}), entered: make(chan struct{}, 2)}, &receiver{}
	q := newQueue(t, map[string]notify.Notifier{"hook:slow": slow, "hook:quick": quick})
	q.add("hook:slow", broker.NoticePending, q.pending, 1)
	done := make(chan error, 1)
	go func() {
		_, err := q.outbox.Deliver(t.Context(), noon)
		done <- err
	}()
	<-slow.entered
	q.add("hook:quick", broker.NoticePending, q.pending, 2)
	q.deliver(noon) // returns although the slow channel hangs
	if got := quick.count(); got != 2 {
		t.Errorf("got %d calls of the quick channel, want 2", got)
	}
	close(slow.block)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if got := slow.count(); got != 1 {
		t.Errorf("got %d calls of the slow channel, want 1", got)
	}
}

// If more than 100 notices about a requester wait, the outbox drops those that are
// out of date, then the newest that ask for approval, and never urgent ones.
func TestBacklogIsTrimmed(t *testing.T) {
	q := newQueue(t, map[string]notify.Notifier{"hook:dba": &receiver{err: errors.New("no route")}})
	q.add("hook:dba", broker.NoticePending, q.withdrawn, 150)
	q.add("hook:dba", broker.NoticePending, q.pending, 150)
	q.add("hook:dba", broker.NoticeBreakGlass, q.pending, 150)
	q.deliver(noon)
	var pending []broker.NoticeID
	urgent := 0
	err := q.store.View(t.Context(), func(tx broker.Tx) error {
		for _, isUrgent := range []bool{true, false} {
			list, err := tx.Notices(broker.NoticeQuery{Channel: "hook:dba", Urgent: isUrgent, Now: noon.Add(time.Hour), Limit: 1000})
			if err != nil {
				return err
			}
			for _, n := range list {
				if isUrgent {
					urgent++
				} else if n.Request == q.pending {
					pending = append(pending, n.ID)
				} else {
					t.Errorf("notice %s about a withdrawn request remains", n.ID)
				}
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(pending) != 100 || urgent != 150 {
		t.Errorf("got %d pending and %d urgent notices, want 100 and 150", len(pending), urgent)
	}
	newest := broker.NoticeID{300 >> 8, 300 & 0xff}
	if slices.Contains(pending, newest) {
		t.Error("the newest notice remains")
	}
}
