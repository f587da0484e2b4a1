package vault

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"accessbroker.internal/broker"
)

// A laggard is a node of a cluster that answers refusals to requests for a path until
// it has caught up.
type laggard struct {
	path     string
	status   int
	message  string
	refusals int    // before it has caught up; negative: never
	index    string // X-Vault-Index of all its other answers

	mu      sync.Mutex
	calls   int
	indexes []string // that requests for the path required
}

// seen returns how many requests for the path came, and the states that they required.
func (n *laggard) seen() (int, []string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.calls, slices.Clone(n.indexes)
}

func (n *laggard) fault(w http.ResponseWriter, r *http.Request) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.index != "" {
		w.Header().Set("X-Vault-Index", n.index)
	}
	if !strings.Contains(r.URL.Path, n.path) {
		return false
	}
	n.calls++
	n.indexes = append(n.indexes, r.Header.Get("X-Vault-Index"))
	if n.refusals >= 0 && n.calls > n.refusals {
		return false
	}
	refuse(w, n.status, n.message)
	return true
}

// In a cluster, a node may not know a token that another node made moments ago. That is
// no refusal: the broker repeats the request, at most so often, and then the issuer is
// unavailable. A refusal by policy stays one.
func TestLaggingNodes(t *testing.T) {
	const (
		missing = "required index state not present"
		unknown = "permission denied; invalid token"
		denied  = "1 error occurred: permission denied"
		login   = "/auth/jwt/login"
		create  = "/auth/token/create"
		user    = "/database/creds"
	)
	never := len(pauses) + 1 // calls until the broker gives up
	for name, test := range map[string]struct {
		laggard *laggard
		want    error // nil: issued
		calls   int
	}{
		"login, 412":                                {&laggard{path: login, status: 412, message: missing, refusals: 2}, nil, 3},
		"token, 412":                                {&laggard{path: create, status: 412, message: missing, refusals: 2, index: "i1"}, nil, 3},
		"token, 412 forever":                        {&laggard{path: create, status: 412, message: missing, refusals: -1, index: "i1"}, broker.ErrIssuerUnavailable, never},
		"token, login is not known yet":             {&laggard{path: create, status: 403, message: unknown, refusals: 2}, nil, 3},
		"token, login is never known":               {&laggard{path: create, status: 403, message: unknown, refusals: -1}, broker.ErrIssuerUnavailable, never + 1},
		"token, denied":                             {&laggard{path: create, status: 403, message: denied, refusals: -1}, broker.ErrIssuerRefused, 1},
		"credential, 412":                           {&laggard{path: user, status: 412, message: missing, refusals: 2, index: "i1"}, nil, 3},
		"credential, 412 without an index":          {&laggard{path: user, status: 412, message: missing, refusals: 1}, nil, 2},
		"credential, 412 forever":                   {&laggard{path: user, status: 412, message: missing, refusals: -1, index: "i1"}, broker.ErrIssuerUnavailable, never},
		"credential, token is not known yet":        {&laggard{path: user, status: 403, message: unknown, refusals: 3}, nil, 4},
		"credential, token is never known":          {&laggard{path: user, status: 403, message: unknown, refusals: -1}, broker.ErrIssuerUnavailable, never},
		"credential, forwarded refusal":             {&laggard{path: user, status: 403, message: denied, refusals: 1, index: "i1"}, nil, 2},
		"credential, denied":                        {&laggard{path: user, status: 403, message: denied, refusals: -1}, broker.ErrIssuerRefused, 1},
		"credential, denied by a node with a state": {&laggard{path: user, status: 403, message: denied, refusals: -1, index: "i1"}, broker.ErrIssuerRefused, briefAttempts + 1},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel() // it waits
			f, v := startFake(t)
			n := test.laggard
			f.with(n.fault)
			l, _, err := issue(v, newOrder(t, Spec{Path: "database/creds/orders-ro"}))
			if !errors.Is(err, test.want) {
				t.Fatalf("got %v, want %v", err, test.want)
			}
			calls, indexes := n.seen()
			if calls != test.calls {
				t.Errorf("the broker called %d times, want %d", calls, test.calls)
			}
			for i, index := range indexes {
				if n.path != login && index != n.index {
					t.Errorf("call %d required the state %q, want %q", i, index, n.index)
				}
			}
			// One credential at most, and everything that exists can be ended.
			if want := 1; test.want == nil && len(f.leases) != want || test.want != nil && len(f.leases) != 0 {
				t.Errorf("there are %d leases", len(f.leases))
			}
			f.with(nil)
			if len(l.Handle) == 0 {
				return // refused before the lease was open
			}
			if err := v.Revoke(t.Context(), l); err != nil {
				t.Errorf("Revoke: %v", err)
			}
			for _, token := range f.tokens {
				if token.ttl != "" {
					t.Errorf("a token of a lease is left: %+v", token)
				}
			}
			if len(f.leases) != 0 {
				t.Errorf("%d leases are left", len(f.leases))
			}
		})
	}
}

