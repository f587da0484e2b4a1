package broker_test

import (
	"compress/gzip"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"accessbroker.internal/audit/verify"
	"accessbroker.internal/broker"
	"accessbroker.internal/internal/storetest"
	"accessbroker.internal/internal/storetest/tables"
	"accessbroker.internal/store"
)

// leaseIDs returns the ids of the leases of a request.
func leaseIDs(t *testing.T, b *broker.Broker, who broker.Identity, id broker.RequestID, at time.Time) (list []broker.LeaseID) {
	t.Helper()
	r, err := b.Request(t.Context(), broker.Self(who, at), id)
	if err != nil {
		t.Fatal(err)
	}
	leases, err := b.LeasesOf(t.Context(), broker.Self(who, at), r)
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range leases {
		list = append(list, l.ID)
	}
	return list
}

// The leases of a request are found however the clock was set, and however many other
// leases there are.
func TestLeasesOfARequestWithAClockSetBack(t *testing.T) {
	w := tokenWorld(t)
	// Ids never go back in one process: from here on they have a time at which the
	// grant below has long ended.
	later := noon.Add(48 * time.Hour)
	broker.NewLeaseID(later)
	var want []broker.LeaseID
	first, _, err := w.broker.AskAndCollect(t.Context(), broker.Self(agent(noon), noon), read("tickets:read"), broker.IdempotencyKey{})
	if err != nil {
		t.Fatal(err)
	}
	want = append(want, first.Lease.ID)
	for n := range 5 {
		at := noon.Add(time.Duration(n) * time.Second)
		issued, err := w.broker.Collect(t.Context(), broker.Self(agent(at), at), first.Request.ID, broker.IdempotencyKey{})
		if err == nil && n%2 == 0 {
			want = append(want, issued.Lease.ID)
			issued, err = w.broker.Renew(t.Context(), broker.Self(agent(at), at), issued.Lease.ID, broker.IdempotencyKey{})
		}
		if err != nil {
			t.Fatal(err)
		}
		want = append(want, issued.Lease.ID)
	}
	slices.Reverse(want)
	if got := leaseIDs(t, w.broker, agent(noon), first.Request.ID, noon.Add(time.Minute)); !slices.Equal(got, want) {
		t.Errorf("got leases %v, want %v", got, want)
	}
}

func TestLeasesOfARequestCollectedInParallel(t *testing.T) {
	w := tokenWorld(t)
	r, err := w.broker.Ask(t.Context(), broker.Self(agent(noon), noon), read("tickets:read"), broker.IdempotencyKey{})
	if err != nil {
		t.Fatal(err)
	}
	if got := leaseIDs(t, w.broker, agent(noon), r.ID, noon); len(got) != 0 {
		t.Errorf("before a collection: got leases %v", got)
	}
	var mu sync.Mutex
	var want []broker.LeaseID
	var all sync.WaitGroup
	for range 32 {
		all.Go(func() {
			issued, err := w.broker.Collect(t.Context(), broker.Self(agent(noon), noon), r.ID, broker.IdempotencyKey{})
			if err != nil {
				t.Error(err)
				return
			}
			mu.Lock()
			defer mu.Unlock()
			want = append(want, issued.Lease.ID)
		})
	}
	all.Wait()
	got := leaseIDs(t, w.broker, agent(noon), r.ID, noon)
	sortIDs(got)
	sortIDs(want)
	if len(got) != 32 || !slices.Equal(got, want) {
		t.Errorf("got %d leases, want %d", len(got), len(want))
	}
}

func sortIDs(ids []broker.LeaseID) {
	slices.SortFunc(ids, func(a, b broker.LeaseID) int { return slices.Compare(a[:], b[:]) })
}

// The database of an earlier version (schema version 6) keeps its leases, finds those
// of a request, and continues.
func TestDatabaseOfVersion6(t *testing.T) {
	storetest.OnlySQLite(t, "databases from before PostgreSQL")
	path := unzip(t, filepath.Join("..", "store", "testdata", "version6.db.gz"))
	s, err := store.Open(t.Context(), store.Config{URL: tables.URL(t, path), Reserve: 1 << 16, NoSync: true, Existing: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	counts, err := s.CountActive(t.Context(), noon)
	if want := []store.Active{{Entitlement: "tickets", Issuer: "tickets", Leases: 2}, {Entitlement: "db", Issuer: "db", Leases: 2}}; err != nil || !slices.Equal(counts, want) {
		t.Errorf("got live leases %v, %v, want %v", counts, err, want)
	}
	b := start(t, broker.Config{Store: s, Issuers: map[string]broker.Issuer{"tickets": signer{}, "db": &system{live: map[string]time.Time{}}}}, testRules(t, testPolicies))
	request, err := broker.ParseRequestID("req_06h0ghnu01o013au3hou5up78c")
	if err != nil {
		t.Fatal(err)
	}
	var want []broker.LeaseID
	for _, text := range []string{"lse_06h0gho5q1o0147o25p635j6sg", "lse_06h0gho1t1o013pv45q51di274", "lse_06h0ghnu01o03avptti886v26k"} {
		id, err := broker.ParseLeaseID(text)
		if err != nil {
			t.Fatal(err)
		}
		want = append(want, id)
	}
	if got := leaseIDs(t, b, agent(noon), request, noon); !slices.Equal(got, want) {
		t.Errorf("got leases %v, want %v", got, want)
	}
	at := noon.Add(time.Minute)
	issued, err := b.Collect(t.Context(), broker.Self(agent(at), at), request, broker.IdempotencyKey{})
	if err != nil {
		t.Fatal(err)
	}
	want = append(want, issued.Lease.ID)
	got := leaseIDs(t, b, agent(noon), request, at)
	sortIDs(got)
	sortIDs(want)
	if !slices.Equal(got, want) {
		t.Errorf("after another collection: got leases %v, want %v", got, want)
	}
	// The store dates records by the real time, and the grant of this database has long
	// ended by then. The verifier objects to the new record for that, and to nothing else.
	r, _ := verify.Verify(t.Context(), s.Source(), verify.Options{})
	if r == nil || r.Records != 13 || len(r.Problems) != 1 || r.Problems[0].Index != 12 || !strings.HasPrefix(r.Problems[0].What, "the grant had ended") {
		t.Errorf("got %+v, want 13 records, and only the last one after the end of its grant", r)
	}
}

func unzip(t *testing.T, name string) (path string) {
	t.Helper()
	f, err := os.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	z, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	content, err := io.ReadAll(z)
	if err != nil {
		t.Fatal(err)
	}
	path = filepath.Join(t.TempDir(), "broker.db")
	if err := os.WriteFile(path, content, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}
