package agent_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"accessbroker.internal/agent"
	"accessbroker.internal/api"
	"accessbroker.internal/internal/brokertest"
)

// A keptBroker is a broker whose leases and failures a test controls.
type keptBroker struct {
	mu      sync.Mutex
	ttl     time.Duration
	down    bool
	refusal *api.Error // of renewals
	pending bool       // requests wait for approval
	reason  string     // of the last request

	needsReason bool
	slow        time.Duration
	n           int
	asks        int
	looks       int // at requests
	renewals    []time.Time
	leases      map[string]*api.Lease
}

func newKeptBroker(ttl time.Duration) *keptBroker {
	return &keptBroker{ttl: ttl, leases: map[string]*api.Lease{}}
}

func (b *keptBroker) issue(entitlement string) *api.Credential {
	b.n++
	id := fmt.Sprintf("lse_%d", b.n)
	b.leases[id] = &api.Lease{ID: id, Entitlement: entitlement, Status: api.LeaseActive}
	return &api.Credential{Lease: id, Entitlement: entitlement, Request: "req_1", Type: "bearer", Secret: api.Secret{"token": "t" + id}, ExpiresAt: time.Now().Add(b.ttl)}
}

func (b *keptBroker) client(t *testing.T) *api.Client {
	return fakeBroker(func(r *http.Request) (int, any, error) {
		b.mu.Lock()
		slow := b.slow
		b.mu.Unlock()
		select {
		case <-time.After(slow):
		case <-r.Context().Done():
			return 0, nil, r.Context().Err()
		}
		b.mu.Lock()
		defer b.mu.Unlock()
		if b.down {
			return 0, nil, errors.New("connection refused")
		}
		return b.answer(t, r)
	}).client()
}

func (b *keptBroker) answer(t *testing.T, r *http.Request) (int, any, error) {
	parts := strings.Split(strings.TrimPrefix(r.URL.Path, "/v1/"), "/")
	switch {
	case parts[0] == "credentials":
		b.asks++
		if b.needsReason {
			var ask api.Ask
			if err := json.NewDecoder(r.Body).Decode(&ask); err != nil {
				t.Error(err)
			}
			if b.reason = ask.Justification; b.reason == "" {
				return http.StatusBadRequest, &api.Error{Status: http.StatusBadRequest, Code: api.JustificationRequired}, nil
			}
		}
		if b.pending {
			return http.StatusAccepted, &api.Request{ID: "req_1", Status: api.StatusPending}, nil
		}
		return http.StatusCreated, b.issue("e"), nil
	case parts[0] == "requests" && r.Method == http.MethodGet:
		b.looks++
		status := api.StatusApproved
		if b.pending {
			status = api.StatusPending
		}
		return http.StatusOK, &api.Request{ID: parts[1], Status: status}, nil
	case parts[0] == "requests":
		return http.StatusCreated, b.issue("e"), nil
	case len(parts) == 1: // leases
		page := new(api.LeasePage)
		for _, l := range b.leases {
			page.Leases = append(page.Leases, *l)
		}
		return http.StatusOK, page, nil
	case r.Method == http.MethodGet:
		return http.StatusOK, b.leases[parts[1]], nil
	case parts[2] == "revoke":
		b.leases[parts[1]].Status = api.LeaseRevoked
		return http.StatusOK, b.leases[parts[1]], nil
	case parts[2] == "renew":
		b.renewals = append(b.renewals, time.Now())
		if b.refusal != nil {
			return b.refusal.Status, api.Problem{Code: b.refusal.Code, Status: b.refusal.Status}, nil
		}
		b.leases[parts[1]].Status = api.LeaseRevoked
		return http.StatusCreated, b.issue("e"), nil
	}
	t.Errorf("unexpected call %s %s", r.Method, r.URL)
	return http.StatusNotFound, nil, nil
}

func (b *keptBroker) set(f func()) {
	b.mu.Lock()
	defer b.mu.Unlock()
	f()
}

func (b *keptBroker) active() (n int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, l := range b.leases {
		if l.Status == api.LeaseActive {
			n++
		}
	}
	return n
}

// keeping runs f with a Keeper in a bubble whose clock is the test's.
func keeping(t *testing.T, b *keptBroker, f func(*testing.T, *agent.Keeper)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		k := agent.NewKeeper(agent.KeeperConfig{Client: b.client(t)})
		ctx, stop := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- k.Run(ctx) }()
		f(t, k)
		stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
		if err := k.Return(ctx, "the test ended"); err != nil {
			t.Log(err)
		}
	})
}

