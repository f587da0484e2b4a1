package service_test

import (
	"bytes"
	"io"
	"net/http"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/goccy/go-yaml"

	"accessbroker.internal/internal/brokertest"
)

// An alert is a rule of deploy/prometheus/rules.yaml.
type alert struct{ Alert, Expr string }

func readYAML(t *testing.T, path string, into any) {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := yaml.Unmarshal(text, into); err != nil {
		t.Fatal(err)
	}
}

func alerts(t *testing.T) []alert {
	t.Helper()
	var file struct{ Groups []struct{ Rules []alert } }
	readYAML(t, "../../deploy/prometheus/rules.yaml", &file)
	var all []alert
	for _, group := range file.Groups {
		all = append(all, group.Rules...)
	}
	if len(all) == 0 {
		t.Fatal("there are no alerts")
	}
	return all
}

// promtool runs the cases in the end-to-end tests. Each alert needs one in which it
// fires, and one in which it does not.
func TestEveryAlertHasItsCases(t *testing.T) {
	var file struct {
		Tests []struct {
			AlertRuleTest []struct {
				Alertname string
				ExpAlerts []any `yaml:"exp_alerts"`
			} `yaml:"alert_rule_test"`
		}
	}
	readYAML(t, "../../deploy/prometheus/rules.test.yaml", &file)
	fires, silent := map[string]int{}, map[string]int{}
	for _, test := range file.Tests {
		for _, c := range test.AlertRuleTest {
			if len(c.ExpAlerts) > 0 {
				fires[c.Alertname]++
			} else {
				silent[c.Alertname]++
			}
		}
	}
	for _, a := range alerts(t) {
		if fires[a.Alert] == 0 || silent[a.Alert] == 0 {
			t.Errorf("%s has %d cases in which it fires and %d in which it does not, want one of each", a.Alert, fires[a.Alert], silent[a.Alert])
		}
	}
}

var (
	selector = regexp.MustCompile(`(broker_[a-z_]+)(?:\{([^}]*)\})?`)
	matcher  = regexp.MustCompile(`([a-z]+)(=~|!=|=)"([^"]*)"`)
)

// A counter whose series begins at one hides its first event. So a broker that has
// just started has a series for everything that an alert counts.
func TestSeriesOfAlertsExistFromTheStart(t *testing.T) {
	w := brokertest.NewWorld(t)
	if err := os.WriteFile(w.Path("hook.secret"), []byte("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(w.Path("crm.token"), []byte("crm-token"), 0o600); err != nil {
		t.Fatal(err)
	}
	w.Edit("issuers:", "issuers:\n  crm: {scim: {url: 'https://127.0.0.1:1/scim/v2', token_file: crm.token, match: userName, members: {people: {login: sub}}}}")
	w.Edit("entitlements:", "entitlements:\n  crm-sales: {issuer: crm, scim: {group: Sales}, max_ttl: 1h}")
	w.Edit("store:", "notify: {webhook: {siem: {url: 'https://hooks.acme.test/broker', secret_files: [hook.secret]}}}\nstore:")
	var logged bytes.Buffer
	listeners, stop := w.Start(&logged)
	scrape := func() []string {
		resp, err := http.Get("http://" + listeners[1].Addr().String() + "/metrics")
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = resp.Body.Close() }()
		text, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		return strings.Split(string(text), "\n")
	}
	lines, checked := scrape(), 0
	for _, a := range alerts(t) {
		for _, s := range selector.FindAllStringSubmatch(a.Expr, -1) {
			checked++
			// A native histogram has no series of its own name in the text format.
			if found := slices.ContainsFunc(lines, func(line string) bool {
				return selects(t, s[1], s[2], line) || selects(t, s[1]+"_count", s[2], line)
			}); !found {
				t.Errorf("%s: there is no series %s", a.Alert, s[0])
			}
		}
	}
	if checked < 14 {
		t.Errorf("only %d selectors were checked", checked)
	}
	const failed = `broker_config_reloads_total{outcome="failed"} `
	if !slices.Contains(lines, failed+"0") {
		t.Errorf("the counter of refused reloads does not start at zero")
	}
	if err := os.WriteFile(w.ConfigFile(), []byte("not: [a file"), 0o600); err != nil {
		t.Fatal(err)
	}
	resp, err := w.Operator().HTTP.Post("http://localhost/admin/reload", "", nil)
	if err != nil {
		t.Fatal(err)
	}
	if _ = resp.Body.Close(); resp.StatusCode < 400 {
		t.Errorf("a broken file was loaded: %s", resp.Status)
	}
	if !slices.Contains(scrape(), failed+"1") {
		t.Error("a file that can't be read is not counted as a refused reload")
	}
	stop()
	if text := logged.String(); strings.Count(text, "reload refused") != 1 {
		t.Errorf("got log\n%s\nwant one line about the refused reload", text)
	}
}

// selects reports whether a line of the text format is of the metric and has labels
// that match.
func selects(t *testing.T, metric, matchers, line string) bool {
	rest, ok := strings.CutPrefix(line, metric)
	if !ok || !strings.HasPrefix(rest, "{") && !strings.HasPrefix(rest, " ") {
		return false
	}
	labels := map[string]string{}
	for _, l := range matcher.FindAllStringSubmatch(rest, -1) {
		labels[l[1]] = l[3]
	}
	for _, m := range matcher.FindAllStringSubmatch(matchers, -1) {
		if m[1] == "job" {
			continue // Prometheus adds it
		}
		equal := labels[m[1]] == m[3]
		if m[2] == "=~" {
			pattern, err := regexp.Compile("^(?:" + m[3] + ")$")
			if err != nil {
				t.Fatal(err)
			}
			equal = pattern.MatchString(labels[m[1]])
		}
		if equal == (m[2] == "!=") {
			return false
		}
	}
	return true
}
