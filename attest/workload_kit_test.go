package attest

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/coreos/go-oidc/v3/oidc/oidctest"

	"accessbroker.internal/attest/mapping"
	"accessbroker.internal/broker"
)

// A claimChange replaces a part of a token's claims that occurs once.
type claimChange struct {
	name, old, new string
	cause          Cause
}

// A cloudToken is a token as a platform documents it, the operator's rule for it, and
// changes that the rule or the issuer must refuse.
type cloudToken struct {
	path, audience, alg string // path is that of the issuer's URL
	longest             time.Duration
	claims              string // ISSUER, IAT and EXP stand for the values of the test
	conditions          map[string]mapping.Want
	spiffeID, want      string
	refused             []claimChange
}

func exactly(values ...mapping.Value) mapping.Want { return mapping.Want{Values: values} }

// The claims have the shapes of the platforms' documentation: AWS IAM outbound identity
// federation, projected tokens of EKS, identity tokens of Google's metadata server in full
// format, and tokens of Azure managed identities in version 1.0.
var cloudTokens = map[string]cloudToken{
	"AWS": {
		audience: audienceURL, alg: "ES384", longest: time.Hour,
		claims: `{"iss":"ISSUER","aud":"https://broker.acme.test","sub":"arn:aws:iam::123456789012:role/Payments","iat":IAT,"exp":EXP,"jti":"example-1","https://sts.amazonaws.com/":{"aws_account":"123456789012",` +
			`"source_region":"us-east-1","org_id":"o-abc1234567","ou_path":"o-abc1234567/r-ab12/ou-ab12-11111111/","principal_tags":{"environment":"production"},"request_tags":{"team":"payments"}}}`,
		conditions: map[string]mapping.Want{
			"sub": exactly(mapping.Text("arn:aws:iam::123456789012:role/Payments")),
			"https://sts.amazonaws.com/": {Members: map[string]mapping.Want{
				"aws_account": exactly(mapping.Text("123456789012")), "org_id": exactly(mapping.Text("o-abc1234567")),
				"principal_tags": {Members: map[string]mapping.Want{"environment": exactly(mapping.Text("production"))}},
			}},
		},
		spiffeID: "spiffe://aws.acme.test/${/https:~1~1sts.amazonaws.com~1/aws_account}/payments", want: "spiffe://aws.acme.test/123456789012/payments",
		refused: []claimChange{
			{"another account", `"aws_account":"123456789012"`, `"aws_account":"210987654321"`, CauseRule},
			{"a number as account", `"aws_account":"123456789012"`, `"aws_account":123456789012`, CauseRule},
			{"another role", `:role/Payments"`, `:role/Payments2"`, CauseRule},
			{"another organization", `"org_id":"o-abc1234567"`, `"org_id":"o-evil"`, CauseRule},
			{"the tag of the caller", `"principal_tags":{"environment":"production"},"request_tags":{`, `"principal_tags":{},"request_tags":{"environment":"production",`, CauseRule},
			{"claims at the top", `"https://sts.amazonaws.com/":{`, `"aws_account":"123456789012","org_id":"o-abc1234567","https://sts.amazonaws.com":{`, CauseRule},
		},
	},
	"EKS": {
		path: "/id/0123456789ABCDEF", audience: audienceURL, alg: "RS256", longest: time.Hour,
		claims: `{"iss":"ISSUER","aud":["https://broker.acme.test"],"sub":"system:serviceaccount:payments:api","iat":IAT,"nbf":IAT,"exp":EXP,"jti":"example-2","kubernetes.io":{"namespace":"payments",` +
			`"node":{"name":"ip-10-0-0-1","uid":"5c0e"},"pod":{"name":"api-0","uid":"7a1f"},"serviceaccount":{"name":"api","uid":"9b2d"}}}`,
		conditions: map[string]mapping.Want{"kubernetes.io": {Members: map[string]mapping.Want{
			"namespace": exactly(mapping.Text("payments")), "serviceaccount": {Members: map[string]mapping.Want{"name": exactly(mapping.Text("api"))}},
		}}},
		spiffeID: "spiffe://eks.acme.test/ns/${/kubernetes.io/namespace}/sa/${/kubernetes.io/serviceaccount/name}", want: "spiffe://eks.acme.test/ns/payments/sa/api",
		refused: []claimChange{
			{"another namespace", `"namespace":"payments"`, `"namespace":"mallory"`, CauseRule},
			{"another service account", `{"name":"api","uid":"9b2d"}`, `{"name":"default","uid":"9b2d"}`, CauseRule},
			{"a text as service account", `{"name":"api","uid":"9b2d"}`, `"api"`, CauseRule},
			{"a list of namespaces", `"namespace":"payments"`, `"namespace":["payments"]`, CauseRule},
			{"the audience of AWS, too", `["https://broker.acme.test"]`, `["https://broker.acme.test","sts.amazonaws.com"]`, CauseAudience},
		},
	},
	"Google Cloud": {
		audience: audienceURL, alg: "RS256", longest: time.Hour,
		claims: `{"iss":"ISSUER","aud":"https://broker.acme.test","azp":"113520000000000000001","sub":"113520000000000000001","email":"api@shop.iam.gserviceaccount.com","email_verified":true,"iat":IAT,"exp":EXP,` +
			`"google":{"compute_engine":{"project_id":"shop","project_number":739419398126,"zone":"us-west1-b","instance_id":"152986662232938449","instance_name":"api-1","instance_creation_timestamp":1700000000}}}`,
		conditions: map[string]mapping.Want{
			"sub": exactly(mapping.Text("113520000000000000001")), "email_verified": exactly(mapping.Truth(true)),
			"google": {Members: map[string]mapping.Want{"compute_engine": {Members: map[string]mapping.Want{
				"project_id": exactly(mapping.Text("shop")), "project_number": exactly(mapping.Whole(739419398126)),
			}}}},
		},
		spiffeID: "spiffe://gcp.acme.test/${/google/compute_engine/project_id}/${/google/compute_engine/instance_id}", want: "spiffe://gcp.acme.test/shop/152986662232938449",
		refused: []claimChange{
			{"another project", `"project_id":"shop"`, `"project_id":"mall"`, CauseRule},
			{"a text as project number", `739419398126`, `"739419398126"`, CauseRule},
			{"a number as instance", `"152986662232938449"`, `152986662232938449`, CauseRule},
			{"a path as instance", `"152986662232938449"`, `"../mall/1"`, CauseRule},
			{"another service account", `"sub":"113520000000000000001"`, `"sub":"113520000000000000002"`, CauseRule},
			{"an unverified address", `"email_verified":true`, `"email_verified":"true"`, CauseRule},
			{"the standard format, without the machine", `"google":`, `"other":`, CauseRule},
		},
	},
	"Azure": {
		path: "/72f988bf-0000-4000-8000-000000000001/", audience: "api://access-broker", alg: "RS256", longest: 25 * time.Hour,
		claims: `{"iss":"ISSUER","aud":"api://access-broker","tid":"72f988bf-0000-4000-8000-000000000001","oid":"0b1c0000-0000-4000-8000-000000000002","sub":"0b1c0000-0000-4000-8000-000000000002",` +
			`"appid":"a1d20000-0000-4000-8000-000000000003","appidacr":"2","idtyp":"app","ver":"1.0","uti":"example-4","iat":IAT,"nbf":IAT,"exp":EXP,` +
			`"xms_mirid":"/subscriptions/5e6f/resourcegroups/payments/providers/Microsoft.ManagedIdentity/userAssignedIdentities/api"}`,
		conditions: map[string]mapping.Want{
			"tid": exactly(mapping.Text("72f988bf-0000-4000-8000-000000000001")), "appid": exactly(mapping.Text("a1d20000-0000-4000-8000-000000000003")), "idtyp": exactly(mapping.Text("app")),
			"xms_mirid": exactly(mapping.Text("/subscriptions/5e6f/resourcegroups/payments/providers/Microsoft.ManagedIdentity/userAssignedIdentities/api")),
		},
		spiffeID: "spiffe://azure.acme.test/${tid}/${oid}", want: "spiffe://azure.acme.test/72f988bf-0000-4000-8000-000000000001/0b1c0000-0000-4000-8000-000000000002",
		refused: []claimChange{
			{"another tenant", `"tid":"72f988bf-`, `"tid":"99999999-`, CauseRule},
			{"another application", `"appid":"a1d2`, `"appid":"ffff`, CauseRule},
			{"the application as azp", `"appid":`, `"azp":`, CauseRule},
			{"another resource group", `/resourcegroups/payments/`, `/resourcegroups/mallory/`, CauseRule},
			{"a resource in another case", `/resourcegroups/`, `/resourceGroups/`, CauseRule},
			{"a list of object IDs", `"oid":"0b1c0000-0000-4000-8000-000000000002"`, `"oid":["0b1c0000-0000-4000-8000-000000000002"]`, CauseRule},
			{"a person", `"idtyp":"app"`, `"idtyp":"user"`, CauseRule},
		},
	},
}

