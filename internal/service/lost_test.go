package service_test

import (
	"bytes"
	"encoding/base64"
	"errors"
	"io"
	"net"
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
)

// A broker whose database is moved away is not ready and says why in its log, its
// metrics and /readyz. It issues nothing until the database is back.
func TestDatabaseMovedAway(t *testing.T) {
	w := brokertest.NewWorld(t)
	w.StartIdentities()
	var logged bytes.Buffer
	listeners, stop := w.Start(&logged)
	agent, database := w.Agent(), w.Path("broker.db")
	if _, _, err := agent.AskAndCollect(t.Context(), ticketsRead); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(database, database+".old"); err != nil {
		t.Fatal(err)
	}
	// One call, because the client repeats calls that a broker cannot serve.
	if err := askOnce(agent); !hasStatus(err, http.StatusServiceUnavailable) {
		t.Errorf("a request: got %v, want 503", err)
	}
	status, missing := readiness(t, listeners[1])
	if status != http.StatusServiceUnavailable || !strings.Contains(missing["store"], "broker.db was removed or moved") {
		t.Errorf("readyz: got %d, %v", status, missing)
	}
	if text := scrape(t, listeners[1]); !strings.Contains(text, "\nbroker_store_files_lost 1\n") {
		t.Errorf("got metrics\n%s", text)
	}
	if err := os.Rename(database+".old", database); err != nil {
		t.Fatal(err)
	}
	brokertest.Eventually(t, "ready", func() bool { status, _ := readiness(t, listeners[1]); return status == http.StatusOK })
	if err := askOnce(agent); err != nil {
		t.Errorf("with the database back: got %v", err)
	}
	if text := scrape(t, listeners[1]); !strings.Contains(text, "\nbroker_store_files_lost 0\n") {
		t.Errorf("got metrics\n%s", text)
	}
	stop()
	if n := strings.Count(logged.String(), "the database files are not the ones"); n != 1 || !strings.Contains(logged.String(), "level=ERROR") {
		t.Errorf("got %d lines about the files, want 1:\n%s", n, &logged)
	}
}

func askOnce(c *api.Client) error {
	r, err := http.NewRequest(http.MethodPost, c.BaseURL+"/v1/credentials", strings.NewReader(`{"entitlement":"tickets-api","scopes":["tickets:read"],"justification":"to see"}`))
	if err != nil {
		return err
	}
	r.Header.Set("Content-Type", "application/json")
	resp, err := c.HTTP.Do(r)
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }()
	if resp.StatusCode != http.StatusCreated {
		text, _ := io.ReadAll(resp.Body)
		return &api.Error{Status: resp.StatusCode, Detail: string(text)}
	}
	return nil
}

func hasStatus(err error, status int) bool {
	var e *api.Error
	return errors.As(err, &e) && e.Status == status
}

func scrape(t *testing.T, metrics net.Listener) string {
	t.Helper()
	resp, err := http.Get("http://" + metrics.Addr().String() + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// files lists the files of a folder and those in its folders.
func files(t *testing.T, dir string) (list []string) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, _ os.DirEntry, err error) error {
		list = append(list, path)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return list
}

// A start that is refused leaves no new database behind: its log would verify.
func TestRefusedStartLeavesNoDatabase(t *testing.T) {
	for name, test := range map[string]struct {
		damage func(t *testing.T, w *brokertest.World)
		says   string
	}{
		"checkpoint of another database": {func(t *testing.T, w *brokertest.World) {
			w.Lease(ticketsRead)
			for _, name := range []string{"broker.db", "broker.db.rules", "broker.db.lock", "broker.db.reserve"} {
				if err := os.RemoveAll(w.Path(name)); err != nil {
					t.Fatal(err)
				}
			}
		}, "checkpoint"},
		"a copy of the database and another key": {func(t *testing.T, w *brokertest.World) {
			w.Lease(ticketsRead)
			for _, name := range []string{"broker.db.rules", "broker.db.lock", "broker.db.reserve", "broker.db.checkpoint"} {
				if err := os.RemoveAll(w.Path(name)); err != nil {
					t.Fatal(err)
				}
			}
			if err := os.WriteFile(w.Path("seal.key"), []byte(base64.StdEncoding.EncodeToString(bytes.Repeat([]byte{7}, 32))), 0o600); err != nil {
				t.Fatal(err)
			}
		}, "seal"},
		"checkpoint file is a folder": {func(t *testing.T, w *brokertest.World) {
			if err := os.MkdirAll(w.Path("broker.db.checkpoint"), 0o700); err != nil {
				t.Fatal(err)
			}
		}, "checkpoint"},
		"SVID of another trust domain": {func(_ *testing.T, w *brokertest.World) {
			w.MoveTrustDomain("other.test")
		}, "other.test"},
		"port in use": {func(t *testing.T, w *brokertest.World) {
			l, err := net.Listen("tcp", w.Broker)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = l.Close() })
		}, "address already in use"},
		"unreadable CA of an issuer": {func(_ *testing.T, w *brokertest.World) {
			w.Edit("issuers:\n", "issuers:\n  vault: {vault: {address: https://vault.test:8200, ca_file: /dev/null, auth: {jwt: {role: broker}}, token_role: leases}}\n")
		}, "issuer vault"},
	} {
		t.Run(name, func(t *testing.T) {
			w := brokertest.NewWorld(t)
			test.damage(t, w)
			w.StartIdentities()
			before := files(t, w.Path(""))
			for range 2 { // the second start must not find anything of the first
				s, err := w.Open(io.Discard, nil)
				if err == nil {
					err = s.Run(t.Context())
				}
				if err == nil || !strings.Contains(err.Error(), test.says) {
					t.Errorf("got %v, want an error with %q", err, test.says)
				}
				if after := files(t, w.Path("")); !slices.Equal(after, before) {
					t.Errorf("got files\n%q, want\n%q", after, before)
				}
			}
		})
	}
}

// A new epoch needs a database. A wrong path must not create one.
func TestNewEpochCreatesNoDatabase(t *testing.T) {
	w := brokertest.NewWorld(t)
	c, err := config.Load(w.ConfigFile(), nil)
	if err != nil {
		t.Fatal(err)
	}
	before := files(t, w.Path(""))
	if _, err := service.NewEpoch(t.Context(), c, nil, false); err == nil || !strings.Contains(err.Error(), "there is no database") {
		t.Errorf("got %v", err)
	}
	if after := files(t, w.Path("")); !slices.Equal(after, before) {
		t.Errorf("got files %q, want %q", after, before)
	}
}
