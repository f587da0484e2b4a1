package vault

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"accessbroker.internal/broker"
	"accessbroker.internal/issuers/issuertest"
)

// A fakeVault answers the requests that the broker sends to Vault, and can fail
// at will. The end-to-end tests use a real Vault.
type fakeVault struct {
	at string
	t  *testing.T
	mu sync.Mutex
	n  int

	tokens map[string]*fakeToken              // by value
	leases map[string]string                  // the token by its lease
	ahead  time.Duration                      // of its clock
	roles  map[string]func(*x509.Certificate) // changes by PKI roles to their certificates
	ttl    int                                // of tokens that are looked up, in seconds
	cap    int                                // of the TTL of created tokens, in seconds; 0: none
	listed map[string]int                     // how often a serial number was revoked
	fault  func(w http.ResponseWriter, r *http.Request) bool
	calls  []string
}

type fakeToken struct {
	accessor string
	policies []string
	ttl      string
	meta     map[string]string
}

func startFake(t *testing.T) (*fakeVault, *Issuer) {
	t.Helper()
	f := &fakeVault{t: t, tokens: map[string]*fakeToken{}, leases: map[string]string{}, listed: map[string]int{}}
	s := httptest.NewServer(f)
	t.Cleanup(s.Close)
	f.at = s.URL
	return f, newIssuer(t, Config{Address: s.URL})
}

func newIssuer(t *testing.T, cfg Config) *Issuer {
	t.Helper()
	cfg.Name, cfg.TokenRole = "vault", "broker-leases"
	cfg.Login = Login{JWT: &JWTLogin{Mount: "jwt", Role: "broker", Audience: "vault", SVID: func(_ context.Context, audience string) (string, error) {
		return "svid for " + audience, nil
	}}}
	v, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// url returns the address of the fake.
func (f *fakeVault) url() string { return f.at }

// with installs a fault for all further calls. It returns true if it answered.
func (f *fakeVault) with(fault func(w http.ResponseWriter, r *http.Request) bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.fault = fault
}

func (f *fakeVault) received() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.calls)
}

func (f *fakeVault) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	f.mu.Lock()
	fault := f.fault
	f.calls = append(f.calls, r.Method+" "+strings.TrimPrefix(r.URL.Path, "/v1/"))
	w.Header().Set("Date", time.Now().Add(f.ahead).UTC().Format(http.TimeFormat))
	f.mu.Unlock()
	if fault != nil && fault(w, r) {
		return
	}
	text, err := io.ReadAll(r.Body)
	if err != nil {
		f.t.Error(err)
	}
	var body map[string]any
	if len(text) > 0 {
		if err := json.Unmarshal(text, &body); err != nil {
			f.t.Error(err)
		}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if status, answer := f.answer(r, body); status >= 400 {
		refuse(w, status, answer.(string))
	} else if answer == nil {
		w.WriteHeader(http.StatusNoContent)
	} else {
		_ = json.NewEncoder(w).Encode(answer)
	}
}

func refuse(w http.ResponseWriter, status int, message string) {
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(map[string][]string{"errors": {message}})
}

type object = map[string]any