// A cloudIssuer is a server that publishes the keys of a platform.
type cloudIssuer struct {
	cloudToken
	url          string
	roots        *x509.CertPool
	current, old crypto.Signer // the issuer withdraws old
	served       atomic.Pointer[oidctest.Server]
}

func newCloudIssuer(t *testing.T, c cloudToken) *cloudIssuer {
	t.Helper()
	i := &cloudIssuer{cloudToken: c, current: newCloudKey(t, c.alg), old: newCloudKey(t, c.alg), roots: x509.NewCertPool()}
	web := httptest.NewTLSServer(http.StripPrefix(strings.TrimSuffix(c.path, "/"), http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { i.served.Load().ServeHTTP(w, r) })))
	t.Cleanup(web.Close)
	i.url = web.URL + c.path
	i.roots.AddCert(web.Certificate())
	i.publish(oidctest.PublicKey{PublicKey: i.current.Public(), KeyID: "current", Algorithm: c.alg}, oidctest.PublicKey{PublicKey: i.old.Public(), KeyID: "old", Algorithm: c.alg})
	return i
}

func newCloudKey(t *testing.T, alg string) (key crypto.Signer) {
	t.Helper()
	var err error
	if alg == "ES384" {
		key, err = ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	} else {
		key, err = rsa.GenerateKey(rand.Reader, 2048)
	}
	check(t, err)
	return key
}

