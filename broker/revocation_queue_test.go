package broker_test

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"time"

	"accessbroker.internal/audit"
	"accessbroker.internal/broker"
)

// A stuckStore reads but cannot write while stuck is set.
type stuckStore struct {
	broker.Store
	stuck atomic.Bool
}

func (s *stuckStore) Update(ctx context.Context, reads []broker.Key, f func(broker.Tx) error) error {
	if s.stuck.Load() {
		return broker.ErrUnavailable
	}
	return s.Store.Update(ctx, reads, f)
}

// stuckWorld issues credentials on a store whose writes can be made to fail.
func stuckWorld(t *testing.T, leases int) (*world, *stuckStore, *moody) {
	t.Helper()
	db := &moody{system: system{live: map[string]time.Time{}}}
	s := &stuckStore{}
	w := newWorld(t, worldConfig{
		issuers: map[string]broker.Issuer{"db": db},
		wrap:    func(real broker.Store) broker.Store { s.Store = real; return s },
	})
	for range leases {
		if _, _, err := w.broker.AskAndCollect(t.Context(), broker.Self(agent(noon), noon), broker.Ask{Entitlement: "db"}, broker.IdempotencyKey{}); err != nil {
			t.Fatal(err)
		}
	}
	return w, s, db
}

func (w *world) reap(t *testing.T, now time.Time) {
	t.Helper()
	if _, err := w.broker.Reap(t.Context(), now); err != nil {
		t.Fatal(err)
	}
}

// Due leases end at the issuer, each once, while nothing can be recorded. Their
// ends are recorded later, with the time at which they ended.
func TestRevocationContinuesWithoutStore(t *testing.T) {
	const leases = 700 // more than one batch
	w, s, db := stuckWorld(t, leases)
	s.stuck.Store(true)
	due := noon.Add(time.Hour)
	for range 4 {
		w.reap(t, due)
	}
	if n := len(db.live); n != 0 {
		t.Errorf("%d of %d credentials still work", n, leases)
	}
	if n := db.tries.Load(); n != leases {
		t.Errorf("got %d calls to the issuer for %d leases", n, leases)
	}
	if n := w.count(t, broker.LeaseActive); n != leases {
		t.Errorf("%d leases are stored as active, want all: nothing can be written", n)
	}
	s.stuck.Store(false)
	for range 4 {
		due = due.Add(2 * time.Second)
		w.reap(t, due)
	}
	if n := w.count(t, broker.LeaseRevoked); n != leases {
		t.Errorf("%d of %d ends are recorded", n, leases)
	}
	if n := db.tries.Load(); n != leases {
		t.Errorf("recording called the issuer again: %d calls", n)
	}
	for _, l := range w.leases(t) {
		if l.Revocation != broker.RevokedImmediate || l.Ended.Sub(noon.Add(time.Hour)).Abs() > 2*time.Minute {
			t.Fatalf("lease %s: %s, ended at %s", l.ID, l.Revocation, l.Ended)
		}
	}
	w.verify(t)
}

// The back-off of an issuer that is down is kept in memory while nothing can be
// recorded.
func TestBackoffHoldsWithoutStore(t *testing.T) {
	w, s, db := stuckWorld(t, 3)
	s.stuck.Store(true)
	db.down.Store(true)
	due := noon.Add(time.Hour)
	for range 50 {
		w.reap(t, due)
	}
	if n := db.tries.Load(); n != 3 {
		t.Errorf("got %d calls at one time for 3 leases", n)
	}
	db.down.Store(false)
	w.reap(t, due.Add(10*time.Minute))
	if n := len(db.live); n != 0 {
		t.Errorf("%d credentials still work", n)
	}
}