func (f *fakeVault) answer(r *http.Request, body object) (int, any) {
	path, token := strings.TrimPrefix(r.URL.Path, "/v1/"), r.Header.Get("X-Vault-Token")
	f.n++
	if path == "auth/jwt/login" {
		if body["jwt"] != "svid for vault" || body["role"] != "broker" {
			return 400, "role or jwt are wrong"
		}
		return 200, f.token(&fakeToken{}, 3600)
	}
	holder := f.tokens[token]
	switch {
	case holder == nil:
		return 403, "permission denied; invalid token"
	case path == "auth/token/create/broker-leases":
		made := &fakeToken{ttl: body["explicit_max_ttl"].(string), meta: map[string]string{}}
		for _, p := range body["policies"].([]any) {
			made.policies = append(made.policies, p.(string))
		}
		for k, v := range body["meta"].(object) {
			made.meta[k] = v.(string)
		}
		ttl, err := time.ParseDuration(made.ttl)
		if err != nil {
			f.t.Error(err)
		}
		seconds := int(ttl / time.Second)
		if f.cap > 0 {
			seconds = min(seconds, f.cap)
		}
		return 200, f.token(made, seconds)
	case path == "auth/token/lookup-self":
		return 200, object{"data": object{"ttl": f.ttl, "renewable": f.ttl > 0}}
	case path == "auth/token/renew-self":
		return 200, object{"auth": object{"client_token": token, "lease_duration": 3600}}
	case path == "sys/leases/revoke":
		if body["sync"] != true {
			return 400, "not synchronous"
		}
		delete(f.leases, body["lease_id"].(string))
		return 204, nil
	case path == "pki/revoke":
		f.listed[body["serial_number"].(string)]++
		return 200, object{"data": object{"state": "revoked"}}
	case path == "auth/token/revoke-accessor":
		for t, made := range f.tokens {
			if made.accessor == body["accessor"] {
				delete(f.tokens, t)
				return 204, nil
			}
		}
		return 400, "invalid accessor"
	case !slices.Contains(holder.policies, "orders"):
		return 403, "permission denied"
	}
	return f.secret(path, token, body, r)
}

func (f *fakeVault) token(made *fakeToken, ttl int) object {
	made.accessor = fmt.Sprintf("accessor-%d", f.n)
	token := fmt.Sprintf("hvs.token-%d", f.n)
	f.tokens[token] = made
	return object{"auth": object{"client_token": token, "accessor": made.accessor, "lease_duration": ttl, "renewable": true, "orphan": true}}
}

func (f *fakeVault) secret(path, token string, body object, r *http.Request) (int, any) {
	if r.Header.Get("X-Vault-Wrap-TTL") != "" {
		return 200, object{"wrap_info": object{"token": "hvs.wrapping-token", "ttl": 300}}
	}
	switch {
	case strings.HasPrefix(path, "database/creds/"):
		lease := fmt.Sprintf("%s/%d", path, f.n)
		f.leases[lease] = token
		return 200, object{"lease_id": lease, "lease_duration": 60, "data": object{"username": "v-orders", "password": "pass-" + lease}}
	case strings.HasPrefix(path, "database/static-creds/"):
		return 200, object{"data": object{"username": "static", "password": "rotated-password", "ttl": 90, "last_vault_rotation": "x"}}
	case strings.HasPrefix(path, "pki/"):
		return f.certificate(path, token, body)
	case strings.HasPrefix(path, "secret/data/"):
		return 200, object{"data": object{"data": object{"key": "value-of-kv"}, "metadata": object{"version": 1}}}
	case strings.HasPrefix(path, "ssh/sign/"):
		return f.signed(path, body)
	}
	return f.engine(path, token, body)
}

// newOrder returns an order for a lease of 10 minutes.
func newOrder(t *testing.T, spec Spec) broker.Order {
	t.Helper()
	if spec.Policies == nil {
		spec.Policies = []string{"orders"}
	}
	now := time.Now()
	e := &broker.Entitlement{Name: "orders-db-ro", Issuer: "vault", Spec: &spec, MaxTTL: time.Hour, Parameters: map[string]broker.Parameter{}}
	for name, required := range map[string]bool{"table": true, "note": false} {
		if strings.Contains(spec.Path+fmt.Sprint(spec.Data), "${"+name+"}") {
			e.Parameters[name] = broker.Parameter{Pattern: regexp.MustCompile(`^.*$`), Required: required}
		}
	}
	spec.Check(e, func(key, format string, args ...any) { t.Errorf("%s: %s", key, fmt.Sprintf(format, args...)) })
	return broker.Order{Entitlement: e, Lease: broker.Lease{
		ID: broker.NewLeaseID(now), Request: broker.NewRequestID(now), Holder: "spiffe://acme.test/orders", Entitlement: e.Name, Issuer: "vault",
		Parameters: map[string]string{"table": "items"}, Opened: now, Expires: now.Add(10 * time.Minute).Truncate(time.Second),
	}}
}

