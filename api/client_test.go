package api_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"reflect"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"accessbroker.internal/api"
	"accessbroker.internal/broker"
)

// clientOf returns a client of a server that answers every call with h, as a broker or
// a proxy might.
func clientOf(t *testing.T, h http.HandlerFunc) *api.Client {
	server := httptest.NewServer(h)
	t.Cleanup(server.Close)
	return &api.Client{BaseURL: server.URL, Token: func(context.Context) (string, error) { return "svid", nil }}
}

func TestErrors(t *testing.T) {
	tests := []struct {
		name, mediaType, body string
		status                int
		want                  api.Error
	}{
		{
			"problem", "application/problem+json",
			`{"type":"about:blank","title":"Denied","status":403,"code":"denied","detail":"ask for less","reasons":["too much"],"denied_by":"policy","allowed":{"scopes":["a"],"max_ttl":"15m"},"request_id":"req_1"}`,
			403,
			api.Error{Code: api.Denied, Status: 403, Title: "Denied", Detail: "ask for less", Reasons: []string{"too much"}, DeniedBy: "policy", Allowed: &api.Allowed{Scopes: []string{"a"}, MaxTTL: api.Duration(15 * time.Minute)}, RequestID: "req_1"},
		},
		{
			"OAuth error", "application/json", `{"error":"authorization_pending","error_description":"wait","code":"pending","request_id":"req_1","interval":5}`, 400,
			api.Error{Code: api.Pending, OAuth: "authorization_pending", Status: 400, Title: "Bad Request", Detail: "wait", RequestID: "req_1"},
		},
		{"OAuth error of another server", "application/json", `{"error":"invalid_scope"}`, 400, api.Error{Code: api.InvalidScope, OAuth: "invalid_scope", Status: 400, Title: "Bad Request"}},
		{"a proxy", "text/html", `<h1>Forbidden</h1>`, 403, api.Error{Status: 403, Title: "Forbidden"}},
		{"empty body", "", ``, 404, api.Error{Status: 404, Title: "Not Found"}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			client := clientOf(t, func(w http.ResponseWriter, r *http.Request) {
				w.Header().Set("Content-Type", test.mediaType)
				w.WriteHeader(test.status)
				_, _ = io.WriteString(w, test.body)
			})
			_, err := client.WhoAmI(t.Context())
			var got *api.Error
			if !errors.As(err, &got) || !reflect.DeepEqual(*got, test.want) {
				t.Errorf("got %#v, want %#v", got, test.want)
			}
			if test.want.Code != "" && !errors.Is(err, test.want.Code) {
				t.Errorf("got %v, want %s", err, test.want.Code)
			}
			if api.CodeOf(err) != test.want.Code {
				t.Errorf("CodeOf: got %q, want %q", api.CodeOf(err), test.want.Code)
			}
		})
	}
}

func TestRetriesShareAKey(t *testing.T) {
	var keys []string
	client := clientOf(t, func(w http.ResponseWriter, r *http.Request) {
		keys = append(keys, r.Header.Get("Idempotency-Key"))
		if len(keys) < 3 {
			w.WriteHeader(http.StatusServiceUnavailable)
			return
		}
		_, _ = io.WriteString(w, `{"lease":"lse_1","secret":{"token":"t"}}`)
	})
	if _, err := client.Collect(t.Context(), "req_1"); err != nil {
		t.Fatal(err)
	}
	if len(keys) != 3 || len(keys[0]) < 16 || keys[0] != keys[1] || keys[1] != keys[2] {
		t.Errorf("got keys %q, want three equal ones", keys)
	}
	if _, err := client.Collect(t.Context(), "req_1"); err != nil || keys[3] == keys[0] {
		t.Errorf("another call: got %v and key %q, want another key", err, keys[3])
	}
}