func mustKeep(t *testing.T, k *agent.Keeper, entitlement string) *api.Credential {
	t.Helper()
	c, err := k.Credential(t.Context(), entitlement)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// Many calls at once obtain one credential.
func TestKeeperObtainsOnce(t *testing.T) {
	b := newKeptBroker(time.Hour)
	b.slow = time.Second
	keeping(t, b, func(t *testing.T, k *agent.Keeper) {
		var calls sync.WaitGroup
		got := make(chan string, 100)
		for range cap(got) {
			calls.Go(func() { got <- mustKeep(t, k, "e").Lease })
		}
		calls.Wait()
		close(got)
		for lease := range got {
			if lease != "lse_1" {
				t.Errorf("got %s", lease)
			}
		}
		if b.asks != 1 {
			t.Errorf("%d requests, want 1", b.asks)
		}
	})
}

// The call that started a flight may end; those who wait get the credential.
func TestKeeperOutlivesACaller(t *testing.T) {
	b := newKeptBroker(time.Hour)
	b.slow = 2 * time.Second
	keeping(t, b, func(t *testing.T, k *agent.Keeper) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := k.Credential(ctx, "e"); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("got %v", err)
		}
		if c := mustKeep(t, k, "e"); c.Lease != "lse_1" || b.asks != 1 {
			t.Errorf("got %s after %d requests", c.Lease, b.asks)
		}
	})
}

// Credentials that are obtained in the same moment are renewed at different times, and
// each one before it expires.
func TestKeeperRenewsWithoutAHerd(t *testing.T) {
	const n = 200
	b := newKeptBroker(10 * time.Minute)
	keeping(t, b, func(t *testing.T, k *agent.Keeper) {
		start := time.Now()
		for i := range n {
			mustKeep(t, k, fmt.Sprint("e", i))
		}
		time.Sleep(9 * time.Minute)
		synctest.Wait()
		b.mu.Lock()
		defer b.mu.Unlock()
		if len(b.renewals) < n {
			t.Fatalf("%d renewals of %d credentials", len(b.renewals), n)
		}
		perTenSeconds := map[time.Duration]int{}
		for _, at := range b.renewals[:n] {
			if after := at.Sub(start); after < 5*time.Minute || after > 9*time.Minute {
				t.Errorf("a renewal after %s", after)
			}
			perTenSeconds[at.Sub(start)/(10*time.Second)]++
		}
		for at, count := range perTenSeconds { // 200 over 180 seconds: 11 expected
			if count > n/5 {
				t.Errorf("%d of %d renewals within ten seconds of %s", count, n, at*10*time.Second)
			}
		}
	})
}

// While the broker is down, a credential works until it expires. Then the call is
// refused, and the calls that follow don't flood the broker.
func TestKeeperSurvivesAnOutage(t *testing.T) {
	b := newKeptBroker(10 * time.Minute)
	keeping(t, b, func(t *testing.T, k *agent.Keeper) {
		first := mustKeep(t, k, "e")
		b.set(func() { b.down = true })
		time.Sleep(9*time.Minute + 50*time.Second)
		if c := mustKeep(t, k, "e"); c.Lease != first.Lease {
			t.Errorf("got %s during the outage", c.Lease)
		}
		time.Sleep(20 * time.Second)
		if _, err := k.Credential(t.Context(), "e"); err == nil || !strings.Contains(err.Error(), "no credential of e") {
			t.Errorf("got %v after the credential expired", err)
		}
		b.set(func() { b.down = false })
		time.Sleep(2 * time.Minute)
		if c := mustKeep(t, k, "e"); c.Lease == first.Lease {
			t.Error("got the expired credential after the outage")
		}
	})
}

func TestKeeperReturnsPendingAtOnce(t *testing.T) {
	b := newKeptBroker(time.Hour)
	b.pending = true
	keeping(t, b, func(t *testing.T, k *agent.Keeper) {
		for range 5 {
			start := time.Now()
			_, err := k.Credential(t.Context(), "e")
			var pending *agent.PendingError
			if !errors.As(err, &pending) || pending.Request.ID != "req_1" || time.Since(start) > 0 {
				t.Errorf("got %v after %s", err, time.Since(start))
			}
			time.Sleep(time.Second)
		}
		if list := k.Pending(); len(list) != 1 || list[0].ID != "req_1" {
			t.Errorf("pending: %v", list)
		}
		b.set(func() { b.pending = false })
		if c := mustKeep(t, k, "e"); c.Lease == "" || b.asks != 1 {
			t.Errorf("got %v after %d requests, want one request", c, b.asks)
		}
		if list := k.Pending(); len(list) != 0 {
			t.Errorf("pending: %v", list)
		}
	})
}

