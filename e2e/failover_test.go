package e2e

import (
	"bytes"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"accessbroker.internal/e2e/cluster"
)

// TestFailover promotes a streaming standby after the primary has crashed. The replicas follow
// it without help, by a URL that names both servers.
func TestFailover(t *testing.T) {
	t.Parallel()
	w := startAway(t, failoverOptions())
	ctx := t.Context()
	before := w.wantToken(w.Replicas[0], "before")
	if err := w.Postgres.AwaitStandby(ctx, w.Standby); err != nil {
		t.Fatal(err)
	}
	w.Postgres.Crash()
	for _, b := range w.Replicas {
		w.wantAway(b, "no database listens", "was cut", "read-only")
	}
	if err := w.Standby.Promote(ctx); err != nil {
		t.Fatal(err)
	}
	for _, b := range w.Replicas {
		w.wantToken(b, "after the failover")
		if _, err := w.client(b).Lease(ctx, before.Lease); err != nil {
			t.Errorf("a lease from before the failover: %v", err)
		}
	}
	w.verify(w.Standby.DSN(cluster.Owner, cluster.Database))
}

func failoverOptions() cluster.Options {
	return cluster.Options{Replicas: 2, Standby: true, Postgres: &cluster.PostgresOptions{Settings: []string{"fsync = off"}},
		StoreURL: func(w *cluster.World, _ int) string {
			return cluster.DSN(cluster.Role, cluster.Database, w.Postgres.Address(), w.Standby.Address())
		}}
}

// TestFailoverThatLosesCommits promotes a standby that has not received the last commits.
// Running replicas and one that starts refuse to continue the log, until an operator opens a
// new one.
func TestFailoverThatLosesCommits(t *testing.T) {
	t.Parallel()
	w := startAway(t, failoverOptions())
	ctx := t.Context()
	w.wantToken(w.Replicas[0], "before")
	if err := w.Postgres.AwaitStandby(ctx, w.Standby); err != nil {
		t.Fatal(err)
	}
	w.Standby.Stop() // what follows reaches it too late
	var lost []string
	for _, b := range w.Replicas {
		known, err := os.ReadFile(b.CheckpointFile())
		if err != nil {
			t.Fatal(err)
		}
		got, err := w.ask(w.client(b))
		if err != nil {
			t.Fatal(err)
		}
		lost = append(lost, got.Lease)
		eventually(t, "a checkpoint of what will be lost", recovers, func() error {
			if now, err := os.ReadFile(b.CheckpointFile()); err != nil || bytes.Equal(now, known) {
				return fmt.Errorf("it is not in %s: %w", b.CheckpointFile(), err)
			}
			return nil
		})
	}
	w.Postgres.Crash()
	if err := w.Standby.Start(ctx); err != nil {
		t.Fatal(err)
	}
	if err := w.Standby.Promote(ctx); err != nil {
		t.Fatal(err)
	}
	for _, b := range w.Replicas {
		w.wantAway(b, "the database went back", "lacks commits")
	}
	b := w.Replicas[0]
	b.Kill()
	if err := b.Launch(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the restarted replica to refuse", recovers, func() error {
		if !b.Process().Ended() {
			return fmt.Errorf("it runs")
		}
		return nil
	})
	if out := b.Output(); b.Process().Cmd.ProcessState.ExitCode() == 0 || !strings.Contains(out[max(0, len(out)-2000):], "new-epoch") {
		t.Errorf("the restarted replica ended with %s:\n%s", b.Process().Cmd.ProcessState, out[max(0, len(out)-2000):])
	}
	w.Replicas[1].Kill()
	eventually(t, "a new log", time.Minute, func() error { // it waits for signs of the replicas' end
		_, err := b.CLI(ctx, "audit", "new-epoch", "--config", b.ConfigFile(), "--checkpoint", w.Replicas[1].CheckpointFile())
		return err
	})
	clear(w.answered) // their records are in the old log
	for _, b := range w.Replicas {
		if err := b.Start(ctx); err != nil {
			t.Fatal(err)
		}
		w.wantToken(b, "of the new log")
	}
	c := w.client(b)
	for _, lease := range lost {
		if got, err := c.Lease(ctx, lease); err == nil {
			t.Errorf("the lost lease %s is %s", lease, got.Status)
		}
	}
	w.verify(w.Standby.DSN(cluster.Owner, cluster.Database))
}
