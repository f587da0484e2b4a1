package brokertest

import (
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"maps"
	"net/http"
	"net/url"
	"reflect"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"

	"accessbroker.internal/api"
	"accessbroker.internal/audit"
)

// Ana may read and close tickets, and lets agents act for her; Eve may nothing.
const delegationPolicies = `
@id("people")
@delegates("2")
permit (principal == Person::"login/ana", action == Action::"request", resource == Entitlement::"tickets-api");

@id("chain")
@delegates("2")
permit (principal in Path::"spiffe://acme.test/chain", action == Action::"request", resource)
unless { context.scopes.contains("tickets:close") };

@id("operators")
permit (principal == Person::"login/ben", action == Action::"block", resource);
`

const (
	subAgent   = "spiffe://acme.test/agent/sub"
	otherAgent = "spiffe://acme.test/workload/sync" // is another client of the provider
)

// A delegating is a broker and the provider of its people, which issues ID-JAGs.
type delegating struct {
	*Broker
	p *provider
}

func newDelegating(t testing.TB) *delegating {
	t.Helper()
	p := newProvider(t, "ana", "broker")
	config := p.config("login")
	config.Keys = `, ends_claim: ends, delegation_audiences: [broker-agents], delegation: {id_jag: true, clients: {mcp-client: ["spiffe://acme.test/agent"], chain-client: ["spiffe://acme.test/chain/a"], other-client: ["spiffe://acme.test/workload"]}}`
	b := startBroker(t, nil, files{policies: delegationPolicies}, config)
	p.places[b.URL+"/ui/login/callback"] = true
	return &delegating{b, p}
}

// changedClaims returns claims with changes; nil removes a claim.
func changedClaims(claims, changes map[string]any) map[string]any {
	maps.Copy(claims, changes)
	maps.DeleteFunc(claims, func(_ string, v any) bool { return v == nil })
	return claims
}

func (d *delegating) claims(changes map[string]any) map[string]any {
	now := time.Now()
	return changedClaims(map[string]any{
		"iss": d.p.URL, "sub": "ana", "aud": d.URL, "client_id": "mcp-client", "jti": rand.Text(), "iat": now.Unix(), "exp": now.Add(5 * time.Minute).Unix(),
		"resource": Audience, "scope": "tickets:read",
	}, changes)
}

func (d *delegating) idJAG(changes map[string]any) string {
	token := d.p.sign(d.claims(changes), "oauth-id-jag+jwt")
	d.Secret(token)
	return token
}

func (d *delegating) accessToken(changes map[string]any) string {
	token := d.p.sign(changedClaims(d.claims(map[string]any{"aud": "broker-agents", "resource": nil, "scope": "openid"}), changes), "at+jwt")
	d.Secret(token)
	return token
}

// post posts a form as the caller of a client, and returns the status and the answer.
func (d *delegating) post(c *api.Client, form url.Values) (int, map[string]any) {
	d.t.Helper()
	resp, err := c.HTTP.PostForm(d.URL+"/oauth2/token", form)
	d.must(err)
	status, body := readAll(d.t, resp)
	var answer map[string]any
	d.must(json.Unmarshal(body, &answer))
	if token, ok := answer["access_token"].(string); ok {
		d.Secret(token)
	}
	return status, answer
}

func bearerForm(assertion string, more ...string) url.Values {
	form := url.Values{"grant_type": {api.GrantJWTBearer}, "assertion": {assertion}}
	for i := 0; i < len(more); i += 2 {
		form.Set(more[i], more[i+1])
	}
	return form
}

func exchangeForm(token, kind string, more ...string) url.Values {
	form := url.Values{
		"grant_type": {api.GrantTokenExchange}, "subject_token": {token}, "subject_token_type": {kind},
		"audience": {"tickets-api"}, "scope": {"tickets:read"},
	}
	for i := 0; i < len(more); i += 2 {
		form.Set(more[i], more[i+1])
	}
	return form
}

// tokenClaims returns the claims of an issued token.
func (d *delegating) tokenClaims(token any) (claims map[string]any) {
	d.t.Helper()
	text, _ := token.(string)
	parts := strings.Split(text, ".")
	if len(parts) != 3 {
		d.t.Fatalf("got no token: %v", token)
	}
	payload, err := base64.RawURLEncoding.DecodeString(parts[1])
	d.must(err)
	d.must(json.Unmarshal(payload, &claims))
	return claims
}

