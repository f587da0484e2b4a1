package tickets

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"accessbroker.internal/tickets/ticketstest"
)

func TestHooksProveTheirSecret(t *testing.T) {
	const jira, hub, now, other = `{"issue": {"key": "INC-7"}}`, `{"action": "closed", "issue": {"number": 7}, "repository": {"full_name": "acme/Payments"}}`, `{"number": "INC0000007"}`, `{"ticket": "T/7"}`
	signed := func(header, secret, body string) http.Header {
		return http.Header{http.CanonicalHeaderKey(header): {ticketstest.Sign(secret, body)}}
	}
	bearer := func(secret string) http.Header { return http.Header{"Authorization": {"Bearer " + secret}} }
	for name, test := range map[string]struct {
		kind, body string
		header     http.Header
		want       string // the ticket; "-": refused
	}{
		"github":                        {"github", hub, signed("X-Hub-Signature-256", "s3cret", hub), "7"},
		"github, another body":          {"github", hub + " ", signed("X-Hub-Signature-256", "s3cret", hub), "-"},
		"github, another secret":        {"github", hub, signed("X-Hub-Signature-256", "S3cret", hub), "-"},
		"github, no signature":          {"github", hub, http.Header{}, "-"},
		"github, a bearer token":        {"github", hub, bearer("s3cret"), "-"},
		"github, an empty signature":    {"github", hub, http.Header{"X-Hub-Signature-256": {"sha256="}}, "-"},
		"github, SHA-1":                 {"github", hub, signed("X-Hub-Signature", "s3cret", hub), "-"},
		"github, without the algorithm": {"github", hub, http.Header{"X-Hub-Signature-256": {strings.TrimPrefix(ticketstest.Sign("s3cret", hub), "sha256=")}}, "-"},
		"github, another repository":    {"github", strings.Replace(hub, "Payments", "evil", 1), signed("X-Hub-Signature-256", "s3cret", strings.Replace(hub, "Payments", "evil", 1)), ""},
		"github, no issue":              {"github", `{}`, signed("X-Hub-Signature-256", "s3cret", `{}`), ""},
		"jira, signed":                  {"jira", jira, signed("X-Hub-Signature", "s3cret", jira), "INC-7"},
		"jira, signed wrongly":          {"jira", jira, signed("X-Hub-Signature", "other", jira), "-"},
		"jira, both":                    {"jira", jira, http.Header{"X-Hub-Signature": {"sha256=00"}, "Authorization": {"Bearer s3cret"}}, "-"},
		"jira, a bearer token":          {"jira", jira, bearer("s3cret"), "INC-7"},
		"jira, an empty token":          {"jira", jira, bearer(""), "-"},
		"servicenow":                    {"servicenow", now, bearer("s3cret"), "INC0000007"},
		"servicenow, a prefix":          {"servicenow", now, bearer("s3cre"), "-"},
		"servicenow, without Bearer":    {"servicenow", now, http.Header{"Authorization": {"s3cret"}}, "-"},
		"http":                          {"http", other, bearer("s3cret"), "T/7"},
		"not JSON":                      {"http", `ticket`, bearer("s3cret"), ""},
	} {
		h := Hook{Kind: test.kind, Secret: []byte("s3cret"), Repository: "acme/payments"}
		got := "-"
		if h.authentic(test.header, []byte(test.body)) {
			got = h.ticket([]byte(test.body))
		}
		if got != test.want {
			t.Errorf("%s: got %q, want %q", name, got, test.want)
		}
	}
}

func TestHooksOfOtherTrackers(t *testing.T) {
	w := NewWatcher(WatcherConfig{Trackers: []*Tracker{{Name: "a", Hook: Hook{Kind: "http", Secret: []byte("s3cret")}}, {Name: "b"}}})
	for name, test := range map[string]struct {
		method, path, secret, body string
		want                       int
	}{
		"known":            {"POST", "a", "s3cret", `{"ticket": "7"}`, http.StatusNoContent},
		"unknown":          {"POST", "c", "s3cret", `{}`, http.StatusNotFound},
		"without a secret": {"POST", "b", "", `{}`, http.StatusNotFound},
		"below a tracker":  {"POST", "a/b", "s3cret", `{}`, http.StatusNotFound},
		"GET":              {"GET", "a", "s3cret", ``, http.StatusMethodNotAllowed},
		"too long":         {"POST", "a", "s3cret", strings.Repeat("x", maxHook+1), http.StatusRequestEntityTooLarge},
		"another secret":   {"POST", "a", "x", `{}`, http.StatusUnauthorized},
	} {
		r := httptest.NewRequest(test.method, HookPath+test.path, strings.NewReader(test.body))
		r.Header.Set("Authorization", "Bearer "+test.secret)
		out := httptest.NewRecorder()
		w.ServeHTTP(out, r)
		if out.Code != test.want {
			t.Errorf("%s: got status %d, want %d", name, out.Code, test.want)
		}
	}
}