func (i *cloudIssuer) publish(keys ...oidctest.PublicKey) {
	s := &oidctest.Server{PublicKeys: keys, Algorithms: []string{i.alg}}
	s.SetIssuer(i.url)
	i.served.Store(s)
}

func (i *cloudIssuer) config(t *testing.T, name string) WorkloadIssuerConfig {
	t.Helper()
	rule, err := mapping.Compile(mapping.Rule{Claims: i.conditions, SPIFFEID: i.spiffeID})
	check(t, err)
	return WorkloadIssuerConfig{Name: name, Issuer: i.url, Audience: i.audience, Algorithms: []string{i.alg}, MaxLifetime: i.longest, Roots: i.roots, Rules: []*mapping.Compiled{rule}}
}

// claimsAt returns the claims of a token that is valid for the longest time.
func (i *cloudIssuer) claimsAt(now time.Time) string {
	issued := now.Add(-time.Minute)
	return strings.NewReplacer("ISSUER", i.url, "IAT", fmt.Sprint(issued.Unix()), "EXP", fmt.Sprint(issued.Add(i.longest).Unix())).Replace(i.claims)
}

// changes returns the changes that the broker must refuse, those of all platforms first.
func (i *cloudIssuer) changes(now time.Time) []claimChange {
	otherSlash := i.url + "/"
	if strings.HasSuffix(i.url, "/") {
		otherSlash = strings.TrimSuffix(i.url, "/")
	}
	exp := func(at time.Time) string { return fmt.Sprintf(`"exp":%d`, at.Unix()) }
	usual := now.Add(i.longest - time.Minute)
	return append([]claimChange{
		{"another audience", i.audience, "https://other.acme.test", CauseAudience},
		{"an audience with a slash", i.audience, i.audience + "/", CauseAudience},
		{"another slash at the end of the issuer", `"iss":"` + i.url + `"`, `"iss":"` + otherSlash + `"`, CauseIssuer},
		{"a list as issuer", `"iss":"` + i.url + `"`, `"iss":["` + i.url + `"]`, CauseIssuer},
		{"another issuer", `"iss":"` + i.url + `"`, `"iss":"https://accounts.evil.test"`, CauseIssuer},
		{"a list as subject", `"sub":"`, `"sub":["x"],"was":"`, CauseMalformed},
		{"expired", exp(usual), exp(now), CauseExpired},
		{"valid for too long", exp(usual), exp(usual.Add(Leeway + time.Second)), CauseLifetime},
	}, i.refused...)
}

// A cloudWorld is a broker that accepts the tokens of all platforms.
type cloudWorld struct {
	clouds   map[string]*cloudIssuer
	issuers  *WorkloadIssuers
	verifier *Verifier
	now      time.Time
}

func newCloudWorld(t *testing.T) *cloudWorld {
	t.Helper()
	w := &cloudWorld{clouds: map[string]*cloudIssuer{}, now: time.Now().Truncate(time.Second)}
	var configs []WorkloadIssuerConfig
	for name, c := range cloudTokens {
		w.clouds[name] = newCloudIssuer(t, c)
		configs = append(configs, w.clouds[name].config(t, name))
	}
	var err error
	w.issuers, err = NewWorkloadIssuers(configs...)
	check(t, err)
	w.awaitKeys(t, 2)
	w.verifier = NewVerifier(VerifierConfig{Source: newWorld(t).source, Audiences: []string{audienceURL}, Workloads: w.issuers})
	return w
}