// An agent acts for Ana with each proof of her and each proof of its own. The token names both.
func TestActForPerson(t *testing.T) {
	t.Parallel()
	d := newDelegating(t)
	svid, anonymous := d.Client(Agent), d.Anonymous()
	own := func(form url.Values, name, kind string) url.Values {
		form.Set(name, d.JWT(Agent))
		form.Set(name+"_type", kind)
		return form
	}
	for name, call := range map[string]struct {
		client *api.Client
		form   url.Values
	}{
		"JWT bearer over TLS":            {svid, bearerForm(d.idJAG(nil))},
		"JWT bearer by assertion":        {anonymous, own(bearerForm(d.idJAG(nil)), "client_assertion", api.AssertionTypeJWT)},
		"JWT bearer with a client_id":    {svid, bearerForm(d.idJAG(nil), "client_id", "mcp-client", "audience", "tickets-api")},
		"its SPIFFE ID as client_id":     {svid, bearerForm(d.idJAG(map[string]any{"client_id": Agent}), "client_id", Agent)},
		"exchange of an ID-JAG":          {svid, exchangeForm(d.idJAG(nil), api.TokenTypeIDJAG)},
		"exchange of an access token":    {svid, exchangeForm(d.accessToken(nil), api.TokenTypeAccessToken)},
		"exchange by actor_token":        {anonymous, own(exchangeForm(d.accessToken(nil), api.TokenTypeAccessToken), "actor_token", api.TokenTypeJWT)},
		"exchange by all proofs at once": {svid, own(own(exchangeForm(d.accessToken(nil), api.TokenTypeAccessToken), "actor_token", api.TokenTypeJWT), "client_assertion", api.AssertionTypeJWT)},
		"may_act":                        {svid, exchangeForm(d.accessToken(map[string]any{"may_act": map[string]string{"sub": Agent}}), api.TokenTypeAccessToken)},
	} {
		status, answer := d.post(call.client, call.form)
		if status != http.StatusOK || answer["scope"] != "tickets:read" {
			t.Errorf("%s: got %d %v", name, status, answer)
			continue
		}
		claims := d.tokenClaims(answer["access_token"])
		act, _ := claims["act"].(map[string]any)
		if claims["sub"] != "login/ana" || claims["client_id"] != Agent || act["sub"] != Agent || act["act"] != nil {
			t.Errorf("%s: got claims %v", name, claims)
		}
	}
	found := 0
	for _, r := range d.Records() {
		if r.Kind == audit.LeaseIssued && r.Subject != nil && r.Subject.ID == "login/ana" && r.Caller != nil && r.Caller.ID == Agent {
			found++
		}
	}
	if found != 9 {
		t.Errorf("got %d records of credentials on Ana's behalf, want 9", found)
	}
}

// On /v1, the person's token is the subject_token. An ID-JAG is used up by the request that it
// filed; collecting needs none.
func TestAskForPerson(t *testing.T) {
	t.Parallel()
	d := newDelegating(t)
	me := d.Client(Agent)
	ask := api.Ask{Entitlement: "tickets-api", Scopes: []string{"tickets:read"}, SubjectToken: d.idJAG(nil), SubjectType: api.TokenTypeIDJAG}
	r, err := me.Ask(t.Context(), ask)
	if err != nil {
		t.Fatal(err)
	}
	c, err := me.Collect(t.Context(), r.ID)
	if err != nil {
		t.Fatal(err)
	}
	d.Secret(c.Secret["token"])
	if claims := d.tokenClaims(c.Secret["token"]); claims["sub"] != "login/ana" {
		t.Errorf("got claims %v", claims)
	}
	if in, err := d.Client(Tickets).Introspect(t.Context(), api.Token(c.Secret["token"])); err != nil || !in.Active || in.Subject != "login/ana" || in.ClientID != Agent {
		t.Errorf("introspection: got %+v, %v", in, err)
	}
	if _, err := me.Ask(t.Context(), ask); !isCode(err, api.ProofReplayed) {
		t.Errorf("the ID-JAG again: got %v", err)
	}
	ask.SubjectToken, ask.SubjectType = d.accessToken(nil), api.TokenTypeAccessToken
	credential, _, err := me.AskAndCollect(t.Context(), ask)
	if err != nil {
		t.Fatal(err)
	}
	d.Secret(credential.Secret["token"])
	for name, change := range map[string]func(*api.Ask){
		"the type without a token": func(a *api.Ask) { a.SubjectToken = "" },
		"an unknown type":          func(a *api.Ask) { a.SubjectType = "urn:ietf:params:oauth:token-type:id_token" },
	} {
		bad := ask
		change(&bad)
		if _, err := me.Ask(t.Context(), bad); !isCode(err, api.InvalidRequest) {
			t.Errorf("%s: got %v", name, err)
		}
	}
}

