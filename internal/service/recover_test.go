package service_test

import (
	"io"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"accessbroker.internal/api"
	"accessbroker.internal/internal/brokertest"
	"accessbroker.internal/internal/config"
	"accessbroker.internal/internal/service"
	"accessbroker.internal/store"
)

// restoreWorld issues a token, backs the database up, issues another one, and restores the
// backup. It returns both tokens.
func restoreWorld(t *testing.T, w *brokertest.World) (before, after *api.Credential) {
	t.Helper()
	_, stop := w.Start(io.Discard)
	issue := func() *api.Credential {
		t.Helper()
		c, _, err := w.Agent().AskAndCollect(t.Context(), ticketsRead)
		if err != nil || c == nil {
			t.Fatalf("issuing: %v, %v", c, err)
		}
		return c
	}
	before = issue()
	file := filepath.Join(t.TempDir(), "b.backup")
	if _, err := store.Backup(t.Context(), w.Database(), file, store.BackupOptions{}); err != nil {
		t.Fatal(err)
	}
	after = issue()
	stop()
	if _, err := store.Restore(t.Context(), file, w.Database(), store.RestoreOptions{Replace: true}); err != nil {
		t.Fatal(err)
	}
	return before, after
}

func loadConfig(t *testing.T, w *brokertest.World) *config.Config {
	t.Helper()
	c, err := config.Load(w.ConfigFile(), nil)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// After a new log, no token from before is accepted: the record of its end may be lost, or its
// own.
func TestNewEpochEndsTokensFromBefore(t *testing.T) {
	w := brokertest.NewWorld(t)
	w.StartIdentities()
	before, after := restoreWorld(t, w)
	c := loadConfig(t, w)
	plan, err := service.NewEpoch(t.Context(), c, nil, true)
	if err != nil || plan.Origin != "" || plan.Lost.Live != 1 || plan.Since.IsZero() {
		t.Errorf("a dry run: got %+v, %v", plan, err)
	}
	epoch, err := service.NewEpoch(t.Context(), c, nil, false)
	if err != nil || epoch.Origin == "" {
		t.Fatalf("got %+v, %v", epoch, err)
	}
	// The command was killed here. The broker continues, and accepts neither token meanwhile.
	listeners, _ := w.Start(io.Discard)
	agent := w.Agent()
	for name, token := range map[string]*api.Credential{"known": before, "unknown": after} {
		if found, err := agent.Introspect(t.Context(), api.Token(token.Secret["token"])); err != nil || found.Active {
			t.Errorf("a token whose lease is %s: got %+v, %v", name, found, err)
		}
	}
	brokertest.Eventually(t, "the end of the known token", func() bool {
		lease, err := agent.Lease(t.Context(), before.Lease)
		return err == nil && lease.Status == "revoked"
	})
	src, err := store.OpenSource(t.Context(), w.Database())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = src.Close() }()
	brokertest.Eventually(t, "the end of the recovery", func() bool {
		r, err := src.Recoveries().Last(t.Context())
		return err == nil && r != nil && !r.Finished.IsZero() && len(r.Trouble) == 0
	})
	fresh, _, err := agent.AskAndCollect(t.Context(), ticketsRead)
	if err != nil {
		t.Fatal(err)
	}
	if found, err := agent.Introspect(t.Context(), api.Token(fresh.Secret["token"])); err != nil || !found.Active {
		t.Errorf("a new token: got %+v, %v", found, err)
	}
	if status, _ := readiness(t, listeners[1]); status != http.StatusOK {
		t.Errorf("readyz: got %d", status)
	}
}

// A second restore has a time of its own, in which other credentials were issued. Those of the
// first time do not hide them.
func TestSecondRestoreListsItsOwnTime(t *testing.T) {
	w := brokertest.NewWorld(t)
	w.StartIdentities()
	for range 2 {
		restoreWorld(t, w)
		c := loadConfig(t, w)
		if _, err := service.NewEpoch(t.Context(), c, nil, false); err != nil {
			t.Fatal(err)
		}
		if err := service.Recover(t.Context(), service.Options{Config: c, Log: slog.New(slog.DiscardHandler)}); err != nil {
			t.Fatal(err)
		}
	}
	src, err := store.OpenSource(t.Context(), w.Database())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = src.Close() }()
	list, err := src.Recoveries().Orphans(t.Context(), nil, 100)
	if err != nil {
		t.Fatal(err)
	}
	var targets []string
	for _, o := range list {
		if o.Issuer == "tickets" {
			targets = append(targets, o.Target)
		}
	}
	if want := []string{"all", "all, before log 3"}; !slices.Equal(targets, want) {
		t.Errorf("got %q, want %q", targets, want)
	}
}

// A new log names the newest checkpoint of all replicas. A replica whose file is older sets it
// aside and starts; one whose file covers more does not.
func TestNewEpochTakesCheckpointFilesOfOtherReplicas(t *testing.T) {
	w := brokertest.NewWorld(t)
	w.StartIdentities()
	_, stop := w.Start(io.Discard)
	stop()
	older, err := os.ReadFile(w.Path("broker.db.checkpoint"))
	if err != nil {
		t.Fatal(err)
	}
	restoreWorld(t, w)
	newest, err := os.ReadFile(w.Path("broker.db.checkpoint"))
	if err != nil {
		t.Fatal(err)
	}
	other := w.Path("other.checkpoint")
	write := func(path string, note []byte) {
		t.Helper()
		if err := os.WriteFile(path, note, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	c := loadConfig(t, w)
	write(w.Path("broker.db.checkpoint"), older)
	if _, err := service.NewEpoch(t.Context(), c, nil, false); err == nil || !strings.Contains(err.Error(), service.ErrNoNewLog.Error()) {
		t.Errorf("the own file is not ahead of the log: got %v", err)
	}
	if _, err := service.NewEpoch(t.Context(), c, []string{other}, false); err == nil || !strings.Contains(err.Error(), "no such checkpoint file") {
		t.Errorf("a file that does not exist: got %v", err)
	}
	write(other, newest)
	if _, err := service.NewEpoch(t.Context(), c, []string{other}, false); err != nil {
		t.Fatal(err)
	}
	for name, note := range map[string][]byte{"older": older, "the one that was named": newest} {
		write(w.Path("broker.db.checkpoint"), note)
		s, err := w.Open(io.Discard, nil)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}
	more := strings.Replace(string(newest), "\n", "\n9", 1) // its signature is not the point
	write(w.Path("broker.db.checkpoint"), []byte(more))
	if s, err := w.Open(io.Discard, nil); err == nil || !strings.Contains(err.Error(), "new-epoch") {
		_ = s.Close()
		t.Errorf("a file that covers more: got %v", err)
	}
}