func TestCallsThatAreNotRetried(t *testing.T) {
	tests := []struct {
		name   string
		status int
		header string
		body   string
		call   func(*api.Client) error
	}{
		{"a refusal", 403, "", `{"code":"denied"}`, func(c *api.Client) error { _, err := c.Ask(t.Context(), api.Ask{}); return err }},
		{"a limit", 429, "1", `{"code":"limit_reached"}`, func(c *api.Client) error { _, err := c.Ask(t.Context(), api.Ask{}); return err }},
		{"a refusal of the issuer", 502, "", `{"code":"issuer_refused"}`, func(c *api.Client) error { _, err := c.Collect(t.Context(), "req_1"); return err }},
		{"a long wait", 503, "3600", ``, func(c *api.Client) error { _, err := c.WhoAmI(t.Context()); return err }},
		{"a wait of a week", 503, "604800", ``, func(c *api.Client) error { _, err := c.WhoAmI(t.Context()); return err }},
		{"a wait until a date", 503, "Thu, 01 Jan 2099 00:00:00 GMT", ``, func(c *api.Client) error { _, err := c.WhoAmI(t.Context()); return err }},
		{"a token exchange", 503, "", ``, func(c *api.Client) error { _, err := c.Exchange(t.Context(), api.TokenRequest{}); return err }},
		{"an internal error", 500, "", ``, func(c *api.Client) error { _, err := c.WhoAmI(t.Context()); return err }},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			var calls atomic.Int32
			client := clientOf(t, func(w http.ResponseWriter, r *http.Request) {
				calls.Add(1)
				w.Header().Set("Retry-After", test.header)
				w.WriteHeader(test.status)
				_, _ = io.WriteString(w, test.body)
			})
			if err := test.call(client); err == nil || calls.Load() != 1 {
				t.Errorf("got %d calls, %v, want one call and an error", calls.Load(), err)
			}
		})
	}
}

// Proxies state when to call again in seconds or as a date.
func TestRetryAfter(t *testing.T) {
	t.Parallel()
	const date = "Sun, 29 Nov 2026 12:00:00 GMT" // of the proxy, whose clock may be wrong
	for header, want := range map[string]time.Duration{
		"":                               0,
		"7":                              7 * time.Second,
		"-7":                             0,
		"1.5":                            0,
		"soon":                           0,
		"604800":                         24 * time.Hour,
		"99999999999999999999":           0,
		"Sun, 29 Nov 2026 12:01:30 GMT":  90 * time.Second,
		"Sunday, 29-Nov-26 12:01:30 GMT": 90 * time.Second,
		"Sun, 29 Nov 2026 11:00:00 GMT":  0,
		"Mon, 29 Nov 2027 12:00:00 GMT":  24 * time.Hour,
	} {
		client := clientOf(t, func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Date", date)
			if header != "" {
				w.Header().Set("Retry-After", header)
			}
			w.WriteHeader(http.StatusForbidden)
		})
		_, err := client.WhoAmI(t.Context())
		var answer *api.Error
		if !errors.As(err, &answer) || answer.RetryAfter != want {
			t.Errorf("%q: got %v, want %s", header, err, want)
		}
	}
}

func TestErrorPredicates(t *testing.T) {
	refused := &api.Client{BaseURL: "http://127.0.0.1:1"} // no server listens on port 1
	_, lost := refused.Discovery(t.Context())
	for _, test := range []struct {
		name                   string
		err                    error
		transient, unreachable bool
	}{
		{"none", nil, false, false},
		{"connection refused", lost, true, true},
		{"a proxy", &api.Error{Status: 502}, true, true},
		{"a proxy's refusal", &api.Error{Status: 403}, false, true},
		{"another API", fmt.Errorf("reading: %w", api.ErrNotBroker), true, true},
		{"denied", &api.Error{Status: 403, Code: api.Denied}, false, false},
		{"a conflict", &api.Error{Status: 409, Code: api.NotPending}, false, false},
		{"a limit", &api.Error{Status: 429, Code: api.LimitReached}, true, false},
		{"an internal error", &api.Error{Status: 500, Code: api.Internal}, true, false},
		{"issuer away", &api.Error{Status: 502, Code: api.IssuerUnavailable}, true, false},
		{"issuer refuses", fmt.Errorf("renewing: %w", &api.Error{Status: 502, Code: api.IssuerRefused}), false, false},
		{"a local error", errors.New("no token file"), true, false},
	} {
		if got := api.Transient(test.err); got != test.transient {
			t.Errorf("%s: Transient is %t, want %t", test.name, got, test.transient)
		}
		if got := api.Unreachable(test.err); got != test.unreachable {
			t.Errorf("%s: Unreachable is %t, want %t", test.name, got, test.unreachable)
		}
	}
}

func TestRedirectsAreNotFollowed(t *testing.T) {
	client := clientOf(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/elsewhere" {
			t.Error("the client followed a redirect")
		}
		http.Redirect(w, r, "/elsewhere", http.StatusTemporaryRedirect)
	})
	var got *api.Error
	if _, err := client.Ask(t.Context(), api.Ask{}); !errors.As(err, &got) || got.Status != http.StatusTemporaryRedirect {
		t.Errorf("got %v", err)
	}
}