func isCode(err error, code api.Code) bool { return api.CodeOf(err) == code }

// An ID-JAG is used once: also when it arrives several times at once, and after a restart.
func TestIDJAGIsUsedOnce(t *testing.T) {
	t.Parallel()
	d := newDelegating(t)
	me := d.Client(Agent)
	const calls = 8
	parallel := d.idJAG(nil)
	var issued, replayed atomic.Int64
	var group sync.WaitGroup
	for range calls {
		group.Go(func() {
			switch status, answer := d.post(me, bearerForm(parallel)); {
			case status == http.StatusOK:
				issued.Add(1)
			case answer["error"] == "invalid_grant" && answer["code"] == string(api.ProofReplayed):
				replayed.Add(1)
			default:
				t.Errorf("got %d %v", status, answer)
			}
		})
	}
	group.Wait()
	if issued.Load() != 1 || replayed.Load() != calls-1 {
		t.Errorf("%d calls with one ID-JAG: got %d tokens and %d replays", calls, issued.Load(), replayed.Load())
	}
	for _, form := range []url.Values{bearerForm(parallel), bearerForm(parallel, "audience", "tickets-api", "ttl", "5m"), exchangeForm(parallel, api.TokenTypeIDJAG)} {
		want := "invalid_grant"
		if form.Get("grant_type") == api.GrantTokenExchange {
			want = "invalid_request"
		}
		if _, answer := d.post(me, form); answer["error"] != want || answer["code"] != string(api.ProofReplayed) {
			t.Errorf("%v: got %v", form["grant_type"], answer)
		}
	}
	me.HTTP.CloseIdleConnections()
	d.restart()
	if _, answer := d.post(me, bearerForm(parallel)); answer["error"] != "invalid_grant" || answer["code"] != string(api.ProofReplayed) {
		t.Errorf("after a restart: got %v", answer)
	}
	// The same jti of another token is the same use (RFC 7519, section 4.1.7).
	jti := rand.Text()
	if status, answer := d.post(me, bearerForm(d.idJAG(map[string]any{"jti": jti}))); status != http.StatusOK {
		t.Errorf("a new ID-JAG: got %d %v", status, answer)
	}
	if _, answer := d.post(me, bearerForm(d.idJAG(map[string]any{"jti": jti, "name": "Ana"}))); answer["code"] != string(api.ProofReplayed) {
		t.Errorf("another token with the same jti: got %v", answer)
	}
}