func TestKeeperFollowsARequest(t *testing.T) {
	b := newKeptBroker(time.Hour)
	keeping(t, b, func(t *testing.T, k *agent.Keeper) {
		if err := k.Follow("e", "req_9"); err != nil {
			t.Fatal(err)
		}
		mustKeep(t, k, "e")
		if b.asks != 0 || b.looks != 1 {
			t.Errorf("%d requests filed, %d read", b.asks, b.looks)
		}
	})
}

// A Keeper learns of a revocation from its own poll, and from a call that was rejected.
func TestKeeperDropsARevokedLease(t *testing.T) {
	for _, how := range []string{"poll", "rejected call"} {
		t.Run(how, func(t *testing.T) {
			b := newKeptBroker(time.Hour)
			keeping(t, b, func(t *testing.T, k *agent.Keeper) {
				first := mustKeep(t, k, "e")
				if k.Rejected(t.Context(), first) {
					t.Error("a rejection drops an active lease")
				}
				b.set(func() { b.leases[first.Lease].Status = api.LeaseRevoked })
				if k.Rejected(t.Context(), first) {
					t.Error("a rejection right after another one asks the broker again")
				}
				time.Sleep(2 * time.Second)
				if how == "poll" {
					time.Sleep(time.Minute)
				} else if !k.Rejected(t.Context(), first) {
					t.Error("a rejection keeps an ended lease")
				}
				if c := mustKeep(t, k, "e"); c.Lease == first.Lease {
					t.Error("got the credential of an ended lease")
				}
				if !k.Rejected(t.Context(), first) {
					t.Error("a late rejection of the old credential is not worth a repetition")
				}
			})
		})
	}
}

// After a refusal to renew, the credential stays in use until it expires, and then the
// Keeper files a new request.
func TestKeeperAfterARefusedRenewal(t *testing.T) {
	b := newKeptBroker(10 * time.Minute)
	b.refusal = &api.Error{Status: http.StatusConflict, Code: api.GrantEnded}
	keeping(t, b, func(t *testing.T, k *agent.Keeper) {
		first := mustKeep(t, k, "e")
		time.Sleep(9*time.Minute + 30*time.Second)
		if c := mustKeep(t, k, "e"); c != first || len(b.renewals) != 1 {
			t.Errorf("got %s after %d renewals", c.Lease, len(b.renewals))
		}
		time.Sleep(time.Minute)
		if c := mustKeep(t, k, "e"); c == first || b.asks != 2 {
			t.Errorf("got %s after %d requests", c.Lease, b.asks)
		}
	})
}

func TestKeeperReturnsUnusedCredentials(t *testing.T) {
	b := newKeptBroker(10 * time.Minute)
	keeping(t, b, func(t *testing.T, k *agent.Keeper) {
		mustKeep(t, k, "e")
		time.Sleep(3 * time.Hour)
		if n := b.active(); n != 0 {
			t.Errorf("%d leases are active after three hours without use", n)
		}
		renewals := len(b.renewals)
		if renewals < 5 || renewals > 13 {
			t.Errorf("%d renewals, want those of the first hour", renewals)
		}
		mustKeep(t, k, "e")
	})
}

// At the end, every lease is returned, also one that arrives during the end.
func TestKeeperReturnsAll(t *testing.T) {
	b := newKeptBroker(time.Hour)
	keeping(t, b, func(t *testing.T, k *agent.Keeper) {
		for i := range 50 {
			mustKeep(t, k, fmt.Sprint("e", i))
		}
		b.set(func() { b.slow = time.Second })
		late := make(chan error, 1)
		go func() {
			_, err := k.Credential(t.Context(), "late")
			late <- err
		}()
		synctest.Wait()
		ended, cancel := context.WithCancel(t.Context())
		cancel()
		start := time.Now()
		if err := k.Return(ended, "done"); err != nil {
			t.Error(err)
		}
		if err := <-late; !errors.Is(err, agent.ErrReturned) {
			t.Errorf("the late call got %v", err)
		}
		if n := b.active(); n != 0 || b.n != 51 {
			t.Errorf("%d of %d leases are active", n, b.n)
		}
		if d := time.Since(start); d > 15*time.Second {
			t.Errorf("returning took %s", d)
		}
		if _, err := k.Credential(t.Context(), "e1"); !errors.Is(err, agent.ErrReturned) {
			t.Errorf("got %v after the end", err)
		}
	})
}

// A credential that arrives late in the time of the end does not outlive the process.
func TestKeeperReturnsTheLateOne(t *testing.T) {
	b := newKeptBroker(time.Hour)
	keeping(t, b, func(t *testing.T, k *agent.Keeper) {
		b.set(func() { b.slow = 3 * time.Second }) // for each call: the request, its credential, the return
		late := make(chan error, 1)
		go func() {
			_, err := k.Credential(t.Context(), "late")
			late <- err
		}()
		synctest.Wait()
		if err := k.Return(t.Context(), "done"); err != nil {
			t.Error(err)
		}
		if n := b.active(); n != 0 || b.n != 1 {
			t.Errorf("%d of %d leases are active", n, b.n)
		}
		if err := <-late; !errors.Is(err, agent.ErrReturned) {
			t.Errorf("the late call got %v", err)
		}
	})
}