// The deadline of a call ends the attempts.
func TestLaggingNodeIsBoundByDeadline(t *testing.T) {
	f, v := startFake(t)
	n := &laggard{path: "/auth/token/create", status: 412, message: "required index state not present", refusals: -1}
	f.with(n.fault)
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	if _, err := v.Prepare(ctx, newOrder(t, Spec{Path: TokenPath})); !errors.Is(err, broker.ErrIssuerUnavailable) {
		t.Errorf("got %v, want %v", err, broker.ErrIssuerUnavailable)
	}
	if calls, _ := n.seen(); calls > len(pauses) {
		t.Errorf("the broker called %d times, so the deadline did not end the attempts", calls)
	}
}

// A revocation is repeated on a lagging node as well.
func TestRevokeOnLaggingNode(t *testing.T) {
	f, v := startFake(t)
	l, _, err := issue(v, newOrder(t, Spec{Path: "database/creds/orders-ro"}))
	if err != nil {
		t.Fatal(err)
	}
	n := &laggard{path: "/sys/leases/revoke", status: 412, message: "required index state not present", refusals: 1}
	f.with(n.fault)
	err = v.Revoke(t.Context(), l)
	if calls, _ := n.seen(); err != nil || len(f.leases) != 0 || calls != 2 {
		t.Errorf("%d leases are left after %d calls: %v", len(f.leases), calls, err)
	}
}

// The broker's own token may expire while Vault creates another one with it. Vault then
// answers 400 (handleCreateCommon of its token store), and the broker logs in again.
func TestOwnTokenExpiresDuringCall(t *testing.T) {
	f, v := startFake(t)
	o := newOrder(t, Spec{Path: "database/creds/orders-ro"})
	if _, _, err := issue(v, o); err != nil {
		t.Fatal(err)
	}
	v.session.mu.Lock()
	v.session.loggedIn = v.session.loggedIn.Add(-time.Minute)
	v.session.mu.Unlock()
	n := &laggard{path: "/auth/token/create", status: 400, message: "parent token lookup failed: no parent found", refusals: 1}
	f.with(n.fault)
	_, _, err := issue(v, o)
	if calls, _ := n.seen(); err != nil || calls != 2 {
		t.Errorf("after %d calls: %v", calls, err)
	}
	logins := 0
	for _, call := range f.received() {
		if strings.HasSuffix(call, "login") {
			logins++
		}
	}
	if logins != 2 {
		t.Errorf("the broker logged in %d times, want 2", logins)
	}
}