// Attacks on the proof. Nothing is issued for any of them.
func TestDelegationAttacks(t *testing.T) {
	t.Parallel()
	d := newDelegating(t)
	evil := newProvider(t, "ana", "broker")
	me := d.Client(Agent)
	jag := func(changes map[string]any) url.Values { return bearerForm(d.idJAG(changes)) }
	id := d.p.idToken("n")
	d.Secret(id)
	foreign := evil.sign(d.claims(nil), "oauth-id-jag+jwt")
	none := Encode(`{"alg":"none","typ":"oauth-id-jag+jwt"}`) + "." + strings.Split(d.idJAG(nil), ".")[1] + "."
	hmac, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.HS256, Key: []byte(strings.Repeat("s3cret-of-the-client", 2))}, (&jose.SignerOptions{}).WithType("oauth-id-jag+jwt"))
	d.must(err)
	payload, err := json.Marshal(d.claims(nil))
	d.must(err)
	signed, err := hmac.Sign(payload)
	d.must(err)
	symmetric, err := signed.CompactSerialize()
	d.must(err)
	duplicate := strings.Replace(string(payload), "{", `{"sub":"eve",`, 1)
	now := time.Now()
	before := issuedCredentials(d.Records())
	for name, test := range map[string]struct {
		client *api.Client
		form   url.Values
		error  string
	}{
		"another issuer":               {me, jag(map[string]any{"iss": evil.URL}), "invalid_grant"},
		"signed by another provider":   {me, bearerForm(foreign), "invalid_grant"},
		"another audience":             {me, jag(map[string]any{"aud": "https://other.test"}), "invalid_grant"},
		"the entitlement as audience":  {me, jag(map[string]any{"aud": Audience}), "invalid_grant"},
		"two audiences":                {me, jag(map[string]any{"aud": []string{d.URL, "https://other.test"}}), "invalid_grant"},
		"expired":                      {me, jag(map[string]any{"exp": now.Add(-time.Second).Unix()}), "invalid_grant"},
		"from the future":              {me, jag(map[string]any{"iat": now.Add(time.Hour).Unix(), "exp": now.Add(2 * time.Hour).Unix()}), "invalid_grant"},
		"valid for too long":           {me, jag(map[string]any{"exp": now.Add(25 * time.Hour).Unix()}), "invalid_grant"},
		"no jti":                       {me, jag(map[string]any{"jti": nil}), "invalid_grant"},
		"another agent's client":       {me, jag(map[string]any{"client_id": "other-client"}), "invalid_grant"},
		"another agent":                {d.Client(otherAgent), jag(nil), "invalid_grant"},
		"client_id of another":         {me, bearerForm(d.idJAG(nil), "client_id", "other-client"), "invalid_grant"},
		"may_act of another":           {me, jag(map[string]any{"may_act": map[string]string{"sub": otherAgent}}), "invalid_grant"},
		"alg none":                     {me, bearerForm(none), "invalid_grant"},
		"HS256 with the secret":        {me, bearerForm(symmetric), "invalid_grant"},
		"duplicate members":            {me, bearerForm(Encode(`{"alg":"ES256","kid":"1","typ":"oauth-id-jag+jwt"}`) + "." + Encode(duplicate) + ".AA"), "invalid_grant"},
		"an ID token":                  {me, bearerForm(id), "invalid_grant"},
		"an ID token, exchanged":       {me, exchangeForm(id, "urn:ietf:params:oauth:token-type:id_token"), "invalid_request"},
		"an ID token as access token":  {me, exchangeForm(id, api.TokenTypeAccessToken), "invalid_request"},
		"an ID-JAG as access token":    {me, exchangeForm(d.idJAG(nil), api.TokenTypeAccessToken), "invalid_request"},
		"an access token as ID-JAG":    {me, bearerForm(d.accessToken(nil)), "invalid_grant"},
		"an opaque access token":       {me, exchangeForm("s3cret-access-token", api.TokenTypeAccessToken), "invalid_request"},
		"an e-mail address":            {me, exchangeForm("ana@acme.test", api.TokenTypeAccessToken), "invalid_request"},
		"an access token for another":  {me, exchangeForm(d.accessToken(map[string]any{"aud": "other"}), api.TokenTypeAccessToken), "invalid_request"},
		"an access token for login":    {me, exchangeForm(d.accessToken(map[string]any{"aud": "broker"}), api.TokenTypeAccessToken), "invalid_request"},
		"16 KB":                        {me, bearerForm(strings.Repeat("x", 17<<10)), "invalid_grant"},
		"another actor":                {me, exchangeForm(d.accessToken(nil), api.TokenTypeAccessToken, "actor_token", d.JWT(subAgent), "actor_token_type", api.TokenTypeJWT), "invalid_request"},
		"no proof of the agent":        {d.Anonymous(), jag(nil), "invalid_client"},
		"login_hint":                   {me, bearerForm(d.idJAG(nil), "login_hint", "ana@acme.test"), "invalid_request"},
		"more scopes than the proof":   {me, bearerForm(d.idJAG(nil), "audience", "tickets-api", "scope", "tickets:comment"), "invalid_scope"},
		"a resource beyond the proof":  {me, bearerForm(d.idJAG(map[string]any{"resource": "https://other.test"}), "audience", "tickets-api", "scope", "tickets:read"), "invalid_target"},
		"a person without permits":     {me, jag(map[string]any{"sub": "eve"}), "invalid_target"},
		"a person whose access ended":  {me, jag(map[string]any{"ends": "2026-01-01"}), "access_denied"},
		"an end that cannot be read":   {me, jag(map[string]any{"ends": "soon"}), "invalid_grant"},
		"a token of the broker":        {me, exchangeForm(d.p.sign(d.claims(map[string]any{"iss": d.URL, "aud": Audience}), "at+jwt"), api.TokenTypeAccessToken), "invalid_request"},
		"several resources":            {me, bearerForm(d.idJAG(map[string]any{"resource": []string{Audience, "https://other.test"}})), "invalid_grant"},
		"assertion with another grant": {me, exchangeForm(d.accessToken(nil), api.TokenTypeAccessToken, "assertion", "x"), "invalid_request"},
	} {
		status, answer := d.post(test.client, test.form)
		if status == http.StatusOK || answer["error"] != test.error || answer["error_description"] == "" {
			t.Errorf("%s: got %d %v, want %s", name, status, answer, test.error)
		}
	}
	if after := issuedCredentials(d.Records()); after != before {
		t.Errorf("%d credentials were issued", after-before)
	}
	if status, answer := d.post(me, bearerForm(strings.Repeat("x", 100<<10))); status != http.StatusRequestEntityTooLarge {
		t.Errorf("100 KB: got %d %v", status, answer)
	}
	if status, answer := d.post(me, jag(nil)); status != http.StatusOK {
		t.Errorf("a genuine ID-JAG afterwards: got %d %v", status, answer)
	}
}

