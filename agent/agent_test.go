package agent_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"accessbroker.internal/agent"
	"accessbroker.internal/api"
	"accessbroker.internal/internal/brokertest"
)

func readAsk() api.Ask {
	return api.Ask{Entitlement: "tickets-api", Scopes: []string{"tickets:read"}}
}

func closeAsk() api.Ask {
	return api.Ask{Entitlement: "tickets-api", Scopes: []string{"tickets:close"}, Justification: "duplicates"}
}

func wantStatus(t *testing.T, client *api.Client, lease, want string) {
	t.Helper()
	l, err := client.Lease(t.Context(), lease)
	if err != nil {
		t.Fatal(err)
	}
	if l.Status != want {
		t.Errorf("lease %s is %s, want %s", lease, l.Status, want)
	}
}

func TestHeldCredential(t *testing.T) {
	client := brokertest.New(t).Client(brokertest.Agent)
	first, err := agent.Obtain(t.Context(), client, readAsk(), agent.Wait{})
	if err != nil {
		t.Fatal(err)
	}
	var replaced *api.Credential
	held := agent.Held{Client: client, Credential: first, Replace: func(c *api.Credential) error { replaced = c; return nil }}
	if due, left := held.Due(), time.Until(first.ExpiresAt); due <= 0 || due >= left {
		t.Errorf("renewal is due in %s, want before the end of %s", due, left)
	}
	if usable, err := held.Renew(t.Context()); !usable || err != nil {
		t.Fatalf("got usable %t, %v", usable, err)
	}
	if replaced == nil || replaced != held.Credential || replaced.Lease == first.Lease {
		t.Errorf("the consumer got %v after %v", replaced, first)
	}
	wantStatus(t, client, first.Lease, api.LeaseRevoked)
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if err := held.Return(ended, "done"); err != nil {
		t.Errorf("returning after the end of the context: %v", err)
	}
	wantStatus(t, client, replaced.Lease, api.LeaseRevoked)
}

func TestReplaceFails(t *testing.T) {
	client := brokertest.New(t).Client(brokertest.Agent)
	credential, err := agent.Obtain(t.Context(), client, readAsk(), agent.Wait{})
	if err != nil {
		t.Fatal(err)
	}
	full := errors.New("disk full")
	held := agent.Held{Client: client, Credential: credential, Replace: func(*api.Credential) error { return full }}
	if usable, err := held.Renew(t.Context()); usable || !errors.Is(err, full) {
		t.Errorf("got usable %t, %v", usable, err)
	}
	if err := held.Return(t.Context(), ""); err != nil {
		t.Error(err)
	}
	wantStatus(t, client, held.Credential.Lease, api.LeaseRevoked)
}

func TestConsumerIsGone(t *testing.T) {
	client := brokertest.New(t).Client(brokertest.Agent)
	credential, err := agent.Obtain(t.Context(), client, readAsk(), agent.Wait{})
	if err != nil {
		t.Fatal(err)
	}
	if err := agent.HandOver(t.Context(), client, credential, func(*api.Credential) error { return nil }); err != nil {
		t.Error(err)
	}
	wantStatus(t, client, credential.Lease, api.LeaseActive)
	gone := errors.New("broken pipe")
	err = agent.HandOver(t.Context(), client, credential, func(*api.Credential) error { return gone })
	var failed *agent.HandOverError
	if !errors.As(err, &failed) || !errors.Is(err, gone) || failed.Return != nil {
		t.Errorf("got %#v", err)
	}
	wantStatus(t, client, credential.Lease, api.LeaseRevoked)
}

func TestPending(t *testing.T) {
	client := brokertest.New(t).Client(brokertest.Agent)
	_, err := agent.Obtain(t.Context(), client, closeAsk(), agent.Wait{})
	var pending *agent.PendingError
	if !errors.As(err, &pending) || !errors.Is(err, api.Pending) || pending.Interrupted {
		t.Fatalf("got %v", err)
	}
	reports := 0
	r, err := agent.Await(t.Context(), client, pending.Request, agent.Wait{For: 100 * time.Millisecond, Progress: func(p agent.Progress) {
		reports++
		if p.Left <= 0 || p.Err != nil || p.Request.Status != api.StatusPending {
			t.Errorf("got %+v", p)
		}
	}})
	if err != nil || r.Status != api.StatusPending || reports == 0 {
		t.Errorf("got %v, %v after %d reports", r, err, reports)
	}
}

func TestDecisionEndsTheWait(t *testing.T) {
	client := brokertest.New(t).Client(brokertest.Agent)
	withdrawn, last := false, ""
	_, err := agent.Obtain(t.Context(), client, closeAsk(), agent.Wait{For: time.Minute, Progress: func(p agent.Progress) {
		last = p.Request.Status
		if !withdrawn {
			if _, err := client.Withdraw(t.Context(), p.Request.ID); err != nil {
				t.Error(err)
			}
			withdrawn = true
		}
	}})
	if !errors.Is(err, api.NotPending) || last != api.StatusWithdrawn {
		t.Errorf("got %v after a report of %q", err, last)
	}
}
