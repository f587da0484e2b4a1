package brokertest

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"accessbroker.internal/api"
	"accessbroker.internal/audit"
)

// A workload exchanges its proof for a token, which is recorded, introspected and
// returned.
func TestExchangeToReturn(t *testing.T) {
	b := New(t)
	token, err := b.Token(Agent, "tickets:read", "tickets:comment")
	if err != nil {
		t.Fatal(err)
	}
	server := b.Client(Tickets)
	if in, err := server.Introspect(t.Context(), token.AccessToken); err != nil || !in.Active || in.Subject != Agent {
		t.Fatalf("introspection: got %+v, %v", in, err)
	}
	for name, c := range map[string]*api.Client{"a stranger": b.Client(Stranger), "an auditor": b.Client(Auditor)} {
		if in, err := c.Introspect(t.Context(), token.AccessToken); err != nil || in.Active || in.Subject != "" {
			t.Errorf("introspection by %s: got %+v, %v", name, in, err)
		}
	}
	holder := b.Bearer(Agent)
	issued := slices.IndexFunc(b.Records(), func(r audit.Record) bool { return r.Kind == audit.LeaseIssued })
	record, err := holder.AuditRecord(t.Context(), int64(issued))
	if err != nil || !strings.Contains(string(record.Record), token.Lease) {
		t.Errorf("the holder's record: got %+v, %v", record, err)
	}
	if _, err := b.Client(Stranger).AuditRecord(t.Context(), int64(issued)); !errors.Is(err, api.NotFound) {
		t.Errorf("the record for a stranger: got %v", err)
	}
	if l, err := holder.Revoke(t.Context(), token.Lease, "done"); err != nil || l.Status != api.LeaseRevoked || l.Revocation != "at_expiry" {
		t.Fatalf("returning the token: got %+v, %v", l, err)
	}
	if in, err := server.Introspect(t.Context(), token.AccessToken); err != nil || in.Active {
		t.Errorf("introspection of the returned token: got %+v, %v", in, err)
	}
}

// Every kind of bad proof is refused over the wire with a stable code, and no answer
// repeats the proof.
func TestBadProofs(t *testing.T) {
	b := New(t)
	now := time.Now()
	claims := func(change map[string]any) map[string]any {
		c := map[string]any{"sub": Agent, "aud": []string{b.URL}, "exp": now.Add(5 * time.Minute).Unix(), "iat": now.Unix()}
		for k, v := range change {
			if c[k] = v; v == nil {
				delete(c, k)
			}
		}
		return c
	}
	sign := func(change map[string]any) string {
		token, err := b.CA.SignJWT(claims(change))
		if err != nil {
			t.Fatal(err)
		}
		return token
	}
	good := sign(nil)
	parts := strings.Split(good, ".")
	kid, _ := b.CA.JWTAuthority()
	bundle, err := b.CA.Bundle()
	if err != nil {
		t.Fatal(err)
	}
	foreign := func(id string) string {
		token, err := b.authorityOf(id).JWTSVID(id, 5*time.Minute, b.URL)
		if err != nil {
			t.Fatal(err)
		}
		return token
	}
	before := len(b.Records())
	for name, token := range map[string]string{
		"expired":                sign(map[string]any{"exp": now.Add(-time.Second).Unix()}),
		"not yet valid":          sign(map[string]any{"nbf": now.Add(time.Minute).Unix()}),
		"without exp":            sign(map[string]any{"exp": nil}),
		"lifetime too long":      sign(map[string]any{"exp": now.Add(2 * time.Hour).Unix()}),
		"for another audience":   sign(map[string]any{"aud": []string{"https://other.test"}}),
		"for two audiences":      sign(map[string]any{"aud": []string{b.URL, "https://other.test"}}),
		"not a SPIFFE ID":        sign(map[string]any{"sub": "agent"}),
		"of a trust domain":      sign(map[string]any{"sub": "spiffe://acme.test"}),
		"of another domain":      sign(map[string]any{"sub": Supplier}),
		"of an unlisted domain":  foreign(Unlisted),
		"alg none":               Encode(`{"alg":"none","kid":"`+kid+`"}`) + "." + parts[1] + ".",
		"HMAC by the public key": hmacToken(kid, parts[1], bundle),
		"truncated":              good[:len(good)-10],
		"oversized":              good + strings.Repeat("a", 9000),
		"of many signatures":     `{"payload":"` + parts[1] + `","signatures":[{"protected":"` + parts[0] + `","signature":"` + parts[2] + `"}]}`,
		"with a duplicate claim": duplicateClaim(t, b, kid),
		"of two parts":           parts[0] + "." + parts[1],
		"empty parts":            "..",
	} {
		t.Run(name, func(t *testing.T) {
			b.Secret(token)
			status, body := b.Form(url.Values{
				"grant_type": {api.GrantTokenExchange}, "subject_token": {token}, "subject_token_type": {api.TokenTypeJWT},
				"audience": {"tickets-api"}, "scope": {"tickets:read"},
			})
			var answer api.OAuthError
			if err := json.Unmarshal(body, &answer); err != nil || status != 400 || answer.Error != "invalid_request" || answer.Description == "" {
				t.Errorf("got %d %s", status, body)
			}
			if len(parts) > 2 && strings.Contains(string(body), parts[2]) {
				t.Errorf("the answer repeats the token: %s", body)
			}
			req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, b.URL+"/v1/whoami", nil)
			if err != nil {
				t.Fatal(err)
			}
			req.Header.Set("Authorization", "Bearer "+token)
			resp, err := b.Anonymous().HTTP.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			if status, body := readAll(t, resp); status != http.StatusUnauthorized {
				t.Errorf("as bearer: got %d %s", status, body)
			}
		})
	}
	if n := len(b.Records()); n != before {
		t.Errorf("got %d records of bad proofs, want none", n-before)
	}
}

