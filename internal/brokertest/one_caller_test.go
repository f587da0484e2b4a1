package brokertest

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"accessbroker.internal/api"
)

// The callers. Each proof of a combination is by one of them, or missing.
const noProof = ""

var provers = []string{noProof, Agent, Stranger}

// proofs are who proves an identity in each place of a call.
type proofs struct{ certificate, bearer, assertion, subject string }

func (p proofs) identities() []string {
	list := slices.DeleteFunc([]string{p.certificate, p.bearer, p.assertion, p.subject}, func(id string) bool { return id == noProof })
	slices.Sort(list)
	return slices.Compact(list)
}

// others returns the number of proofs besides the first.
func (p proofs) others() int {
	n := -1
	for _, id := range []string{p.certificate, p.bearer, p.assertion, p.subject} {
		if id != noProof {
			n++
		}
	}
	return n
}

// combinations returns all combinations of at least one proof, with proofs in the body
// where the endpoint accepts them.
func combinations(assertion, subject bool) (list []proofs) {
	places := func(accepted bool) []string {
		if accepted {
			return provers
		}
		return provers[:1]
	}
	for _, c := range provers[:2] {
		for _, b := range provers {
			for _, a := range places(assertion) {
				for _, s := range places(subject) {
					if p := (proofs{c, b, a, s}); p.others() >= 0 {
						list = append(list, p)
					}
				}
			}
		}
	}
	return list
}

// An endpoint takes a call with proofs. It returns the code of a refusal.
type endpoint struct {
	name, path         string
	assertion, subject bool
	required           bool // the subject_token
	json               bool // the body is read after authentication, which needs another proof
	body               func(assertion, subject string) (mediaType, text string)
}

func form(values ...string) func(assertion, subject string) (string, string) {
	return func(assertion, subject string) (string, string) {
		f := url.Values{}
		for i := 0; i < len(values); i += 2 {
			f.Set(values[i], values[i+1])
		}
		if assertion != "" {
			f.Set("client_assertion", assertion)
			f.Set("client_assertion_type", api.AssertionTypeJWT)
		}
		if subject != "" {
			f.Set("subject_token", subject)
			f.Set("subject_token_type", api.TokenTypeJWT)
		}
		return "application/x-www-form-urlencoded", f.Encode()
	}
}

func ask(_, subject string) (string, string) {
	text, _ := json.Marshal(api.Ask{Entitlement: "tickets-api", Scopes: []string{"tickets:read"}, SubjectToken: subject})
	return "application/json", string(text)
}

// One rule holds at every endpoint, for every combination of certificate, bearer token,
// client_assertion and subject_token: proofs of one identity are one caller, whose record
// names all of them, and proofs of two are refused with one code.
func TestOneCaller(t *testing.T) {
	b := New(t)
	certificates := map[string]*http.Client{noProof: b.Anonymous().HTTP, Agent: b.Client(Agent).HTTP}
	tokens := map[string]map[string]string{} // by place and identity
	for _, place := range []string{"bearer", "assertion", "subject"} {
		tokens[place] = map[string]string{noProof: "", Agent: b.JWT(Agent), Stranger: b.JWT(Stranger)}
	}
	const exchange = "urn:ietf:params:oauth:grant-type:token-exchange"
	for _, e := range []endpoint{
		{name: "whoami", path: "GET /v1/whoami"},
		{name: "request", path: "POST /v1/requests", subject: true, json: true, body: ask},
		{name: "request and collect", path: "POST /v1/credentials", subject: true, json: true, body: ask},
		{name: "client credentials", path: "POST /oauth2/token", assertion: true, body: form("grant_type", "client_credentials", "audience", "tickets-api", "scope", "tickets:read")},
		{name: "token exchange", path: "POST /oauth2/token", assertion: true, subject: true, required: true, body: form("grant_type", exchange, "audience", "tickets-api", "scope", "tickets:read")},
		{name: "introspection", path: "POST /oauth2/introspect", assertion: true, body: form("token", "x")},
		{name: "revocation", path: "POST /oauth2/revoke", assertion: true, body: form("token", "x")},
	} {
		t.Run(e.name, func(t *testing.T) {
			tried := map[int]int{} // by the number of identities
			for _, p := range combinations(e.assertion, e.subject) {
				if e.required && p.subject == noProof || e.json && p.certificate+p.bearer == noProof {
					continue
				}
				before := len(b.Records())
				code := e.call(t, b.URL, certificates[p.certificate], tokens["bearer"][p.bearer], tokens["assertion"][p.assertion], tokens["subject"][p.subject])
				tried[len(p.identities())]++
				refused := code == string(api.TwoIdentities)
				if refused != (len(p.identities()) > 1) || code == string(api.ForeignSubject) || code == string(api.Unauthenticated) {
					t.Errorf("%+v: got %q", p, code)
				}
				if p.identities()[0] == Agent && !refused && code != "" {
					t.Errorf("%+v: got %q, want no refusal", p, code)
				}
				for _, r := range b.Records()[before:] {
					if r.Caller != nil && (refused || len(r.Caller.Also) != p.others()) {
						t.Errorf("%+v: got a record of %+v, want %d other proofs", p, r.Caller, p.others())
					}
				}
			}
			if tried[1] == 0 || tried[2] == 0 {
				t.Errorf("got %v calls by number of identities", tried)
			}
		})
	}
}

