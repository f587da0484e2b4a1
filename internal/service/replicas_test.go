package service_test

import (
	"encoding/json"
	"net/http"
	"testing"
	"time"

	"accessbroker.internal/store"
)

// While a replica announces itself again, /readyz and the metrics show the replicas of the
// last time, and not that there are none.
func TestReplicasAreCountedWithoutGaps(t *testing.T) {
	w, start := replicas(t)
	a := start("a")
	agent := a.agent(w)
	ready := func() int {
		t.Helper()
		resp, err := agent.HTTP.Get(agent.BaseURL + "/readyz")
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = resp.Body.Close() }()
		var body struct {
			Replica struct{ Replicas map[string]int }
		}
		if err := json.NewDecoder(resp.Body).Decode(&body); err != nil || resp.StatusCode != http.StatusOK {
			t.Fatalf("got %d, %v", resp.StatusCode, err)
		}
		return body.Replica.Replicas["ready"]
	}
	deadline := time.Now().Add(30 * time.Second)
	for ready() != 1 {
		if time.Now().After(deadline) {
			t.Fatal("the replica does not count itself")
		}
		time.Sleep(10 * time.Millisecond)
	}
	for end := time.Now().Add(2*store.ReplicaEvery + time.Second); time.Now().Before(end); {
		if n := ready(); n != 1 {
			t.Fatalf("got %d ready replicas, want 1", n)
		}
	}
}