// The kill switch revokes although it cannot store its block, and reports that.
func TestKillSwitchWithoutStore(t *testing.T) {
	const leases = 200
	w, s, db := stuckWorld(t, leases)
	s.stuck.Store(true)
	for name, selector := range map[string]broker.Selector{
		"under": {Under: "spiffe://acme.test/agent"}, "entitlement": {Entitlement: "db"}, "request": {Request: w.leases(t)[0].Request},
	} {
		if _, err := w.broker.RevokeAll(t.Context(), broker.Self(root, noon), selector, "incident", broker.Consent{Force: true}); !errors.Is(err, broker.ErrUnavailable) {
			t.Errorf("%s: nothing was recorded: got %v", name, err)
		}
	}
	w.reap(t, noon)
	if n := len(db.live); n != 0 {
		t.Errorf("%d of %d credentials still work", n, leases)
	}
	s.stuck.Store(false)
	w.reap(t, noon.Add(2*time.Second))
	w.reap(t, noon.Add(4*time.Second))
	ended := 0
	for _, r := range w.records(t) {
		if r.Kind == audit.LeaseRevoked && r.End.How == broker.EndRevoked && r.Caller.ID == root.ID && !r.End.Reason.IsZero() {
			ended++
		}
	}
	if ended != leases {
		t.Errorf("%d of %d ends are recorded as the operator's, with the reason", ended, leases)
	}
}

// A renaming system needs the handle of Issue to end a credential.
type renaming struct{ moody }

func (r *renaming) Issue(ctx context.Context, o broker.Order) (broker.Credential, []byte, error) {
	o.Lease.Handle = []byte("name of " + o.Lease.ID.String())
	c, _, err := r.moody.Issue(ctx, o)
	return c, o.Lease.Handle, err
}

// The handle of Issue survives a failure of both the second transaction and the
// first attempt to revoke.
func TestHandleOfIssueSurvivesFailures(t *testing.T) {
	db := &renaming{moody{system: system{live: map[string]time.Time{}}}}
	s := &failing{}
	w := newWorld(t, worldConfig{
		issuers: map[string]broker.Issuer{"db": db},
		wrap:    func(real broker.Store) broker.Store { s.Store = real; return s },
	})
	s.in.Store(2) // the first opens the lease
	db.down.Store(true)
	if _, _, err := w.broker.AskAndCollect(t.Context(), broker.Self(agent(noon), noon), broker.Ask{Entitlement: "db"}, broker.IdempotencyKey{}); !errors.Is(err, broker.ErrUnavailable) {
		t.Fatalf("the second transaction failed: got %v", err)
	}
	db.down.Store(false)
	w.reap(t, noon.Add(10*time.Minute))
	if n := len(db.live); n != 0 {
		t.Errorf("%d credentials work that no one received", n)
	}
	if l := w.leases(t)[0]; l.Status != broker.LeaseRevoked || l.Revocation != broker.RevokedImmediate {
		t.Errorf("lease: got status %d, revocation %s", l.Status, l.Revocation)
	}
}

// A failing store fails once, at the n-th write after n was set.
type failing struct {
	broker.Store
	in atomic.Int64
}

func (s *failing) Update(ctx context.Context, reads []broker.Key, f func(broker.Tx) error) error {
	if s.in.Add(-1) == 0 {
		return broker.ErrUnavailable
	}
	return s.Store.Update(ctx, reads, f)
}

// A deniable system cannot end a credential, but denies revoked ones until they
// expire.
type deniable struct {
	system
	denied map[string]bool
}

func (d *deniable) Prepare(context.Context, broker.Order) (broker.Prepared, error) {
	return broker.Prepared{Key: broker.NewSecret(nil)}, nil
}

func (d *deniable) Issue(_ context.Context, o broker.Order) (broker.Credential, []byte, error) {
	handle := []byte(o.Lease.ID.String())
	return broker.Credential{Type: "aws", Expires: o.Lease.Expires, Revocation: broker.RevokedAtExpiry, Hash: audit.Digest{1}, Secret: broker.NewSecret(map[string]string{"access_key_id": "A"})}, handle, nil
}

