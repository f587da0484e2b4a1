package e2e

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"accessbroker.internal/api"
	"accessbroker.internal/e2e/cluster"
)

// PostgreSQL is restored to a point in time by its own means. The replicas notice that the log
// went back, and start again once one of them has opened a new log; what was issued after that
// point is no longer accepted.
func TestPostgresRestoredToAPointInTime(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	archive, err := cluster.Archive()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(archive) })
	w, err := cluster.Start(ctx, cluster.Options{Replicas: 2, Binary: brokerBinary(t), Postgres: &cluster.PostgresOptions{Settings: []string{
		"wal_level = replica", "archive_mode = on", "archive_command = 'test ! -f " + archive + "/%f && cp %p " + archive + "/%f'",
	}}})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := w.Close(); err != nil {
			t.Error(err)
		}
	}()
	p, first, second := w.Postgres, w.Replicas[0], w.Replicas[1]
	base, err := p.BaseBackup(ctx, "base")
	if err != nil {
		t.Fatal(err)
	}
	issue := func(b *cluster.Broker) *api.Credential {
		t.Helper()
		c, _, err := w.Client(b, "spiffe://acme.test/service/report").AskAndCollect(ctx, api.Ask{Entitlement: "tickets-api", Scopes: []string{"tickets:read"}})
		if err != nil || c == nil {
			t.Fatalf("issuing: %v, %v", c, err)
		}
		return c
	}
	query := func(sql string) string {
		t.Helper()
		out, err := p.Exec(ctx, cluster.Database, sql)
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	issue(first)
	point := query("SELECT pg_current_wal_flush_lsn()")
	lost := issue(second)
	head := query("SELECT size FROM head")
	eventually(t, "a checkpoint of the last record", time.Minute, func() error {
		for _, b := range w.Replicas {
			note, err := os.ReadFile(b.CheckpointFile())
			if err == nil && strings.Contains(string(note), "\n"+head+"\n") {
				return nil
			}
		}
		return fmt.Errorf("no checkpoint covers %s records", head)
	})
	for _, b := range w.Replicas {
		if err := b.Stop(); err != nil {
			t.Error(err)
		}
	}
	p.Stop()
	if err := p.Rewind(ctx, base, "restore_command = 'cp "+archive+"/%f %p'", "recovery_target_lsn = '"+point+"'", "recovery_target_action = 'promote'"); err != nil {
		t.Fatal(err)
	}
	if size := query("SELECT size FROM head"); size == head {
		t.Fatalf("the log still has %s records: it did not go back", size)
	}

	refused := 0
	for _, b := range w.Replicas {
		if _, err := b.CLI(ctx, "serve", "--config", b.ConfigFile()); err == nil {
			t.Errorf("%s started and ended", b.Name)
		} else if strings.Contains(err.Error(), "broker audit new-epoch") || strings.Contains(b.Output(), "broker audit new-epoch") {
			refused++
		}
	}
	if refused == 0 {
		t.Error("no replica noticed that the log went back")
	}
	var out string
	eventually(t, "a new log", time.Minute, func() (err error) {
		out, err = first.CLI(ctx, "audit", "new-epoch", "--config", first.ConfigFile(), "--checkpoint", second.CheckpointFile())
		return err
	})
	if !strings.Contains(out, "is open") || !strings.Contains(out, "complete since") {
		t.Errorf("new-epoch:\n%s", out)
	}
	if err := w.StartBrokers(ctx); err != nil {
		t.Fatal(err)
	}
	for _, b := range w.Replicas {
		issue(b)
		found, err := w.Client(b, "spiffe://acme.test/service/report").Introspect(ctx, api.Token(lost.Secret["token"]))
		if err != nil || found.Active {
			t.Errorf("%s: a token without records: %+v, %v", b.Name, found, err)
		}
	}
	url := filepath.Join(t.TempDir(), "store.url")
	if err := os.WriteFile(url, []byte(p.DSN(cluster.Owner, cluster.Database)), 0o600); err != nil {
		t.Fatal(err)
	}
	for command, want := range map[string]string{"verify": "all checks passed", "recovery": "complete since"} {
		if out, err := first.CLI(ctx, "audit", command, "file:"+url); err != nil || !strings.Contains(out, want) {
			t.Errorf("audit %s: %v\n%s", command, err, out)
		}
	}
	file := filepath.Join(t.TempDir(), "broker.backup")
	if _, err := first.CLI(ctx, "backup", "--config", first.ConfigFile(), file); err == nil || !strings.Contains(err.Error(), "docs/operations.md") {
		t.Errorf("backup: got %v", err)
	}
	if _, err := os.Stat(file); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("backup wrote a file: %v", err)
	}
}
