package server

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"accessbroker.internal/api"
	"accessbroker.internal/broker"
	"accessbroker.internal/internal/storetest"
)

// Waiting long polls and event streams do not read the database. A change costs one
// read, by the long poll of the changed request.
func TestWaitingCostsNoReads(t *testing.T) {
	storetest.OnlySQLite(t, "its time stands still, and the server's does not")
	t.Parallel()
	t.Run("no waiters", func(t *testing.T) { synctest.Test(t, func(t *testing.T) { countReads(t, 0, 0) }) })
	t.Run("many waiters", func(t *testing.T) { synctest.Test(t, func(t *testing.T) { countReads(t, 1000, 200) }) })
}

// countReads counts the reads of waiting long polls and watching event streams. Time
// passes only while all of them wait.
func countReads(t *testing.T, waiting, watching int) {
	const filed, changes = 1000, 3
	w, now := newQuietWorld(t, func(cfg *Config) {
		withPeople(cfg)
		cfg.Remembers = func(string) bool { return true } // so that no call waits for its turn to be verified
	}), time.Now()
	requests := make([]*broker.Request, 0, filed)
	w.fill(t, filed, func(i int) *broker.Request {
		r := oneRequest(now, i)
		r.Status, r.Lapses = broker.RequestPending, now.Add(24*time.Hour)
		requests = append(requests, r)
		return r
	})
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	handler := w.Handler(API, UI)
	call := func(method, path, header, proof string) *httptest.ResponseRecorder {
		r, answer := httptest.NewRequestWithContext(ctx, method, path, nil), httptest.NewRecorder()
		r.Host = "broker.acme.test:443"
		r.Header.Set(header, proof)
		handler.ServeHTTP(answer, r)
		return answer
	}
	own := func(method string, r *broker.Request, what string) *httptest.ResponseRecorder {
		return call(method, "/v1/requests/"+r.ID.String()+what, "Authorization", "Bearer "+r.Requester.ID)
	}

	var all sync.WaitGroup
	polls, events := make([]*httptest.ResponseRecorder, waiting), make([]*httptest.ResponseRecorder, watching)
	for i := range polls {
		all.Go(func() { polls[i] = own(http.MethodGet, requests[i], "?after=1&wait="+api.MaxWait.String()) })
	}
	for from := 0; from < watching; from += streamsPerSecond { // as many as one person may open at once
		cookie := sessionCookie + "=" + w.session(t, fmt.Sprintf("login/p%d", from)).Reveal()
		for i := from; i < from+streamsPerSecond; i++ {
			all.Go(func() { events[i] = call(http.MethodGet, "/ui/events", "Cookie", cookie) })
		}
	}
	synctest.Wait()

	before := w.store.reads.Load()
	time.Sleep(api.MaxWait - time.Second)
	if n := w.store.reads.Load() - before; n != 0 {
		t.Errorf("got %d reads of the database without a change, want 0", n)
	}
	for _, r := range requests[:changes] {
		if answer := own(http.MethodPost, r, "/withdraw"); answer.Code != http.StatusOK {
			t.Fatalf("withdrawing: %d %s", answer.Code, answer.Body)
		}
	}
	synctest.Wait()
	want := int64(changes + min(waiting, changes)) // one by the withdrawal, one by its long poll
	if n := w.store.reads.Load() - before; n != want {
		t.Errorf("%d changes: got %d reads of the database, want %d", changes, n, want)
	}
	cancel()
	all.Wait()
	for i, answer := range polls {
		if withdrawn := strings.Contains(answer.Body.String(), `"status":"withdrawn"`); answer.Code != http.StatusOK || withdrawn != (i < changes) {
			t.Fatalf("poll %d: %d %s", i, answer.Code, answer.Body)
		}
	}
	for i, answer := range events {
		if !strings.Contains(answer.Body.String(), "event: changed") {
			t.Fatalf("stream %d got no event: %d %s", i, answer.Code, answer.Body)
		}
	}
}