func issuedCredentials(records []audit.Record) (n int) {
	for _, r := range records {
		if r.Kind == audit.LeaseIssued {
			n++
		}
	}
	return n
}

// Nothing is done on behalf of a person who is blocked, whatever their proof says.
func TestNoOneActsForBlockedPerson(t *testing.T) {
	t.Parallel()
	d := newDelegating(t)
	me := d.Client(Agent)
	status, answer := d.post(me, bearerForm(d.idJAG(nil)))
	if status != http.StatusOK {
		t.Fatalf("before: got %d %v", status, answer)
	}
	token, _ := answer["access_token"].(string)
	d.block("login/ana")
	if in, err := d.Client(Tickets).Introspect(t.Context(), api.Token(token)); err != nil || in.Active {
		t.Errorf("introspection: got %+v, %v", in, err)
	}
	if _, answer := d.post(me, bearerForm(d.idJAG(nil))); answer["error"] != "access_denied" || answer["code"] != string(api.Blocked) {
		t.Errorf("an ask: got %v", answer)
	}
}

// Nothing lasts longer than the access of the person whose rights are used.
func TestDelegationEndsWithPerson(t *testing.T) {
	t.Parallel()
	d := newDelegating(t)
	ends := time.Now().Add(3 * time.Minute).Truncate(time.Second)
	status, answer := d.post(d.Client(Agent), bearerForm(d.idJAG(map[string]any{"ends": ends.Unix()})))
	if status != http.StatusOK {
		t.Fatalf("got %d %v", status, answer)
	}
	claims := d.tokenClaims(answer["access_token"])
	if exp, _ := claims["exp"].(float64); exp == 0 || int64(exp) > ends.Unix() {
		t.Errorf("the token ends at %v, after the person's access at %d", claims["exp"], ends.Unix())
	}
}