// awaitKeys fetches the keys until each issuer has count of them. A fetch right after
// another has no effect.
func (w *cloudWorld) awaitKeys(t *testing.T, count int) {
	t.Helper()
	others := func(s KeySource) bool { return s.Keys["sig"] != count }
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		check(t, w.issuers.Refresh(t.Context()))
		list := w.issuers.KeySources(time.Now())
		if len(list) == len(w.clouds) && !slices.ContainsFunc(list, others) {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("got %+v, want %d keys of each issuer", list, count)
		}
	}
}

func (w *cloudWorld) identify(t *testing.T, token string) (broker.Identity, error) {
	return w.verifier.token(t.Context(), token, w.now)
}

func (w *cloudWorld) wantRefused(t *testing.T, name, token string, want Cause) {
	t.Helper()
	who, err := w.identify(t, token)
	if got := causeOf(t, err); got != want || who.ID != "" {
		t.Errorf("%s: got %q (%v) for %q, want %q", name, got, err, who.ID, want)
	}
}

// Tokens with the claims that clouds document reach the SPIFFE ID of the operator's rule.
// The issuers are test servers of go-oidc, with discovery documents, key sets and signatures
// that are not the broker's.
func TestTokensOfClouds(t *testing.T) {
	t.Parallel()
	w := newCloudWorld(t)
	refused := 0
	for name, i := range w.clouds {
		claims := i.claimsAt(w.now)
		for kid, key := range map[string]crypto.Signer{"current": i.current, "old": i.old} {
			if who, err := w.identify(t, oidctest.SignIDToken(key, kid, i.alg, claims)); err != nil || who.ID != i.want || who.Attested != broker.AttestedOIDC {
				t.Errorf("%s: key %s: got %q, %v, want %s", name, kid, who.ID, err, i.want)
			}
		}
		for _, c := range i.changes(w.now) {
			if strings.Count(claims, c.old) != 1 {
				t.Fatalf("%s: %s: %s is not in the claims once: %s", name, c.name, c.old, claims)
			}
			w.wantRefused(t, name+": "+c.name, oidctest.SignIDToken(i.current, "current", i.alg, strings.Replace(claims, c.old, c.new, 1)), c.cause)
			refused++
		}
	}
	if want := 4*8 + 6 + 5 + 7 + 7; refused != want || len(w.clouds) != 4 {
		t.Errorf("got %d refused tokens of %d clouds, want %d of 4", refused, len(w.clouds), want)
	}
}

// A cloud withdraws a key, and no cloud's key is good for another.
func TestTokensOfCloudsWithOtherKeys(t *testing.T) {
	t.Parallel()
	w := newCloudWorld(t)
	remembered := map[string]string{}
	for name, i := range w.clouds {
		remembered[name] = oidctest.SignIDToken(i.old, "old", i.alg, i.claimsAt(w.now))
		if who, err := w.identify(t, remembered[name]); err != nil || who.ID != i.want {
			t.Fatalf("%s: got %q, %v", name, who.ID, err)
		}
		i.publish(oidctest.PublicKey{PublicKey: i.current.Public(), KeyID: "current", Algorithm: i.alg})
	}
	w.awaitKeys(t, 1)
	foreign := 0
	for name, i := range w.clouds {
		claims := i.claimsAt(w.now)
		w.wantRefused(t, name+": a remembered token of a withdrawn key", remembered[name], CauseSignature)
		w.wantRefused(t, name+": a withdrawn key", oidctest.SignIDToken(i.old, "old", i.alg, claims+" "), CauseSignature)
		w.wantRefused(t, name+": a withdrawn key with the ID of the current one", oidctest.SignIDToken(i.old, "current", i.alg, claims), CauseSignature)
		for other, o := range w.clouds {
			if other != name && o.alg == i.alg {
				w.wantRefused(t, name+": the key of "+other, oidctest.SignIDToken(o.current, "current", o.alg, claims), CauseSignature)
				foreign++
			}
		}
		if _, err := w.identify(t, oidctest.SignIDToken(i.current, "current", i.alg, claims)); err != nil {
			t.Errorf("%s: the current key: %v", name, err)
		}
	}
	if foreign != 6 {
		t.Errorf("got %d tokens with the key of another cloud, want 6", foreign)
	}
}
