package signals

import (
	"context"
	"log/slog"
	"net/http/httptest"
	"sync"
	"testing"
	"time"

	"accessbroker.internal/broker/signal"
	"accessbroker.internal/signals/signalstest"
)

const (
	audience = "https://broker.acme.test"
	provider = "https://login.acme.test"
)

// A world has a transmitter that serves its endpoints, and a receiver without a broker.
type world struct {
	*signalstest.Transmitter
	receiver *Transmitter

	mu       sync.Mutex
	applied  []signal.Event
	outcomes map[signal.Outcome]int
	expected []string
	polled   int
	result   func(signal.Event) (signal.Outcome, error) // nil: applied
}

func newWorld(t *testing.T, change ...func(*Config)) *world {
	t.Helper()
	w := &world{Transmitter: signalstest.New(audience), outcomes: map[signal.Outcome]int{}}
	server := httptest.NewServer(w.Transmitter)
	t.Cleanup(server.Close)
	w.Issuer = server.URL
	cfg := Config{
		Name: "okta", Issuer: server.URL, Audience: audience, KeysURL: server.URL + signalstest.KeysPath, AllowPrivate: true,
		Subjects: Subjects{Provider: "login", Issuers: []string{provider}}, Log: discard(),
		Apply: w.apply, Observe: w.observe,
		Polled: func(context.Context, string, time.Time) error { w.polled++; return nil },
		Expect: func(_ context.Context, _, state string, _ time.Time) error {
			w.mu.Lock()
			defer w.mu.Unlock()
			w.expected = append(w.expected, state)
			return nil
		},
	}
	for _, f := range change {
		f(&cfg)
	}
	w.receiver = New(cfg)
	return w
}

func (w *world) apply(_ context.Context, e signal.Event, _ time.Time) (signal.Outcome, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.applied = append(w.applied, e)
	if w.result != nil {
		return w.result(e)
	}
	return signal.Applied, nil
}

func (w *world) observe(_ string, _ signal.Kind, outcome signal.Outcome) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.outcomes[outcome]++
}

// events returns the events that were applied, and forgets them.
func (w *world) events() []signal.Event {
	w.mu.Lock()
	defer w.mu.Unlock()
	list := w.applied
	w.applied = nil
	return list
}

func discard() *slog.Logger { return slog.New(slog.DiscardHandler) }

func secret(text string) Secret { return func() (string, error) { return text, nil } }