// A token that needs an approval is collected with request_id, without the used ID-JAG.
func TestPollForPerson(t *testing.T) {
	t.Parallel()
	d := newDelegating(t)
	me := d.Client(Agent)
	jag := d.idJAG(map[string]any{"scope": "tickets:close"})
	_, answer := d.post(me, bearerForm(jag, "justification", "duplicates"))
	id, _ := answer["request_id"].(string)
	if answer["error"] != "authorization_pending" || id == "" {
		t.Fatalf("got %v", answer)
	}
	for name, form := range map[string]url.Values{
		"with the ID-JAG": bearerForm(jag, "request_id", id), "without it": {"grant_type": {api.GrantJWTBearer}, "request_id": {id}},
		"as client": {"grant_type": {api.GrantClientCredentials}, "request_id": {id}},
	} {
		if _, answer := d.post(me, form); answer["error"] != "authorization_pending" {
			t.Errorf("%s: got %v", name, answer)
		}
	}
	if _, answer := d.post(me, bearerForm(d.idJAG(nil), "request_id", id)); answer["error"] != "invalid_grant" {
		t.Errorf("with another ID-JAG: got %v", answer)
	}
}

// A sub-agent exchanges a broker token of the agent that it works for. Both ends of the chain
// and everyone between are in its token. A token that is bound to its holder is not passed on.
func TestSubAgentExchange(t *testing.T) {
	t.Parallel()
	d := newDelegating(t)
	me, sub := d.Client(Agent), d.Client(subAgent)
	_, answer := d.post(me, bearerForm(d.idJAG(nil)))
	parent, _ := answer["access_token"].(string)
	status, answer := d.post(sub, exchangeForm(parent, api.TokenTypeAccessToken))
	if status == http.StatusOK {
		t.Errorf("policy does not let agents have sub-agents: got %v", answer)
	}
	if status, answer := d.post(me, exchangeForm(parent, api.TokenTypeAccessToken)); status == http.StatusOK {
		t.Errorf("its own token: got %v", answer)
	}
	bound, err := me.Exchange(t.Context(), api.TokenRequest{Audience: "bound-api", Scopes: []string{"bound:read"}})
	if err != nil {
		t.Fatal(err)
	}
	d.Secret(string(bound.AccessToken))
	form := exchangeForm(string(bound.AccessToken), api.TokenTypeAccessToken, "audience", "bound-api", "scope", "bound:read")
	if _, answer := d.post(sub, form); answer["error"] != "invalid_request" || answer["code"] != string(api.InvalidDelegation) {
		t.Errorf("a token that is bound to its holder's certificate: got %v", answer)
	}
}

// checkChain compares the bytes of a token with its chain, and with what its resource server
// and its holder learn about it over HTTP.
func (d *delegating) checkChain(token string, want map[string]any) {
	d.t.Helper()
	payload, err := base64.RawURLEncoding.DecodeString(strings.Split(token, ".")[1])
	d.must(err)
	text, err := json.Marshal(map[string]any{"act": want})
	d.must(err)
	if member := string(text[1 : len(text)-1]); !strings.Contains(string(payload), member) || strings.Count(string(payload), `"sub":`) != 4 {
		d.t.Errorf("got the payload %s, want the chain %s", payload, text)
	}
	for _, who := range []string{Tickets, want["sub"].(string)} {
		resp, err := d.Client(who).HTTP.PostForm(d.URL+"/oauth2/introspect", url.Values{"token": {token}})
		d.must(err)
		status, body := readAll(d.t, resp)
		var in map[string]any
		d.must(json.Unmarshal(body, &in))
		if status != http.StatusOK || in["active"] != true || in["sub"] != "login/ana" || in["client_id"] != want["sub"] || in["scope"] != "tickets:read" || in["aud"] != Audience || !reflect.DeepEqual(in["act"], any(want)) {
			d.t.Errorf("%s introspects: got %d %s", who, status, body)
		}
	}
	// The others of the chain hold tokens of their own, and learn nothing about this one.
	for inner, _ := want["act"].(map[string]any); inner != nil; inner, _ = inner["act"].(map[string]any) {
		if in, err := d.Client(inner["sub"].(string)).Introspect(d.t.Context(), api.Token(token)); err != nil || in.Active {
			d.t.Errorf("%v introspects: got %+v, %v", inner["sub"], in, err)
		}
	}
}