// Vault's Retry-After reaches the caller, whichever call it answers and in whichever
// form it has. The broker itself does not wait for it.
func TestRetryAfterReachesCaller(t *testing.T) {
	at := func(d time.Duration) string { return time.Now().Add(d).UTC().Format(http.TimeFormat) }
	paths := []string{"/database/creds", "/auth/jwt/login", "/auth/token/create"}
	for name, test := range map[string]struct {
		header   string
		min, max time.Duration
	}{
		"seconds":             {"7", 7 * time.Second, 7 * time.Second},
		"date":                {at(90 * time.Second), 80 * time.Second, 91 * time.Second},
		"too long":            {"86400", time.Hour, time.Hour},
		"date, too late":      {at(48 * time.Hour), time.Hour, time.Hour},
		"past":                {at(-time.Minute), 0, 0},
		"zero":                {"0", 0, 0},
		"negative":            {"-5", 0, 0},
		"more than an int":    {"99999999999999999999", 0, 0},
		"not a number":        {"soon", 0, 0},
		"fraction of seconds": {"1.5", 0, 0},
	} {
		for _, status := range []int{http.StatusTooManyRequests, http.StatusServiceUnavailable} {
			for _, path := range paths {
				if test.max == 0 && path != paths[0] {
					continue // the client with retries waits
				}
				t.Run(fmt.Sprintf("%s, %d, %s", name, status, path), func(t *testing.T) {
					f, v := startFake(t)
					f.with(func(w http.ResponseWriter, r *http.Request) bool {
						if !strings.Contains(r.URL.Path, path) {
							return false
						}
						w.Header().Set("Retry-After", test.header)
						refuse(w, status, "rate limit quota exceeded")
						return true
					})
					_, _, err := issue(v, newOrder(t, Spec{Path: "database/creds/orders-ro"}))
					var refusal *broker.Refusal
					got := time.Duration(0)
					if errors.As(err, &refusal) {
						got = refusal.Retry
					}
					if !errors.Is(err, broker.ErrIssuerUnavailable) || got < test.min || got > test.max {
						t.Errorf("got %v to retry after %s, want %s to %s", err, got, test.min, test.max)
					}
				})
			}
		}
	}
}

// A standby may redirect to the active node. The request is sent once more, to it.
func TestStandbyRedirects(t *testing.T) {
	f, _ := startFake(t)
	active := httptest.NewServer(f)
	t.Cleanup(active.Close)
	standby := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Location", active.URL+r.URL.RequestURI())
		w.WriteHeader(http.StatusTemporaryRedirect)
	}))
	t.Cleanup(standby.Close)
	v := newIssuer(t, Config{Address: standby.URL})
	l, c, err := issue(v, newOrder(t, Spec{Path: "database/creds/orders-ro"}))
	if err != nil || c.Type != "userpass" || len(f.leases) != 1 {
		t.Fatalf("issued %q, %d leases: %v", c.Type, len(f.leases), err)
	}
	if err := v.Revoke(t.Context(), l); err != nil || len(f.leases) != 0 {
		t.Errorf("%d leases are left: %v", len(f.leases), err)
	}
}

// No redirect takes a token to a server without TLS, or further than one step.
func TestRedirectsThatAreNotFollowed(t *testing.T) {
	var reached atomic.Int64
	elsewhere := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		reached.Add(1)
		w.WriteHeader(http.StatusNoContent)
	}))
	t.Cleanup(elsewhere.Close)
	for _, path := range []string{"/auth/jwt/login", "/auth/token/create", "/database/creds"} {
		for _, status := range []int{301, 302, 303, 307, 308} {
			f, _ := startFake(t)
			v := f.overTLS(t)
			var loops atomic.Int64
			for _, location := range []string{elsewhere.URL, ""} {
				f.with(func(w http.ResponseWriter, r *http.Request) bool {
					if !strings.Contains(r.URL.Path, path) {
						return false
					}
					if loops.Add(1); location == "" {
						w.Header().Set("Location", r.URL.Path)
					} else {
						w.Header().Set("Location", location+r.URL.Path)
					}
					w.WriteHeader(status)
					return true
				})
				if _, _, err := issue(v, newOrder(t, Spec{Path: "database/creds/orders-ro"})); !errors.Is(err, broker.ErrIssuerUnavailable) {
					t.Errorf("%s, %d to %q: got %v, want %v", path, status, location, err, broker.ErrIssuerUnavailable)
				}
			}
			if n := loops.Load(); n > 6 {
				t.Errorf("%s, %d: the broker called %d times", path, status, n)
			}
		}
	}
	if n := reached.Load(); n != 0 {
		t.Errorf("%d requests reached a server without TLS", n)
	}
}