// issue calls Prepare and Issue in the same way as the domain.
func issue(v *Issuer, o broker.Order) (broker.Lease, broker.Credential, error) {
	return issueWithin(context.Background(), v, o)
}

func issueWithin(ctx context.Context, v *Issuer, o broker.Order) (broker.Lease, broker.Credential, error) {
	prepared, err := v.Prepare(ctx, o)
	if err != nil {
		return o.Lease, broker.Credential{}, err
	}
	o.Lease.Handle, o.Key = prepared.Handle, prepared.Key
	c, handle, err := v.Issue(ctx, o)
	if handle != nil {
		o.Lease.Handle = handle
	}
	return o.Lease, c, err
}

func TestIssueReturnsSecret(t *testing.T) {
	for name, test := range map[string]struct {
		spec   Spec
		kind   string
		fields map[string]string // prefixes
		shown  broker.Revocation
		revoke error // that Revoke returns
		ttl    time.Duration
	}{
		"database":    {Spec{Path: "database/creds/orders-ro"}, "userpass", map[string]string{"username": "v-orders", "password": "pass-"}, broker.RevokedImmediate, nil, time.Minute},
		"static role": {Spec{Path: "database/static-creds/orders"}, "userpass", map[string]string{"password": "rotated"}, broker.RevokedAtRotation, broker.ErrNotRevocable, 90 * time.Second},
		"certificate": {Spec{Path: "pki/issue/web", Data: map[string]string{"ttl": "${ttl}", "uri_sans": "${holder}", "alt_names": "${note}"}}, "certificate",
			map[string]string{"certificate": "-----BEGIN", "private_key": "PRIVATE", "chain": "CA 1\nCA 2"}, broker.RevokedAtExpiry, broker.ErrNotRevocable, 10 * time.Minute},
		"SSH":                   {Spec{Path: "ssh/sign/ops", Data: map[string]string{"ttl": "${ttl}", "valid_principals": "deploy,ops"}}, "data", map[string]string{"signed_key": "ssh-ed25519-cert"}, broker.RevokedAtExpiry, broker.ErrNotRevocable, 10 * time.Minute},
		"KV":                    {Spec{Path: "secret/data/orders", Permanent: true}, "data", map[string]string{"key": "value-of-kv"}, broker.RevokedNever, broker.ErrNotRevocable, 10 * time.Minute},
		"token":                 {Spec{Path: TokenPath}, "vault", map[string]string{"token": "hvs."}, broker.RevokedImmediate, nil, 10 * time.Minute},
		"wrapped":               {Spec{Path: "database/creds/orders-ro", Wrap: true}, "data", map[string]string{"wrapping_token": "hvs.wrapping"}, "", broker.ErrQueued, 5 * time.Minute},
		"parameter in the path": {Spec{Path: "database/creds/${table}", Type: "userpass"}, "userpass", map[string]string{"password": "pass-database/creds/items"}, broker.RevokedImmediate, nil, time.Minute},
	} {
		t.Run(name, func(t *testing.T) {
			f, v := startFake(t)
			start := time.Now()
			o := newOrder(t, test.spec)
			issuertest.Conform(t, v, o.Lease, o.Entitlement)
			l, c, err := issue(v, o)
			if err != nil {
				t.Fatal(err)
			}
			got := c.Secret.Reveal()
			for field, prefix := range test.fields {
				if !strings.HasPrefix(got[field], prefix) {
					t.Errorf("%s is %q, want %q…", field, got[field], prefix)
				}
			}
			if c.Type != test.kind || c.Revocation != test.shown {
				t.Errorf("type %q, revocation %q, want %q, %q", c.Type, c.Revocation, test.kind, test.shown)
			}
			if from, to := start.Add(test.ttl-2*time.Second), time.Now().Add(test.ttl+2*time.Second); c.Expires.Before(from) || c.Expires.After(to) {
				t.Errorf("expires at %s, want %s to %s", c.Expires, from, to)
			}
			for range 2 {
				if err := v.Revoke(t.Context(), l); !errors.Is(err, test.revoke) {
					t.Errorf("Revoke: got %v, want %v", err, test.revoke)
				}
			}
			if len(f.leases) != 0 || len(f.tokens) != 1 {
				t.Errorf("%d leases and %d tokens are left, want only the broker's own token", len(f.leases), len(f.tokens))
			}
		})
	}
}