func (d *deniable) Revoke(_ context.Context, l broker.Lease) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if l.EndHow != broker.EndRevoked {
		return broker.ErrNotRevocable
	}
	d.denied[l.ID.String()] = true
	return broker.ErrQueued
}

// A returned credential that only time ends still works. The kill switch counts it
// and has it denied if its issuer can.
func TestKillSwitchIncludesReturnedLeases(t *testing.T) {
	db := &deniable{denied: map[string]bool{}}
	w := newWorld(t, worldConfig{issuers: map[string]broker.Issuer{"db": db}})
	for range 20 {
		issued, _, err := w.broker.AskAndCollect(t.Context(), broker.Self(agent(noon), noon), broker.Ask{Entitlement: "db"}, broker.IdempotencyKey{})
		if err != nil {
			t.Fatal(err)
		}
		l, err := w.broker.Revoke(t.Context(), broker.Self(agent(noon), noon), issued.Lease.ID, "")
		if err != nil || l.Status != broker.LeaseRevoked || !l.OutlivesEnd(noon) {
			t.Fatalf("return: got %+v, %v", l, err)
		}
	}
	if len(db.denied) != 0 {
		t.Fatal("a returned credential was denied")
	}
	under := broker.Selector{Under: "spiffe://acme.test/agent"}
	seen, err := w.broker.Preview(t.Context(), broker.Self(root, noon), under)
	if err != nil || seen.Leases != 20 || seen.Ended != 20 || seen.Irrevocable != 20 || !seen.WorkUntil.Equal(noon.Add(10*time.Minute)) {
		t.Fatalf("preview: %+v, %v", seen, err)
	}
	if _, err := w.broker.RevokeAll(t.Context(), broker.Self(root, noon), under, "incident", broker.Consent{Seen: seen.Digest}); err != nil {
		t.Fatal(err)
	}
	w.reap(t, noon)
	if len(db.denied) != 20 || w.count(t, broker.LeaseRevoking) != 20 {
		t.Errorf("%d are denied, %d leases are being revoked", len(db.denied), w.count(t, broker.LeaseRevoking))
	}
	again, err := w.broker.Preview(t.Context(), broker.Self(root, noon), under)
	if err != nil || again.Leases != 20 {
		t.Errorf("preview while denials are pending: got %+v, %v", again, err)
	}
	over := noon.Add(time.Hour)
	w.reap(t, over)
	if after, err := w.broker.Preview(t.Context(), broker.Self(root, over), under); err != nil || after.Leases != 0 || w.count(t, broker.LeaseRevoked) != 20 {
		t.Errorf("after expiry: got %+v, %v, %d revoked", after, err, w.count(t, broker.LeaseRevoked))
	}
	w.verify(t)
}

// An unknown name is refused rather than blocked.
func TestKillSwitchRefusesUnknownNames(t *testing.T) {
	w := tokenWorld(t)
	for _, s := range []broker.Selector{{Entitlement: "dbb"}, {Issuer: "vaul"}} {
		if _, err := w.broker.Preview(t.Context(), broker.Self(root, noon), s); !errors.Is(err, broker.ErrInvalidRequest) {
			t.Errorf("preview of %+v: %v", s, err)
		}
		if _, err := w.broker.RevokeAll(t.Context(), broker.Self(root, noon), s, "incident", broker.Consent{Force: true}); !errors.Is(err, broker.ErrInvalidRequest) {
			t.Errorf("kill %+v: %v", s, err)
		}
		if err := w.broker.Block(t.Context(), broker.Self(root, noon), s, "incident", false); !errors.Is(err, broker.ErrInvalidRequest) {
			t.Errorf("block %+v: %v", s, err)
		}
	}
}

// A dying store fails after a number of writes.
type dying struct {
	broker.Store
	left atomic.Int64
}

func (s *dying) Update(ctx context.Context, reads []broker.Key, f func(broker.Tx) error) error {
	if s.left.Add(-1) < 0 {
		return broker.ErrUnavailable
	}
	return s.Store.Update(ctx, reads, f)
}

