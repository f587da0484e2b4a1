package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"accessbroker.internal/api"
)

// TestAlertCases runs the cases of the alerts with promtool.
func TestAlertCases(t *testing.T) {
	t.Parallel()
	for _, args := range [][]string{{"check", "rules", "rules.yaml"}, {"test", "rules", "rules.test.yaml"}} {
		cmd := exec.Command(installed(t, "promtool"), args...)
		cmd.Dir = "../deploy/prometheus"
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("promtool %s: %v\n%s", strings.Join(args, " "), err, out)
		}
	}
}

// TestPrometheus lets a real Prometheus scrape a real broker, in both formats of
// histograms. Each alert finds the series that it compares.
func TestPrometheus(t *testing.T) {
	t.Parallel() // it mostly waits
	s := startSPIRE(t, "acme.test")
	s.register(t, "/agent/triage", ownBinary(t))
	w := newBroker(t, s)
	w.configure(t, []string{s.domain}, agentsPolicy)
	metrics := fmt.Sprintf("127.0.0.1:%d", freePort(t))
	text, err := os.ReadFile(filepath.Join(w.dir, "broker.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	w.write(t, "hook.secret", "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
	w.write(t, "broker.yaml", strings.NewReplacer(
		"\n  admin_socket:", "\n  metrics: "+metrics+"\n  admin_socket:",
		"\nstore:", "\nnotify: {webhook: {siem: {url: 'https://hooks.acme.test/broker', secret_files: [hook.secret]}}}\nstore:",
	).Replace(string(text)))
	w.start(t)
	agent := w.mtlsClient(t, source(t, s))
	for range 3 {
		if _, _, err := agent.AskAndCollect(t.Context(), api.Ask{Entitlement: "tickets-api", Scopes: []string{"tickets:read"}}); err != nil {
			t.Fatal(err)
		}
	}
	t.Run("classic histograms", func(t *testing.T) { startPrometheus(t, metrics).findsSeries(t, true) })
	t.Run("native histograms", func(t *testing.T) {
		startPrometheus(t, metrics, "--enable-feature=native-histograms").findsSeries(t, false)
	})
}

// A prometheus is a real Prometheus with the alerts of this product.
type prometheus struct{ address string }

func startPrometheus(t *testing.T, target string, flags ...string) *prometheus {
	t.Helper()
	dir := t.TempDir()
	rules, err := filepath.Abs("../deploy/prometheus/rules.yaml")
	if err != nil {
		t.Fatal(err)
	}
	config := fmt.Sprintf(`
global: {scrape_interval: 1s, evaluation_interval: 1s}
rule_files: [%s]
scrape_configs:
  - {job_name: access-broker, static_configs: [{targets: [%q]}]}
`, rules, target)
	if err := os.WriteFile(filepath.Join(dir, "prometheus.yml"), []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	p := &prometheus{fmt.Sprintf("127.0.0.1:%d", freePort(t))}
	args := append([]string{"--config.file", filepath.Join(dir, "prometheus.yml"), "--storage.tsdb.path", filepath.Join(dir, "data"), "--web.listen-address", p.address}, flags...)
	if _, err := start(t, "prometheus", installed(t, "prometheus"), args...); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the second scrape", time.Minute, func() error {
		found, err := p.query("count_over_time(up{job='access-broker'}[1m]) > 2", 0)
		if err == nil && found == 0 {
			err = errors.New("not yet")
		}
		return err
	})
	return p
}

// get reads a resource of the API.
func (p *prometheus) get(path string, data any) error {
	resp, err := http.Get("http://" + p.address + "/api/v1/" + path)
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }()
	answer := struct {
		Status, Error string
		Data          any
	}{Data: data}
	if err := json.NewDecoder(resp.Body).Decode(&answer); err != nil {
		return err
	}
	if answer.Status != "success" {
		return fmt.Errorf("%s: %s", path, answer.Error)
	}
	return nil
}

// query returns how many series an expression finds, some time from now.
func (p *prometheus) query(expr string, later time.Duration) (int, error) {
	var data struct{ Result []any }
	at := float64(time.Now().Add(later).UnixMilli()) / 1000
	err := p.get("query?"+url.Values{"query": {expr}, "time": {fmt.Sprint(at)}}.Encode(), &data)
	return len(data.Result), err
}

var comparison = regexp.MustCompile(`\s(?:>|<|==)\s`)

// findsSeries checks that what every alert compares has series.
func (p *prometheus) findsSeries(t *testing.T, classic bool) {
	buckets, err := p.query("broker_commit_seconds_bucket", 0)
	if err != nil || (buckets > 0) != classic {
		t.Errorf("there are %d series of classic buckets, want some: %t, %v", buckets, classic, err)
	}
	var data struct {
		Groups []struct {
			Rules []struct{ Name, Query, Health, LastError string }
		}
	}
	eventually(t, "the evaluation of the rules", time.Minute, func() error {
		if err := p.get("rules", &data); err != nil {
			return err
		}
		for _, group := range data.Groups {
			for _, rule := range group.Rules {
				if rule.Health != "ok" {
					return fmt.Errorf("%s is %s: %s", rule.Name, rule.Health, rule.LastError)
				}
			}
		}
		return nil
	})
	compared := 0
	for _, group := range data.Groups {
		for _, rule := range group.Rules {
			if strings.Contains(rule.Query, "broker_membership_") {
				continue // this broker has no issuer of memberships; a test of internal/service has one
			}
			for _, side := range comparison.Split(rule.Query, 2) {
				if !strings.Contains(side, "broker_") && !strings.HasPrefix(side, "up{") {
					continue // a number
				}
				later := time.Duration(0)
				if strings.Contains(side, "offset 10m") {
					later = 20 * time.Minute // when what is scraped now is the past
				}
				compared++
				if found, err := p.query(side, later); err != nil || found == 0 {
					t.Errorf("%s: nothing is found by %s: %v", rule.Name, side, err)
				}
			}
		}
	}
	if compared < 15 {
		t.Errorf("only %d expressions were compared", compared)
	}
}