// A credential takes two round trips, and the lease's token has the entitlement's
// policies, the lease's TTL and the holder's name.
func TestPrepareCreatesToken(t *testing.T) {
	f, v := startFake(t)
	o := newOrder(t, Spec{Path: "database/creds/orders-ro", Policies: []string{"orders"}, ScopePolicies: map[string][]string{"read": {"orders-read", "orders"}}})
	o.Lease.Scopes = []string{"read"}
	l, _, err := issue(v, o)
	if err != nil {
		t.Fatal(err)
	}
	if got := f.received(); !slices.Equal(got, []string{"PUT auth/jwt/login", "PUT auth/token/create/broker-leases", "GET database/creds/orders-ro"}) {
		t.Errorf("the calls were %v", got)
	}
	var h handle
	if err := json.Unmarshal(l.Handle, &h); err != nil {
		t.Fatal(err)
	}
	for _, made := range f.tokens {
		if made.accessor != h.Accessor {
			continue
		}
		ttl, err := time.ParseDuration(made.ttl)
		if err != nil {
			t.Fatal(err)
		}
		if fmt.Sprint(made.policies) != "[orders orders-read]" || made.meta["lease"] != l.ID.String() || made.meta["holder"] != l.Holder || ttl > 10*time.Minute || ttl < 9*time.Minute {
			t.Errorf("the token is %+v", made)
		}
		return
	}
	t.Error("no token has the handle's accessor")
}