func TestNoProofOverPlainHTTP(t *testing.T) {
	asked := false
	client := &api.Client{BaseURL: "http://broker.acme.test", Token: func(context.Context) (string, error) { asked = true; return "svid", nil }}
	if _, err := client.WhoAmI(t.Context()); err == nil || !strings.Contains(err.Error(), "https://") || asked {
		t.Errorf("got %v, token requested: %t", err, asked)
	}
}

func TestResponsesOfOtherServers(t *testing.T) {
	body := `{"name":"another"}`
	client := clientOf(t, func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, body) })
	for name, call := range map[string]func() error{
		"who am I": func() error { _, err := client.WhoAmI(t.Context()); return err },
		"request":  func() error { _, err := client.Request(t.Context(), "req_1"); return err },
		"collect":  func() error { _, err := client.Collect(t.Context(), "req_1"); return err },
		"lease":    func() error { _, err := client.Lease(t.Context(), "lse_1"); return err },
		"session":  func() error { _, err := client.OpenSession(t.Context(), api.Login{}); return err },
	} {
		if err := call(); !errors.Is(err, api.ErrNotBroker) {
			t.Errorf("%s: got %v, want ErrNotBroker", name, err)
		}
	}
	body = `<h1>Welcome</h1>`
	if _, err := client.Leases(t.Context(), api.LeaseFilter{}); !errors.Is(err, api.ErrNotBroker) {
		t.Errorf("a page: got %v, want ErrNotBroker", err)
	}
}

func TestResponsesAreBounded(t *testing.T) {
	client := clientOf(t, func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.WriteString(w, strings.Repeat(" ", 5<<20)+"{}")
	})
	if _, err := client.WhoAmI(t.Context()); err == nil || !strings.Contains(err.Error(), "longer than") {
		t.Errorf("got %v", err)
	}
}

// With a subject_token, the client sends no bearer token: that would be a second proof.
func TestOneProofPerCall(t *testing.T) {
	client := clientOf(t, func(w http.ResponseWriter, r *http.Request) {
		_ = r.ParseForm()
		bearer, subject := r.Header.Get("Authorization"), r.PostForm.Get("subject_token")
		if (bearer == "") == (subject == "") {
			t.Errorf("got bearer %q and subject_token %q, want exactly one", bearer, subject)
		}
		_, _ = io.WriteString(w, `{"access_token":"t"}`)
	})
	for _, req := range []api.TokenRequest{{Audience: "a"}, {Audience: "a", SubjectToken: "svid"}} {
		if _, err := client.Exchange(t.Context(), req); err != nil {
			t.Error(err)
		}
	}
}

func TestSecretsDoNotPrint(t *testing.T) {
	credential := api.Credential{Secret: api.Secret{"token": "hunter2"}}
	token := api.TokenResponse{AccessToken: "hunter2"}
	var log strings.Builder
	slog.New(slog.NewJSONHandler(&log, nil)).Info("x", "secret", credential.Secret, "token", token.AccessToken)
	text := fmt.Sprintf("%v %+v %#v %s %v %#v %x", credential, credential, credential, credential.Secret, token, token, token.AccessToken) + log.String()
	if strings.Contains(text, "hunter2") || strings.Contains(text, fmt.Sprintf("%x", "hunter2")) {
		t.Errorf("a secret is in %s", text)
	}
	wire, err := json.Marshal(credential)
	if err != nil || !strings.Contains(string(wire), "hunter2") {
		t.Errorf("got %s, %v, want the secret", wire, err)
	}
}

func TestDuration(t *testing.T) {
	for text, want := range map[string]string{"15m": "15m", "90s": "1m30s", "1h": "1h", "1h0m0s": "1h", "1h5m": "1h5m", "10s": "10s", "20m": "20m", "10h10s": "10h0m10s"} {
		var d api.Duration
		if err := json.Unmarshal([]byte(`"`+text+`"`), &d); err != nil || d.String() != want {
			t.Errorf("%s: got %s, %v, want %s", text, d, err, want)
		}
		if got := broker.FormatDuration(d.Std()); got != want {
			t.Errorf("%s: package broker formats it as %s, want %s", text, got, want)
		}
	}
	for _, text := range []string{"", "0s", "-1m", "15", "m", "+15m", ".5h", "5.h", "15M", " 15m", "1h -5m", "1h+5m", strings.Repeat("1", 40) + "s"} {
		var d api.Duration
		var bad *api.DurationError
		if err := json.Unmarshal([]byte(`"`+text+`"`), &d); !errors.As(err, &bad) {
			t.Errorf("%q: got %v, %v, want a DurationError", text, d, err)
		}
	}
}