// A kill switch that crashed after storing its block is completed by the next
// process.
func TestKillSwitchContinuesAfterCrash(t *testing.T) {
	db := &moody{system: system{live: map[string]time.Time{}}}
	s := &dying{}
	s.left.Store(1000)
	w := newWorld(t, worldConfig{issuers: map[string]broker.Issuer{"db": db}, wrap: func(real broker.Store) broker.Store { s.Store = real; return s }})
	const leases = 10
	for range leases {
		if _, _, err := w.broker.AskAndCollect(t.Context(), broker.Self(agent(noon), noon), broker.Ask{Entitlement: "db"}, broker.IdempotencyKey{}); err != nil {
			t.Fatal(err)
		}
	}
	s.left.Store(4) // the block and three leases
	under := broker.Selector{Under: "spiffe://acme.test/agent"}
	if _, err := w.broker.RevokeAll(t.Context(), broker.Self(root, noon), under, "incident", broker.Consent{Force: true}); !errors.Is(err, broker.ErrUnavailable) {
		t.Fatalf("after the crash: got %v", err)
	}
	if n := w.count(t, broker.LeaseActive); n != leases-3 {
		t.Fatalf("%d leases are active", n)
	}
	again := w.restart(t, map[string]broker.Issuer{"db": db})
	for range 2 {
		if _, err := again.Reap(t.Context(), noon); err != nil {
			t.Fatal(err)
		}
	}
	if len(db.live) != 0 || w.count(t, broker.LeaseRevoked) != leases {
		t.Errorf("%d credentials still work, %d leases are revoked", len(db.live), w.count(t, broker.LeaseRevoked))
	}
	blocks, err := w.store.Blocks(t.Context())
	if err != nil || len(blocks) != 1 || !blocks[0].Ends.IsZero() {
		t.Errorf("block: got %+v, %v", blocks, err)
	}
}

// Writing resumes when the store recovers, although new ends are queued all the
// time.
func TestWritesResumeWhenStoreRecovers(t *testing.T) {
	const leases = 40 // more than end in parallel
	w, s, _ := stuckWorld(t, leases)
	s.stuck.Store(true)
	now := noon.Add(time.Hour)
	for range 5 {
		w.reap(t, now)
		now = now.Add(time.Second) // the interval of the reaper
	}
	s.stuck.Store(false)
	for range 5 {
		w.reap(t, now)
		now = now.Add(time.Second)
	}
	if n := w.count(t, broker.LeaseRevoked); n != leases {
		t.Errorf("%d of %d ends are recorded", n, leases)
	}
}

// A kill switch is completed even if its entitlement has left the catalogue.
func TestKillSwitchContinuesWithoutEntitlement(t *testing.T) {
	s := &dying{}
	s.left.Store(1000)
	db := &moody{system: system{live: map[string]time.Time{}}}
	w := newWorld(t, worldConfig{issuers: map[string]broker.Issuer{"db": db}, wrap: func(real broker.Store) broker.Store { s.Store = real; return s }})
	s.left.Store(1) // the block, but not its completion
	if _, err := w.broker.RevokeAll(t.Context(), broker.Self(root, noon), broker.Selector{Entitlement: "db"}, "incident", broker.Consent{Force: true, Unmatched: true}); !errors.Is(err, broker.ErrUnavailable) {
		t.Fatalf("after the crash: got %v", err)
	}
	delete(w.rules.Catalogue, "db")
	if _, err := w.restart(t, map[string]broker.Issuer{"db": db}).Reap(t.Context(), noon); err != nil {
		t.Fatal(err)
	}
	if blocks, err := w.store.Blocks(t.Context()); err != nil || len(blocks) != 1 || !blocks[0].Ends.IsZero() {
		t.Errorf("block: got %+v, %v", blocks, err)
	}
}