// Faults have the right kind, and their text does not repeat Vault's.
func TestFaults(t *testing.T) {
	const message = "pq: password authentication failed for hvs.SECRET"
	answering := func(path string, status int) func(http.ResponseWriter, *http.Request) bool {
		return func(w http.ResponseWriter, r *http.Request) bool {
			if !strings.Contains(r.URL.Path, path) {
				return false
			}
			refuse(w, status, message)
			return true
		}
	}
	hanging := func(_ http.ResponseWriter, r *http.Request) bool {
		if strings.Contains(r.URL.Path, "login") {
			return false
		}
		_, _ = io.Copy(io.Discard, r.Body) // the server notices that the client is gone only after this
		<-r.Context().Done()
		return true
	}
	unprepared := []string{"sealed", "login refused", "no token role", "hanging"} // Prepare fails
	for name, test := range map[string]struct {
		spec  Spec
		fault func(http.ResponseWriter, *http.Request) bool
		want  error // of Prepare or Issue
		ends  error // of Revoke
	}{
		"sealed":                {Spec{}, answering("/", 503), broker.ErrIssuerUnavailable, nil},
		"login refused":         {Spec{}, answering("login", 403), broker.ErrIssuerUnavailable, nil},
		"no token role":         {Spec{}, answering("token/create", 400), broker.ErrIssuerRefused, nil},
		"hanging":               {Spec{}, hanging, broker.ErrIssuerUnavailable, nil},
		"engine failure":        {Spec{}, answering("database", 500), broker.ErrIssuerUnavailable, broker.ErrQueued},
		"engine refusal":        {Spec{}, answering("database", 400), broker.ErrIssuerRefused, nil},
		"no permission":         {Spec{Policies: []string{"other"}}, nil, broker.ErrIssuerRefused, nil},
		"no such path":          {Spec{Path: "nothing/creds/x"}, nil, broker.ErrIssuerRefused, nil},
		"no such path, written": {Spec{Path: "nothing/creds/x", Data: map[string]string{"a": "b"}}, nil, broker.ErrIssuerRefused, nil},
		"404 without a body": {Spec{Data: map[string]string{"a": "b"}}, func(w http.ResponseWriter, r *http.Request) bool {
			if strings.Contains(r.URL.Path, "database") {
				w.WriteHeader(http.StatusNotFound)
				return true
			}
			return false
		}, broker.ErrIssuerRefused, nil},
		"200 without a body": {Spec{Data: map[string]string{"a": "b"}}, func(_ http.ResponseWriter, r *http.Request) bool {
			return strings.Contains(r.URL.Path, "database")
		}, broker.ErrIssuerUnavailable, broker.ErrQueued},
		"permanent secret": {Spec{Path: "secret/data/orders"}, nil, broker.ErrIssuerRefused, nil},
		"another type":     {Spec{Path: "secret/data/orders", Permanent: true, Type: "userpass"}, nil, broker.ErrIssuerRefused, broker.ErrQueued},
		"path traversal":   {Spec{Path: "database/creds/${table}"}, nil, broker.ErrInvalidParameter, nil},
		"answer is not JSON": {Spec{}, func(w http.ResponseWriter, r *http.Request) bool {
			if !strings.Contains(r.URL.Path, "database") {
				return false
			}
			_, _ = io.WriteString(w, "<html>")
			return true
		}, broker.ErrIssuerUnavailable, broker.ErrQueued},
	} {
		t.Run(name, func(t *testing.T) {
			f, v := startFake(t)
			f.with(test.fault)
			if test.spec.Path == "" {
				test.spec.Path = "database/creds/orders-ro"
			}
			o := newOrder(t, test.spec)
			o.Lease.Parameters = map[string]string{"table": "../../sys/seal"}
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			prepared, err := v.Prepare(ctx, o)
			if prepares := !slices.Contains(unprepared, name); prepares != (err == nil) {
				t.Fatalf("Prepare: got %v, want success %v", err, prepares)
			}
			if err == nil {
				o.Lease.Handle, o.Key = prepared.Handle, prepared.Key
				var handle []byte
				if _, handle, err = v.Issue(ctx, o); handle != nil {
					o.Lease.Handle = handle
				}
				f.with(nil)
				if err := v.Revoke(t.Context(), o.Lease); !errors.Is(err, test.ends) {
					t.Errorf("Revoke: got %v, want %v", err, test.ends)
				}
			}
			if !errors.Is(err, test.want) || strings.Contains(err.Error(), "SECRET") || strings.Contains(err.Error(), "hvs.") {
				t.Errorf("got %v, want %v", err, test.want)
			}
		})
	}
}

// A refused token is replaced without an error for the caller.
func TestOwnLogsInAgain(t *testing.T) {
	f, v := startFake(t)
	o := newOrder(t, Spec{Path: "database/creds/orders-ro"})
	if _, _, err := issue(v, o); err != nil {
		t.Fatal(err)
	}
	f.mu.Lock()
	clear(f.tokens) // as after a restore from a backup
	f.mu.Unlock()
	v.session.mu.Lock()
	v.session.loggedIn = v.session.loggedIn.Add(-time.Minute)
	v.session.mu.Unlock()
	if _, _, err := issue(v, o); err != nil {
		t.Fatal(err)
	}
}

