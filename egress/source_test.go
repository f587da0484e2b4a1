package egress_test

import (
	"context"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"accessbroker.internal/api"
	"accessbroker.internal/egress"
)

// An offering answers for the broker's list of entitlements.
type offering struct {
	mu     sync.Mutex
	offers []api.Offer
	status int // zero: 200
}

func (o *offering) RoundTrip(*http.Request) (*http.Response, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	w := httptest.NewRecorder()
	var body any = api.Offers{Entitlements: o.offers}
	if o.status != 0 {
		w.Header().Set("Content-Type", "application/problem+json")
		w.WriteHeader(o.status)
		body = api.Problem{Status: o.status, Code: "x"}
	}
	if err := json.NewEncoder(w).Encode(body); err != nil {
		return nil, err
	}
	return w.Result(), nil
}

// The rules follow the broker: a change applies, an outage keeps them, and a refusal
// takes everything away.
func TestSourceFollowsTheBroker(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		broker := &offering{offers: []api.Offer{
			{Entitlement: "a", Egress: rulesFor("a.acme.test")}, {Entitlement: "b", Egress: rulesFor("b.acme.test")}, {Entitlement: "without"},
		}}
		s := &egress.Source{Client: &api.Client{BaseURL: "http://127.0.0.1", HTTP: &http.Client{Transport: broker}}, Only: []string{"a", "without"}}
		want := func(step string, hosts ...string) {
			t.Helper()
			if got := s.Policy().Hosts(); !slices.Equal(got, hosts) {
				t.Errorf("%s: got %v, want %v", step, got, hosts)
			}
		}
		want("before Load")
		if err := s.Load(t.Context()); err != nil {
			t.Fatal(err)
		}
		want("after Load", "a.acme.test")
		ctx, stop := context.WithCancel(t.Context())
		failures := 0
		ended := make(chan error, 1)
		go func() { ended <- s.Run(ctx, func(error) { failures++ }) }()
		step := func(f func()) {
			broker.mu.Lock()
			f()
			broker.mu.Unlock()
			time.Sleep(2 * time.Minute)
			synctest.Wait()
		}
		step(func() { broker.offers[0].Egress = rulesFor("c.acme.test") })
		want("after a change", "c.acme.test")
		step(func() { broker.status = http.StatusServiceUnavailable })
		want("during an outage", "c.acme.test")
		step(func() { broker.status = http.StatusForbidden })
		want("after a refusal")
		step(func() { broker.status = 0 })
		want("after the refusal", "c.acme.test")
		step(func() { broker.offers[0].Egress.Allow[0].Hosts = []string{"*"} })
		want("with rules that can't be read")
		if failures == 0 {
			t.Error("no failure was reported")
		}
		stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
}