func hmacSHA256(key []byte, text string) []byte {
	h := hmac.New(sha256.New, key)
	_, _ = h.Write([]byte(text))
	return h.Sum(nil)
}

func hmacToken(kid, payload string, key []byte) string {
	input := Encode(`{"alg":"HS256","kid":"`+kid+`"}`) + "." + payload
	return input + "." + base64.RawURLEncoding.EncodeToString(hmacSHA256(key, input))
}

// duplicateClaim signs a token with two sub claims. Some parsers use the first one, and
// others the last.
func duplicateClaim(t *testing.T, b *Broker, kid string) string {
	t.Helper()
	claims := fmt.Sprintf(`{"sub":%q,"sub":%q,"aud":[%q],"exp":%d}`, Stranger, Agent, b.URL, time.Now().Add(time.Minute).Unix())
	input := Encode(`{"alg":"ES256","kid":"`+kid+`"}`) + "." + Encode(claims)
	_, signature, err := b.CA.SignBytes(input)
	if err != nil {
		t.Fatal(err)
	}
	return input + "." + base64.RawURLEncoding.EncodeToString(signature)
}

// Every invalid request is refused with a stable code and a text.
func TestInvalidRequests(t *testing.T) {
	b := New(t)
	c := b.Client(Agent)
	ask := func(change func(*api.Ask)) api.Ask {
		a := api.Ask{Entitlement: "tickets-api", Scopes: []string{"tickets:read"}}
		change(&a)
		return a
	}
	for name, x := range map[string]struct {
		ask  api.Ask
		want api.Code
	}{
		"unknown entitlement":     {ask(func(a *api.Ask) { a.Entitlement = "nothing" }), api.Denied},
		"no scopes":               {ask(func(a *api.Ask) { a.Scopes = nil }), api.InvalidScope},
		"unknown scope":           {ask(func(a *api.Ask) { a.Scopes = []string{"tickets:burn"} }), api.InvalidScope},
		"scope twice":             {ask(func(a *api.Ask) { a.Scopes = []string{"tickets:read", "tickets:read"} }), api.InvalidScope},
		"unknown parameter":       {ask(func(a *api.Ask) { a.Parameters = map[string]string{"p": "v"} }), api.InvalidParameter},
		"ttl too long":            {ask(func(a *api.Ask) { a.TTL = api.Duration(time.Hour) }), api.InvalidTTL},
		"no justification":        {ask(func(a *api.Ask) { a.Scopes = []string{"tickets:close"} }), api.JustificationRequired},
		"justification too long":  {ask(func(a *api.Ask) { a.Justification = strings.Repeat("a", 10_000) }), api.InvalidRequest},
		"a body that is too long": {ask(func(a *api.Ask) { a.Justification = strings.Repeat("a", 100_000) }), api.TooLarge},
		"bound without mTLS":      {api.Ask{Entitlement: "bound-api", Scopes: []string{"bound:read"}}, api.BindingRequiresMTLS},
	} {
		client := c
		if x.want == api.BindingRequiresMTLS {
			client = b.Bearer(Agent)
		}
		_, _, err := client.AskAndCollect(t.Context(), x.ask)
		var e *api.Error
		if !errors.As(err, &e) || e.Code != x.want || e.Detail == "" && e.Title == "" {
			t.Errorf("%s: got %v, want %s", name, err, x.want)
		}
	}
	for body, want := range map[string]int{
		`{"entitlement":"tickets-api","scopes":["tickets:read"],"ttl":"0s"}`:     400,
		`{"entitlement":"tickets-api","scopes":["tickets:read"],"ttl":"-5m"}`:    400,
		`{"entitlement":"tickets-api","scopes":["tickets:read"],"admin":true}`:   400,
		`{"entitlement":"tickets-api","entitlement":"x","scopes":["a"]}`:         400,
		`{"entitlement":"tickets-api","scopes":["tickets:read"]} {"and":"more"}`: 400,
		`not json`: 400, `[]`: 400, ``: 400,
	} {
		resp, err := c.HTTP.Post(b.URL+"/v1/credentials", "application/json", strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		if status, text := readAll(t, resp); status != want {
			t.Errorf("%s: got %d %s, want %d", body, status, text, want)
		}
	}
}

// A federated workload receives exactly what a policy permits its domain.
func TestFederatedWorkload(t *testing.T) {
	b := New(t)
	if _, err := b.Token(Supplier, "tickets:read"); err != nil {
		t.Errorf("a permitted scope: got %v", err)
	}
	if _, err := b.Token(Supplier, "tickets:comment"); !errors.Is(err, api.Denied) {
		t.Errorf("another scope: got %v, want %v", err, api.Denied)
	}
}

// Concurrent callers each receive their own token, with its own record.
func TestConcurrentExchanges(t *testing.T) {
	b := New(t)
	var mu sync.Mutex
	leases := map[string]bool{}
	var all sync.WaitGroup
	for range 32 {
		all.Go(func() {
			for range 8 {
				token, err := b.Token(Agent, "tickets:read")
				if err != nil {
					t.Error(err)
					return
				}
				mu.Lock()
				leases[token.Lease] = true
				mu.Unlock()
			}
		})
	}
	all.Wait()
	recorded := 0
	for _, r := range b.Records() {
		if r.Kind == audit.LeaseIssued && leases[r.Lease.ID] {
			recorded++
		}
	}
	if len(leases) != 256 || recorded != 256 {
		t.Errorf("got %d tokens and %d records, want 256", len(leases), recorded)
	}
}

// A long poll of a pending request returns when the request is withdrawn.
func TestLongPollOfPendingRequest(t *testing.T) {
	b := New(t)
	c := b.Client(Agent)
	_, pending, err := c.AskAndCollect(t.Context(), api.Ask{Entitlement: "tickets-api", Scopes: []string{"tickets:close"}, Justification: "duplicates"})
	if err != nil || pending.Status != api.StatusPending || len(pending.Approvals.Needed) != 1 {
		t.Fatalf("got %+v, %v, want a pending request", pending, err)
	}
	changed := make(chan *api.Request)
	go func() {
		r, err := c.Await(t.Context(), pending.ID, pending.Version, 30*time.Second)
		if err != nil {
			t.Error(err)
		}
		changed <- r
	}()
	if _, err := c.Withdraw(t.Context(), pending.ID); err != nil {
		t.Fatal(err)
	}
	if r := <-changed; r == nil || r.Status != api.StatusWithdrawn {
		t.Errorf("the long poll: got %+v, want a withdrawn request", r)
	}
	_, err = b.Anonymous().Exchange(t.Context(), api.TokenRequest{SubjectToken: b.JWT(Agent), RequestID: pending.ID})
	var e *api.Error
	if !errors.As(err, &e) || e.OAuth != "access_denied" {
		t.Errorf("polling the withdrawn request: got %v", err)
	}
}
