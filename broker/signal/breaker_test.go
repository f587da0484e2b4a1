package signal_test

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"accessbroker.internal/audit"
	"accessbroker.internal/broker"
	"accessbroker.internal/broker/signal"
)

// crowd logs in n people, of whom each has a lease.
func (w *world) crowd(t *testing.T, n int) {
	t.Helper()
	for i := range n {
		name := fmt.Sprintf("p%d", i)
		w.logIn(t, name, "", noon)
		if err := w.lease(t, person(name, noon), noon); err != nil {
			t.Fatal(err)
		}
	}
}

func (w *world) preview(t *testing.T, now time.Time) *signal.Preview {
	t.Helper()
	p, err := w.Preview(t.Context(), broker.Self(person("sec", now), now), "okta")
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func (w *world) decide(t *testing.T, p *signal.Preview, release bool, now time.Time) error {
	t.Helper()
	_, err := w.Decide(t.Context(), broker.Self(person("sec", now), now), "okta", signal.Decision{Release: release, Through: p.Through, Digest: p.Digest, Reason: "checked with the provider"})
	return err
}

// notices returns the number of undelivered notices to the operators' channel.
func (w *world) notices(t *testing.T, now time.Time) (list []*broker.Notice) {
	t.Helper()
	err := w.store.View(t.Context(), func(tx broker.Tx) (err error) {
		list, err = tx.Notices(broker.NoticeQuery{Channel: "hook:security", Urgent: true, Now: now, Limit: 100})
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return list
}

// A transmitter that would end more than its share of all leases is stopped, a person is
// notified, and nothing of the rest happens until a person decides, whatever restarts.
func TestMadTransmitterIsStopped(t *testing.T) {
	w := newWorld(t, signal.Rule{MostPercent: 20, Always: 2, Page: "security"})
	w.crowd(t, 20)
	at := noon.Add(10 * time.Minute)
	var last signal.Event
	for i := range 20 {
		now := at.Add(time.Duration(i) * time.Second)
		last = w.event(signal.KindAccountDisabled, fmt.Sprintf("p%d", i), now)
		want := signal.Applied
		if i >= 4 { // 20 percent of 20
			want = signal.Held
		}
		w.apply(t, last, now, want)
	}
	at = at.Add(time.Minute)
	if got := w.live(t, at); got != 16 {
		t.Errorf("got %d live leases, want 16", got)
	}
	// Everything else waits behind them, so that the order stays.
	w.apply(t, w.event(signal.KindAccountEnabled, "p0", at), at, signal.Held)
	w.apply(t, w.event(signal.KindSessionRevoked, "p0", at), at.Add(2*time.Minute), signal.Held)
	w.apply(t, last, at, signal.Replayed)
	if n := w.notices(t, at); len(n) != 1 || n[0].Event != broker.NoticeSignalsHeld || n[0].Page != "/ui/signals/okta" {
		t.Errorf("got notices %+v, want one", n)
	}
	w.restart(t)
	at = at.Add(time.Hour)
	w.apply(t, w.event(signal.KindAccountDisabled, "p19", at), at, signal.Held)
	if got := w.live(t, at); got > 16 {
		t.Errorf("got %d live leases", got)
	}
	p := w.preview(t, at)
	if p.Holding != 19 || p.Events != 19 || p.People != 17 || p.ByKind[signal.KindAccountDisabled] != 17 || len(p.First) != 19 || p.Since.IsZero() {
		t.Errorf("got %+v", p)
	}
	if got := w.kinds(t); got[audit.SignalHeld] != 1 {
		t.Errorf("got records %v", got)
	}
}

func TestReleasedEventsTakeEffect(t *testing.T) {
	w := newWorld(t, signal.Rule{MostPercent: 20, Always: 1})
	w.crowd(t, 10)
	at := noon.Add(10 * time.Minute)
	for i := range 10 {
		if _, err := w.Apply(t.Context(), w.event(signal.KindAccountDisabled, fmt.Sprintf("p%d", i), at), at); err != nil {
			t.Fatal(err)
		}
	}
	at = at.Add(5 * time.Minute)
	p := w.preview(t, at)
	if p.Events != 8 {
		t.Fatalf("got %d events, want 8", p.Events)
	}
	stale := *p
	stale.Digest[0]++
	if err := w.decide(t, &stale, true, at); !errors.Is(err, broker.ErrPreviewStale) {
		t.Errorf("another digest: got %v", err)
	}
	// An event that arrives after the preview is not part of the decision.
	w.logIn(t, "late", "", at)
	w.apply(t, w.event(signal.KindAccountDisabled, "late", at), at, signal.Held)
	if err := w.decide(t, p, true, at); err != nil {
		t.Fatal(err)
	}
	if got := w.live(t, at); got != 0 {
		t.Errorf("got %d live leases, want 0", got)
	}
	// It was judged anew, and is within the share of the next minute.
	if p := w.preview(t, at); p.Events != 0 || p.Holding != 0 || !p.Since.IsZero() {
		t.Errorf("got %+v", p)
	}
	if err := w.decide(t, p, true, at); !errors.Is(err, broker.ErrNotFound) {
		t.Errorf("again: got %v", err)
	}
	if got := w.kinds(t); got[audit.SignalReleased] != 1 || got[audit.FactEnded] != 11 {
		t.Errorf("got records %v", got)
	}
}

func TestDiscardedEventsHaveNoEffect(t *testing.T) {
	w := newWorld(t, signal.Rule{MostPercent: 20, Always: 1})
	w.crowd(t, 10)
	at := noon.Add(10 * time.Minute)
	var events []signal.Event
	for i := range 10 {
		events = append(events, w.event(signal.KindAccountDisabled, fmt.Sprintf("p%d", i), at))
		if _, err := w.Apply(t.Context(), events[i], at); err != nil {
			t.Fatal(err)
		}
	}
	p := w.preview(t, at)
	if err := w.decide(t, p, false, at); err != nil {
		t.Fatal(err)
	}
	if got := w.live(t, at); got != 8 {
		t.Errorf("got %d live leases, want 8", got)
	}
	for _, e := range events {
		w.apply(t, e, at, signal.Replayed)
	}
	if n, err := w.store.Sweep(t.Context(), at); err != nil || n < 8 {
		t.Errorf("sweeping: got %d, %v", n, err)
	}
	if got := w.kinds(t); got[audit.SignalDiscarded] != 1 || got[audit.FactEnded] != 2 {
		t.Errorf("got records %v", got)
	}
}

// Whom a held event is about can't decide on it, with any account.
func TestOwnEventsAreDecidedByOthers(t *testing.T) {
	w := newWorld(t, signal.Rule{MostPercent: 20, Always: 1})
	w.crowd(t, 10)
	at := noon.Add(10 * time.Minute)
	for i := range 3 {
		_, _ = w.Apply(t.Context(), w.event(signal.KindAccountDisabled, fmt.Sprintf("p%d", i), at), at)
	}
	w.apply(t, w.event(signal.KindAccountDisabled, "sec", at), at, signal.Held)
	p := w.preview(t, at)
	if !p.Own {
		t.Error("the preview does not say that an event is the viewer's own")
	}
	if err := w.decide(t, p, false, at); !errors.Is(err, broker.ErrOwnRequest) {
		t.Errorf("got %v", err)
	}
	_, err := w.Decide(t.Context(), broker.Self(person("root", at), at), "okta", signal.Decision{Release: true, Through: p.Through, Digest: p.Digest, Reason: "r"})
	if err != nil {
		t.Errorf("another person: got %v", err)
	}
	if _, err := w.Decide(t.Context(), broker.Self(person("root", at), at), "okta", signal.Decision{Release: true, Through: p.Through, Digest: p.Digest}); !errors.Is(err, broker.ErrJustificationRequired) {
		t.Errorf("without a reason: got %v", err)
	}
}

// Events about people who hold nothing, one leaver of a small broker, and events over a
// long time, need no person.
func TestOrdinaryEventsAreNotHeld(t *testing.T) {
	w := newWorld(t, signal.Rule{})
	w.crowd(t, 3)
	for i := range 3 {
		w.apply(t, w.event(signal.KindAccountDisabled, fmt.Sprintf("p%d", i), noon), noon, signal.Applied)
	}
	w = newWorld(t, signal.Rule{MostPercent: 20, Always: 1})
	w.crowd(t, 10)
	for i := range 10 {
		at := noon.Add(time.Duration(i+1) * 61 * time.Second)
		w.apply(t, w.event(signal.KindAccountDisabled, fmt.Sprintf("p%d", i), at), at, signal.Applied)
	}
}

// The people limit holds even while nobody has a lease.
func TestEndingEveryoneWithoutLeasesIsHeld(t *testing.T) {
	w := newWorld(t, signal.Rule{MostPercent: 20, Always: 1})
	for i := range 10 {
		w.logIn(t, fmt.Sprintf("p%d", i), "", noon)
	}
	held := 0
	for i := range 10 {
		outcome, err := w.Apply(t.Context(), w.event(signal.KindAccountPurged, fmt.Sprintf("p%d", i), noon), noon)
		if err != nil {
			t.Fatal(err)
		}
		if outcome == signal.Held {
			held++
		}
	}
	if held != 8 {
		t.Errorf("got %d held events, want 8", held)
	}
}

// The leases of agents count with the only person who is accountable for them.
func TestLeasesOfAgentsCount(t *testing.T) {
	w := newWorld(t, signal.Rule{MostPercent: 20, Always: 2})
	w.crowd(t, 5)
	agent := broker.Identity{ID: "spiffe://acme.test/agent/x", TrustDomain: "acme.test", Paths: broker.SPIFFEPaths("spiffe://acme.test/agent/x"), Kind: broker.KindWorkload, Proof: broker.Proof{Method: broker.MethodJWTSVID, SHA256: audit.Digest{7}, Expires: noon.Add(2 * time.Hour)}}
	for range 5 {
		if err := w.lease(t, agent, noon); err != nil {
			t.Fatal(err)
		}
	}
	w.apply(t, w.event(signal.KindAccountDisabled, "p1", noon), noon, signal.Applied)
	w.apply(t, w.event(signal.KindAccountDisabled, "p0", noon), noon, signal.Held) // 6 of 10
}

// A decision takes effect although the broker dies before it has applied it.
func TestDecisionSurvivesARestart(t *testing.T) {
	w := newWorld(t, signal.Rule{MostPercent: 20, Always: 1})
	w.crowd(t, 10)
	at := noon.Add(10 * time.Minute)
	for i := range 10 {
		_, _ = w.Apply(t.Context(), w.event(signal.KindAccountDisabled, fmt.Sprintf("p%d", i), at), at)
	}
	p := w.preview(t, at)
	fault := &faulty{at: 4} // the decision, and one event
	w.wrap = func(s broker.Store) broker.Store { fault.Store = s; return fault }
	w.restart(t)
	fault.armed.Store(true)
	if err := w.decide(t, p, true, at); err != nil {
		t.Fatal(err)
	}
	if got := w.live(t, at); got == 0 || got > 8 {
		t.Fatalf("the fault did not strike: got %d live leases", got)
	}
	w.wrap = nil
	w.restart(t)
	if err := w.Drain(t.Context(), at); err != nil {
		t.Fatal(err)
	}
	if got := w.live(t, at); got != 0 {
		t.Errorf("got %d live leases, want 0", got)
	}
}