// Whatever else answers in place of Vault, nothing is issued, and the caller learns
// whether to try again. What may exist stays to be revoked.
func TestAnswersThatAreNotVaults(t *testing.T) {
	truncated := func(w http.ResponseWriter) {
		w.Header().Set("Content-Length", "4000")
		_, _ = fmt.Fprint(w, `{"lease_id": "database/creds/x/1", "data": {"username": "u", "pass`)
	}
	for name, test := range map[string]struct {
		answer func(w http.ResponseWriter)
		want   error
	}{
		"page":                 {func(w http.ResponseWriter) { _, _ = fmt.Fprint(w, "<html>log in</html>") }, broker.ErrIssuerUnavailable},
		"bad gateway":          {func(w http.ResponseWriter) { http.Error(w, "<html>bad gateway</html>", http.StatusBadGateway) }, broker.ErrIssuerUnavailable},
		"sealed":               {func(w http.ResponseWriter) { refuse(w, 503, "Vault is sealed") }, broker.ErrIssuerUnavailable},
		"standby":              {func(w http.ResponseWriter) { refuse(w, 473, "") }, broker.ErrIssuerUnavailable},
		"timeout of a proxy":   {func(w http.ResponseWriter) { http.Error(w, "", http.StatusRequestTimeout) }, broker.ErrIssuerUnavailable},
		"no content":           {func(w http.ResponseWriter) { w.WriteHeader(204) }, nil},
		"empty object":         {func(w http.ResponseWriter) { _, _ = fmt.Fprint(w, "{}") }, nil},
		"null":                 {func(w http.ResponseWriter) { _, _ = fmt.Fprint(w, "null") }, nil},
		"list":                 {func(w http.ResponseWriter) { _, _ = fmt.Fprint(w, "[]") }, broker.ErrIssuerUnavailable},
		"truncated":            {truncated, broker.ErrIssuerUnavailable},
		"truncated refusal":    {func(w http.ResponseWriter) { w.WriteHeader(500); _, _ = fmt.Fprint(w, `{"errors": ["x`) }, broker.ErrIssuerUnavailable},
		"giant":                {func(w http.ResponseWriter) { giant(w, 200) }, broker.ErrIssuerUnavailable},
		"giant refusal":        {func(w http.ResponseWriter) { giant(w, 500) }, broker.ErrIssuerUnavailable},
		"redirect to nowhere":  {func(w http.ResponseWriter) { w.WriteHeader(307) }, broker.ErrIssuerUnavailable},
		"see other":            {func(w http.ResponseWriter) { w.Header().Set("Location", "/ui/"); w.WriteHeader(303) }, broker.ErrIssuerUnavailable},
		"forbidden by a proxy": {func(w http.ResponseWriter) { http.Error(w, "<html>no</html>", http.StatusForbidden) }, broker.ErrIssuerRefused},
	} {
		for _, path := range []string{"/auth/jwt/login", "/auth/token/create", "/database/creds"} {
			t.Run(name+", "+path, func(t *testing.T) {
				t.Parallel() // the client with retries waits
				f, v := startFake(t)
				f.with(func(w http.ResponseWriter, r *http.Request) bool {
					if !strings.Contains(r.URL.Path, path) {
						return false
					}
					test.answer(w)
					return true
				})
				_, c, err := issue(v, newOrder(t, Spec{Path: "database/creds/orders-ro"}))
				want := test.want
				switch {
				case path == "/auth/jwt/login":
					want = broker.ErrIssuerUnavailable // the caller is not at fault
				case want == nil && path == "/auth/token/create":
					want = broker.ErrIssuerUnavailable
				case want == nil:
					want = broker.ErrIssuerRefused
				}
				if !errors.Is(err, want) || c.Type != "" {
					t.Errorf("got %q, %v, want %v", c.Type, err, want)
				}
			})
		}
	}
}

// giant answers with more than maxAnswer bytes of JSON.
func giant(w http.ResponseWriter, status int) {
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(object{"errors": []string{strings.Repeat("x", 3*maxAnswer)}}) // the client hangs up
}