// A chain of agents acts for Ana: each gets less than the one above, and the end of one ends all
// below it.
func TestChainOfAgents(t *testing.T) {
	t.Parallel()
	d := newDelegating(t)
	agent := func(name string) string { return "spiffe://acme.test/chain/" + name }
	exchange := func(name, token string, more ...string) (int, map[string]any) {
		return d.post(d.Client(agent(name)), exchangeForm(token, api.TokenTypeAccessToken, more...))
	}
	tokens := map[string]string{}
	status, answer := d.post(d.Client(agent("a")), bearerForm(d.idJAG(map[string]any{"client_id": "chain-client", "scope": "tickets:read tickets:comment"})))
	for _, name := range []string{"a", "b", "c"} {
		if status != http.StatusOK {
			t.Fatalf("%s: got %d %v", name, status, answer)
		}
		tokens[name], _ = answer["access_token"].(string)
		status, answer = exchange(string(name[0]+1), tokens[name])
	}
	if answer["error"] != "invalid_request" || answer["code"] != string(api.InvalidDelegation) {
		t.Errorf("below the depth that policy permits: got %d %v", status, answer)
	}
	claims := d.tokenClaims(tokens["c"])
	want := map[string]any{"sub": agent("c"), "act": map[string]any{"sub": agent("b"), "act": map[string]any{"sub": agent("a")}}}
	if claims["sub"] != "login/ana" || claims["client_id"] != agent("c") || !reflect.DeepEqual(claims["act"], want) || claims["scope"] != "tickets:read" {
		t.Errorf("got claims %v, want the actors %v", claims, want)
	}
	d.checkChain(tokens["c"], want)
	for name, test := range map[string]struct{ who, token, code string }{
		"a loop":                  {"a", tokens["b"], string(api.InvalidDelegation)},
		"a token of the caller":   {"b", tokens["b"], string(api.InvalidDelegation)},
		"a token of another":      {"d", d.p.sign(d.claims(map[string]any{"iss": d.URL}), "at+jwt"), string(api.ForeignSubject)},
		"a changed token":         {"d", tokens["b"][:len(tokens["b"])-4] + "AAAA", string(api.ForeignSubject)},
		"a token as its own SVID": {"d", tokens["a"] + ".x", string(api.ForeignSubject)},
	} {
		if status, answer := exchange(test.who, test.token); status == http.StatusOK || answer["code"] != test.code {
			t.Errorf("%s: got %d %v", name, status, answer)
		}
	}
	if _, answer := exchange("d", tokens["b"], "scope", "tickets:read tickets:comment"); answer["error"] != "invalid_scope" {
		t.Errorf("more scopes than the parent has: got %v", answer)
	}
	if _, answer := exchange("d", tokens["b"], "audience", "bound-api", "scope", "bound:read"); answer["code"] != string(api.InvalidDelegation) {
		t.Errorf("another entitlement than the parent's: got %v", answer)
	}
	if err := d.Client(agent("a")).RevokeToken(t.Context(), api.Token(tokens["a"])); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"a", "b", "c"} {
		if in, err := d.Client(Tickets).Introspect(t.Context(), api.Token(tokens[name])); err != nil || in.Active {
			t.Errorf("the token of %s after the first was revoked: got %+v, %v", name, in, err)
		}
	}
	if _, answer := exchange("d", tokens["b"]); answer["code"] != string(api.InvalidDelegation) {
		t.Errorf("below a revoked token: got %v", answer)
	}
}

// The metadata lists the grant and its profile (section 7.2 of the draft), only where a
// provider issues such tokens.
func TestDelegationMetadata(t *testing.T) {
	t.Parallel()
	d, plain := newDelegating(t), New(t)
	m, err := d.Anonymous().Discovery(t.Context())
	if err != nil || !slices.Contains(m.GrantTypes, api.GrantJWTBearer) || !slices.Equal(m.GrantProfiles, []string{api.ProfileIDJAG}) {
		t.Errorf("got %+v, %v", m, err)
	}
	if m, err := plain.Anonymous().Discovery(t.Context()); err != nil || slices.Contains(m.GrantTypes, api.GrantJWTBearer) || m.GrantProfiles != nil {
		t.Errorf("without a provider: got %+v, %v", m, err)
	}
}

// block blocks an identity as Ben.
func (d *delegating) block(id string) {
	d.t.Helper()
	d.p.person = "ben"
	_, session := d.browse("/ui/login?provider=login")
	d.must(d.as(session).Block(d.t.Context(), api.BlockChange{Selector: api.Selector{Holder: id}, Reason: "incident", Unmatched: true}))
}
