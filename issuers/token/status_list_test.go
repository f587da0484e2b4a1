package token

import (
	"context"
	"errors"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"accessbroker.internal/broker"
	"accessbroker.internal/issuers/issuertest"
)

// A token of a lease with a place in a status list names list and index; others have no
// status.
func TestTokenNamesItsPlace(t *testing.T) {
	keys := openKeys(t, testConfig(t, issuertest.Store(t), "ES256"), issuertest.Noon)
	issuer := New(testIssuer, testAudience, keys)
	l := issuertest.Lease(issuertest.Noon)
	if status, has := verify(t, keys.JWKS(issuertest.Noon), mint(t, issuer, l))["status"]; has {
		t.Errorf("a token without a place has the status %v", status)
	}
	l.Listed = broker.StatusPlace{List: broker.StatusListID{1, 2}, Index: 0}
	status := verify(t, keys.JWKS(issuertest.Noon), mint(t, issuer, l))["status"].(map[string]any)["status_list"].(map[string]any)
	if status["idx"] != float64(0) || status["uri"] != testIssuer+"/oauth2/status/"+l.Listed.List.String() {
		t.Errorf("got the place %v", status)
	}
}

// statusReader is a store with one list.
type statusReader struct {
	broker.StatusReader
	bits    []byte
	version uint64
	read    func() // called by each reading; nil: none
}

func (r *statusReader) EndedPlaces(context.Context, *broker.StatusList) ([]byte, uint64, error) {
	if r.read != nil {
		r.read()
	}
	return r.bits, r.version, nil
}

func (r *statusReader) ListedLeases(context.Context, *broker.StatusList, broker.ListedQuery, func(*broker.Lease)) error {
	return nil
}

// oneList returns a list whose bits come from the reader.
func oneList(t *testing.T, now time.Time) (broker.StatusListID, *statusReader, *Keys, *StatusLists) {
	t.Helper()
	store := issuertest.Store(t)
	keys := openKeys(t, testConfig(t, store, "ES256"), now)
	id := broker.StatusListID{1}
	row := &broker.StatusList{ID: id, Opened: now, Closes: now.Add(time.Hour), Expires: now.Add(2 * time.Hour)}
	if err := store.Update(t.Context(), nil, func(tx broker.Tx) error { tx.Put(row); return nil }); err != nil {
		t.Fatal(err)
	}
	reader := &statusReader{bits: make([]byte, broker.StatusListSize/8)}
	b, err := broker.New(t.Context(), broker.Config{Store: store, Issuers: map[string]broker.Issuer{}, Statuses: reader}, &broker.Rules{}, broker.Caller{At: now})
	if err != nil {
		t.Fatal(err)
	}
	return id, reader, keys, NewStatusLists(StatusListsConfig{Issuer: testIssuer, Keys: keys, Lists: b.StatusLists, TTL: 15 * time.Second})
}

// Calls that come while a list is made share the next making, and see what ended before them.
func TestCallsShareAList(t *testing.T) {
	id, reader, _, lists := oneList(t, issuertest.Noon)
	entered, release := make(chan struct{}, 1000), make(chan struct{})
	var read atomic.Int64
	reader.read = func() { read.Add(1); entered <- struct{}{}; <-release }
	get := func() {
		if _, err := lists.Token(t.Context(), id.String(), issuertest.Noon); err != nil {
			t.Error(err)
		}
	}
	var group sync.WaitGroup
	group.Go(get)
	<-entered
	for range 100 {
		group.Go(get)
	}
	made := lists.madeOf(id)
	for waits := false; !waits; runtime.Gosched() {
		made.mu.Lock()
		waits = made.next != nil
		made.mu.Unlock()
	}
	left, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := lists.Token(left, id.String(), issuertest.Noon); err == nil {
		t.Error("a call that left has a list")
	}
	close(release)
	group.Wait()
	if n := read.Load(); n < 2 || n > 50 {
		t.Errorf("102 calls made the list %d times", n)
	}
}

// A list is signed anew when its bits change or its ttl has passed, and not more often. Its key
// signs only lists and tokens of its own types.
func TestStatusListIsSignedWhenItChanges(t *testing.T) {
	now := issuertest.Noon
	id, reader, keys, lists := oneList(t, now)
	get := func() string {
		t.Helper()
		text, err := lists.Token(t.Context(), id.String(), now)
		if err != nil {
			t.Fatal(err)
		}
		return text
	}
	first := get()
	now = now.Add(14 * time.Second)
	if get() != first {
		t.Error("an unchanged list was signed again within its ttl")
	}
	var claims struct {
		Subject string `json:"sub"`
		Expires int64  `json:"exp"`
		TTL     int64  `json:"ttl"`
	}
	if err := keys.VerifyTyped("statuslist+jwt", first, now, &claims); err != nil || claims.Subject != StatusListURI(testIssuer, id) || claims.TTL != 15 || claims.Expires != issuertest.Noon.Unix()+60 {
		t.Errorf("got %+v, %v", claims, err)
	}
	if err := keys.VerifyTyped("at+jwt", first, now, &claims); err == nil {
		t.Error("a status list is an access token")
	}
	if _, err := New(testIssuer, testAudience, keys).Inspect(t.Context(), first); !errors.Is(err, broker.ErrNotFound) {
		t.Errorf("introspection of a status list: got %v", err)
	}
	reader.bits, reader.version = append([]byte{1}, reader.bits[1:]...), 1
	changed := get()
	if changed == first {
		t.Error("a changed list was not signed again")
	}
	now = now.Add(15 * time.Second)
	if get() == changed {
		t.Error("after its ttl, a list was not signed again")
	}
	for _, name := range []string{"", "x", broker.StatusListID{2}.String()} {
		if _, err := lists.Token(t.Context(), name, now); !errors.Is(err, broker.ErrNotFound) {
			t.Errorf("list %q: got %v, want not found", name, err)
		}
	}
}