// call makes the call and returns the code of its refusal, or "".
func (e endpoint) call(t *testing.T, base string, c *http.Client, bearer, assertion, subject string) string {
	t.Helper()
	method, path, _ := strings.Cut(e.path, " ")
	mediaType, text := "", ""
	if e.body != nil {
		mediaType, text = e.body(assertion, subject)
	}
	req, err := http.NewRequestWithContext(t.Context(), method, base+path, strings.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	if mediaType != "" {
		req.Header.Set("Content-Type", mediaType)
	}
	if bearer != "" {
		req.Header.Set("Authorization", "Bearer "+bearer)
	}
	resp, err := c.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	answer, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	if resp.StatusCode < 400 {
		return ""
	}
	var problem struct{ Code string }
	if err := json.Unmarshal(answer, &problem); err != nil || problem.Code == "" {
		t.Fatal(fmt.Errorf("%s: %d %s: %w", e.name, resp.StatusCode, answer, err))
	}
	return problem.Code
}

// With several proofs, a token is bound to the certificate (RFC 8705) and to its SPIFFE ID,
// so that it may outlive them.
func TestTokenOfSeveralProofs(t *testing.T) {
	b := New(t)
	svid, err := b.CA.X509SVID(Agent, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	short, err := b.CA.JWTSVID(Agent, 2*time.Minute, b.URL)
	if err != nil {
		t.Fatal(err)
	}
	answer, err := b.ClientWith(svid).Exchange(t.Context(), api.TokenRequest{SubjectToken: short, Audience: "bound-api", Scopes: []string{"bound:read"}})
	if err != nil {
		t.Fatal(err)
	}
	payload, err := base64.RawURLEncoding.DecodeString(strings.Split(string(answer.AccessToken), ".")[1])
	if err != nil {
		t.Fatal(err)
	}
	var claims struct {
		Expires int64             `json:"exp"`
		Confirm map[string]string `json:"cnf"`
	}
	if err := json.Unmarshal(payload, &claims); err != nil {
		t.Fatal(err)
	}
	thumbprint := sha256.Sum256(svid.Certificate[0])
	if got, want := claims.Confirm["x5t#S256"], base64.RawURLEncoding.EncodeToString(thumbprint[:]); got != want {
		t.Errorf("got a token bound to %q, want the certificate %q", got, want)
	}
	if got, want := claims.Confirm["spiffe_id"], Agent; got != want {
		t.Errorf("got a token bound to the SPIFFE ID %q, want %q", got, want)
	}
	if left := time.Until(time.Unix(claims.Expires, 0)); left < 2*time.Minute {
		t.Errorf("got a token for %s, want its usual time: it survives the rotation of the SVID", left)
	}
}