// The broker's own token is renewed when due, and replaced when it can't be.
func TestRenew(t *testing.T) {
	f, v := startFake(t)
	as, err := v.session.get(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	token := as.token
	due := func() {
		v.session.mu.Lock()
		defer v.session.mu.Unlock()
		v.session.renewal, v.session.ends = time.Now().Add(-time.Second), time.Now().Add(time.Minute)
	}
	due()
	if err := v.session.renew(t.Context()); err != nil || v.session.token != token || time.Until(v.session.ends) < 50*time.Minute {
		t.Errorf("renewing: %v, until %s", err, v.session.ends)
	}
	// A token that is refused right after its renewal is replaced, too.
	v.session.loggedIn = v.session.loggedIn.Add(-time.Minute)
	due()
	if err := v.session.renew(t.Context()); err != nil {
		t.Fatal(err)
	}
	other, ok := v.session.replace(t.Context(), token, false)
	if !ok || other.token == token {
		t.Error("a token that was refused after its renewal is not replaced")
	}
	token = other.token
	due()
	f.with(func(w http.ResponseWriter, r *http.Request) bool {
		if strings.HasSuffix(r.URL.Path, "renew-self") {
			refuse(w, 403, "permission denied")
			return true
		}
		return false
	})
	if err := v.session.renew(t.Context()); err != nil || v.session.token == token {
		t.Errorf("a token that can't be renewed is not replaced: %v", err)
	}
}

// A token from a file is looked up for its TTL, and read again when Vault refuses
// it.
func TestTokenLogin(t *testing.T) {
	for _, ttl := range []int{0, 3600} {
		f, v := startFake(t)
		f.ttl = ttl
		f.tokens["hvs.first"], f.tokens["hvs.second"] = &fakeToken{}, &fakeToken{}
		file := "hvs.first"
		v.session.login = Login{Token: func() (string, error) { return file, nil }}
		if as, err := v.session.get(t.Context()); err != nil || as.token != "hvs.first" {
			t.Fatalf("ttl %d: got %q, %v", ttl, as.token, err)
		}
		if never := v.session.ends.IsZero() && v.session.renewal.IsZero(); never != (ttl == 0) {
			t.Errorf("ttl %d: ends at %s, renewal at %s", ttl, v.session.ends, v.session.renewal)
		}
		delete(f.tokens, "hvs.first")
		file = "hvs.second"
		v.session.loggedIn = v.session.loggedIn.Add(-time.Minute)
		if _, _, err := issue(v, newOrder(t, Spec{Path: "database/creds/orders-ro"})); err != nil {
			t.Errorf("ttl %d: with a new token in the file: %v", ttl, err)
		}
	}
}

func TestRevokeRejectsForeignLease(t *testing.T) {
	_, v := startFake(t)
	l, _, err := issue(v, newOrder(t, Spec{Path: "database/creds/orders-ro"}))
	if err != nil {
		t.Fatal(err)
	}
	_, other := startFake(t)
	if err := other.Revoke(t.Context(), l); !errors.Is(err, broker.ErrIssuerUnavailable) {
		t.Errorf("the lease of another Vault: got %v, want %v", err, broker.ErrIssuerUnavailable)
	}
	l.Expires = time.Now().Add(-time.Hour)
	if err := other.Revoke(t.Context(), l); !errors.Is(err, broker.ErrNotRevocable) {
		t.Errorf("an hour after its expiry: got %v, want %v", err, broker.ErrNotRevocable)
	}
}

// A Vault owns the leases of its own address and namespace, and those without
// a handle.
func TestOwns(t *testing.T) {
	here := newIssuer(t, Config{Address: "https://vault.test:8200", Namespace: "a"})
	there := newIssuer(t, Config{Address: "https://vault.test:8200", Namespace: "b"})
	for _, c := range []struct {
		handle      string
		here, there bool
	}{
		{"", true, true},
		{string(handle{Accessor: "a", Made: madeToken, At: here.at}.encode()), true, false},
		{"nothing was made", false, false},
		{`{"role":"x","deny":"session"}`, false, false},
		{`{"role":"x","account":"210987654321","deny":"session"}`, false, false},
	} {
		l := broker.Lease{Handle: []byte(c.handle)}
		if got := here.Owns(l); got != c.here {
			t.Errorf("here: Owns(%q) = %v, want %v", c.handle, got, c.here)
		}
		if got := there.Owns(l); got != c.there {
			t.Errorf("there: Owns(%q) = %v, want %v", c.handle, got, c.there)
		}
	}
}

func TestSpecCheck(t *testing.T) {
	e := &broker.Entitlement{Name: "orders", Scopes: []string{"read"}, Parameters: map[string]broker.Parameter{"table": {Required: true}, "note": {}}}
	read := map[string][]string{"read": {"orders-read"}}
	for name, test := range map[string]struct {
		spec Spec
		want string // the key of the mistake; empty: none
	}{
		"valid":                        {Spec{Path: "database/creds/${table}", ScopePolicies: read, Data: map[string]string{"note": "${note}"}}, ""},
		"unused parameter":             {Spec{Path: "database/creds/${table}", ScopePolicies: read}, "path"},
		"valid, with data":             {Spec{Path: "pki/issue/web", ScopePolicies: read, Data: map[string]string{"common_name": "${table}.acme.test", "alt_names": "${note}", "uri_sans": "${holder}"}}, ""},
		"no path":                      {Spec{ScopePolicies: read}, "path"},
		"absolute path":                {Spec{Path: "/database/creds/x", ScopePolicies: read}, "path"},
		"path with v1":                 {Spec{Path: "v1/database/creds/x", ScopePolicies: read}, "path"},
		"dots":                         {Spec{Path: "database/../sys/seal", ScopePolicies: read}, "path"},
		"unknown parameter":            {Spec{Path: "database/creds/${nope}", ScopePolicies: read}, "path"},
		"optional parameter in a path": {Spec{Path: "database/creds/${note}", ScopePolicies: read}, "path"},
		"unknown parameter in data":    {Spec{Path: "pki/issue/web", ScopePolicies: read, Data: map[string]string{"ttl": "${nope}"}}, "data/ttl"},
		"wrapped without ttl":          {Spec{Path: "pki/sign/web", ScopePolicies: read, Data: map[string]string{"csr": "x"}, Wrap: true}, "wrap"},
		"unclosed reference":           {Spec{Path: "pki/issue/web", ScopePolicies: read, Data: map[string]string{"ttl": "${ttl"}}, "data/ttl"},
		"scope without policies":       {Spec{Path: "database/creds/x", Policies: []string{"orders"}}, "policies"},
		"root":                         {Spec{Path: "database/creds/x", ScopePolicies: map[string][]string{"read": {"root"}}}, "policies"},
		"token with data":              {Spec{Path: TokenPath, ScopePolicies: read, Data: map[string]string{"a": "b"}}, "path"},
		"unknown type":                 {Spec{Path: "database/creds/x", ScopePolicies: read, Type: "password"}, "type"},
	} {
		t.Run(name, func(t *testing.T) {
			var keys []string
			test.spec.Check(e, func(key, _ string, _ ...any) { keys = append(keys, key) })
			if test.want == "" && keys != nil || test.want != "" && !slices.Contains(keys, test.want) {
				t.Errorf("mistakes at %v, want %q", keys, test.want)
			}
		})
	}
	one, other := Spec{Path: "a/b"}, Spec{Path: "a/b", Data: map[string]string{}}
	if one.Digest() == other.Digest() {
		t.Error("reading and writing have the same digest")
	}
}

// A parameter stays within its segment of the path.
func FuzzPath(f *testing.F) {
	for _, seed := range []string{"items", "..", "../x", "a/b", "a?b", "a#b", "%2e%2e", "a b", "", ".", "a\x00", "a\nb"} {
		f.Add(seed)
	}
	spec := &Spec{Path: "database/creds/${table}/x"}
	f.Fuzz(func(t *testing.T, value string) {
		path, err := spec.path(&broker.Lease{Parameters: map[string]string{"table": value}}, time.Minute)
		if err != nil {
			return
		}
		if parts := strings.Split(path, "/"); len(parts) != 4 || parts[2] != value || strings.ContainsAny(path, "?#% \x00\n") || value == "" || value == "." || value == ".." {
			t.Errorf("the parameter %q makes the path %q", value, path)
		}
	})
}