func TestKeeperEndsWithoutABroker(t *testing.T) {
	b := newKeptBroker(time.Hour)
	keeping(t, b, func(t *testing.T, k *agent.Keeper) {
		mustKeep(t, k, "e")
		b.set(func() { b.down, b.slow = true, time.Hour })
		start := time.Now()
		var unreturned *agent.UnreturnedError
		if err := k.Return(t.Context(), "done"); !errors.As(err, &unreturned) || unreturned.Credential.Lease != "lse_1" {
			t.Errorf("got %v", err)
		}
		if d := time.Since(start); d > 30*time.Second {
			t.Errorf("returning took %s", d)
		}
		time.Sleep(2 * time.Hour) // for the calls that are still on their way
	})
}

// Held has replaced credentials until they can no longer work.
func TestKeeperHeld(t *testing.T) {
	b := newKeptBroker(10 * time.Minute)
	keeping(t, b, func(t *testing.T, k *agent.Keeper) {
		first := mustKeep(t, k, "e")
		time.Sleep(9 * time.Minute)
		second := mustKeep(t, k, "e")
		if list := k.Held(); len(list) < 2 || !slices.Contains(list, first) || !slices.Contains(list, second) {
			t.Errorf("got %d credentials", len(list))
		}
		time.Sleep(2 * time.Minute)
		if slices.Contains(k.Held(), first) {
			t.Error("an expired credential is still held")
		}
	})
}

// The real broker: a request that a person denies is not filed again at once.
func TestKeeperWithABroker(t *testing.T) {
	client := brokertest.New(t).Client(brokertest.Agent)
	var kinds []string
	k := agent.NewKeeper(agent.KeeperConfig{Client: client, Ask: func(string) api.Ask { return readAsk() }, Report: func(e agent.KeptEvent) { kinds = append(kinds, e.Kind) }})
	c := mustKeep(t, k, "tickets-api")
	if _, err := client.Revoke(t.Context(), c.Lease, "leaked"); err != nil {
		t.Fatal(err)
	}
	if !k.Rejected(t.Context(), c) {
		t.Error("the revocation was not noticed")
	}
	second := mustKeep(t, k, "tickets-api")
	if err := k.Return(t.Context(), "done"); err != nil {
		t.Error(err)
	}
	wantStatus(t, client, second.Lease, api.LeaseRevoked)
	if got := strings.Join(kinds, " "); got != "obtained dropped obtained" {
		t.Errorf("events: %s", got)
	}
}

// A refusal for want of a reason is not the answer to a call that states one.
func TestKeeperStatesReason(t *testing.T) {
	b := newKeptBroker(time.Hour)
	b.needsReason = true
	k := agent.NewKeeper(agent.KeeperConfig{Client: b.client(t)})
	for range 2 { // the second answer is that of the first
		if _, err := k.Credential(t.Context(), "e"); !errors.Is(err, api.JustificationRequired) {
			t.Fatalf("got %v, want %v", err, api.JustificationRequired)
		}
	}
	if _, err := k.Credential(agent.WithReason(t.Context(), "triage"), "e"); err != nil {
		t.Fatal(err)
	}
	if b.asks != 2 || b.reason != "triage" {
		t.Errorf("got %d requests, the last with the reason %q", b.asks, b.reason)
	}
}

// Calls at the same time share one request. Those that state a reason do not share the
// refusal of a request that had none.
func TestKeeperStatesReasonToo(t *testing.T) {
	b := newKeptBroker(time.Hour)
	b.needsReason, b.slow = true, time.Second
	keeping(t, b, func(t *testing.T, k *agent.Keeper) {
		var calls sync.WaitGroup
		calls.Go(func() {
			if _, err := k.Credential(t.Context(), "e"); !errors.Is(err, api.JustificationRequired) {
				t.Errorf("without a reason: got %v, want %v", err, api.JustificationRequired)
			}
		})
		time.Sleep(b.slow / 2)
		for range 10 {
			calls.Go(func() {
				if _, err := k.Credential(agent.WithReason(t.Context(), "triage"), "e"); err != nil {
					t.Errorf("with a reason: %v", err)
				}
			})
		}
		calls.Wait()
		if b.asks != 2 {
			t.Errorf("got %d requests, want 2", b.asks)
		}
	})
}
