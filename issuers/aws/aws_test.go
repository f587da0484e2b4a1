package aws

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/json"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/go-jose/go-jose/v4"

	"accessbroker.internal/broker"
	"accessbroker.internal/issuers/issuertest"
	"accessbroker.internal/issuers/token"
	"accessbroker.internal/store"
)

const (
	testAccessKey = "ASIATESTTESTTESTTEST"
	testSecretKey = "secret/of+the/session+that+nobody+may+see"
	testSession   = "session-token-that-nobody-may-see-either"
)

// A fakeSTS answers STS's query protocol as AWS documents it. Its clock is its
// own.
type fakeSTS struct {
	t     *testing.T
	url   string
	jwks  func() []byte
	clock func() time.Time
	// answer is called instead of making a session, if it is set.
	answer http.HandlerFunc
	last   time.Duration // how long a session lives, instead of DurationSeconds

	mu    sync.Mutex
	calls []stsCall
}

type stsCall struct {
	form   url.Values
	header http.Header
}

func newFakeSTS(t *testing.T) *fakeSTS {
	f := &fakeSTS{t: t, clock: func() time.Time { return issuertest.Noon }}
	s := httptest.NewServer(f)
	t.Cleanup(s.Close)
	f.url = s.URL
	return f
}

func (f *fakeSTS) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if err := r.ParseForm(); err != nil || r.Method != http.MethodPost || r.URL.Path != "/" {
		f.t.Errorf("%s %s: %v", r.Method, r.URL, err)
	}
	f.mu.Lock()
	f.calls = append(f.calls, stsCall{r.PostForm, r.Header})
	f.mu.Unlock()
	if f.answer != nil {
		f.answer(w, r)
		return
	}
	if code := f.refuses(r.PostForm); code != "" {
		stsError(400, code, "no")(w, r)
		return
	}
	f.session(w, r.PostForm)
}

// refuses looks at an assertion as AWS does.
func (f *fakeSTS) refuses(form url.Values) string {
	token := form.Get("WebIdentityToken")
	if token == "" {
		return ""
	}
	var set jose.JSONWebKeySet
	if err := json.Unmarshal(f.jwks(), &set); err != nil {
		f.t.Fatal(err)
	}
	signed, err := jose.ParseSignedCompact(token, []jose.SignatureAlgorithm{jose.ES256, jose.RS256})
	if err != nil {
		return "InvalidIdentityToken"
	}
	var claims struct {
		Issued  int64 `json:"iat"`
		Expires int64 `json:"exp"`
	}
	keys := set.Key(signed.Signatures[0].Header.KeyID)
	if len(keys) != 1 {
		return "InvalidIdentityToken"
	}
	payload, err := signed.Verify(keys[0])
	if err != nil || json.Unmarshal(payload, &claims) != nil || claims.Issued > f.clock().Unix() {
		return "InvalidIdentityToken"
	}
	if claims.Expires <= f.clock().Unix() {
		return "ExpiredTokenException"
	}
	return ""
}

func (f *fakeSTS) session(w http.ResponseWriter, form url.Values) {
	seconds, err := time.ParseDuration(form.Get("DurationSeconds") + "s")
	if err != nil || seconds < 900*time.Second || seconds > 12*time.Hour {
		f.t.Errorf("DurationSeconds is %q", form.Get("DurationSeconds"))
	}
	action := form.Get("Action")
	fmt.Fprintf(w, `<%[1]sResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/"><%[1]sResult>
		<AssumedRoleUser><Arn>arn:aws:sts::123456789012:assumed-role/reports/x</Arn><AssumedRoleId>AROA:x</AssumedRoleId></AssumedRoleUser>
		<Credentials><AccessKeyId>%[2]s</AccessKeyId><SecretAccessKey>%[3]s</SecretAccessKey><SessionToken>%[4]s</SessionToken><Expiration>%[5]s</Expiration></Credentials>
		<PackedPolicySize>6</PackedPolicySize></%[1]sResult><ResponseMetadata><RequestId>c6104cbe-af31-11e0-8154-cbc7ccf896c7</RequestId></ResponseMetadata></%[1]sResponse>`,
		action, testAccessKey, testSecretKey, testSession, f.clock().Add(cmp.Or(f.last, seconds)).UTC().Format(time.RFC3339))
}

func (f *fakeSTS) count() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.calls)
}

func (f *fakeSTS) only() stsCall {
	f.t.Helper()
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.calls) != 1 {
		f.t.Fatalf("STS was called %d times, not once", len(f.calls))
	}
	return f.calls[0]
}

func stsError(status int, code, message string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(status)
		_, _ = io.WriteString(w, `<ErrorResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/"><Error><Type>Sender</Type><Code>`)
		_ = xml.EscapeText(w, []byte(code))
		_, _ = io.WriteString(w, `</Code><Message>`)
		_ = xml.EscapeText(w, []byte(message))
		_, _ = io.WriteString(w, `</Message></Error><RequestId>c6104cbe-af31-11e0-8154-cbc7ccf896c7</RequestId></ErrorResponse>`)
	}
}

const testIssuer = "https://broker.acme.test"

func openKeys(t *testing.T, s *store.Store, algorithm string) *token.Keys {
	t.Helper()
	keys, err := token.OpenKeys(t.Context(), token.KeysConfig{
		Store: s, Sealer: issuertest.Sealer(t, 1), Purpose: "token", Algorithm: algorithm,
		RotateEvery: 24 * time.Hour, PublishAhead: time.Hour, LongestTTL: time.Hour,
	}, issuertest.Noon)
	if err != nil {
		t.Fatal(err)
	}
	return keys
}

// byAssertion makes an issuer that signs assertions for the fake.
func (f *fakeSTS) byAssertion(t *testing.T) *Issuer {
	t.Helper()
	keys := openKeys(t, issuertest.Store(t), "ES256")
	f.jwks = func() []byte { return keys.JWKS(issuertest.Noon) }
	return newTestAWS(t, Config{
		Region: "eu-west-1", Endpoint: f.url, Now: func() time.Time { return issuertest.Noon },
		WebIdentity: &WebIdentity{Issuer: testIssuer, Keys: keys},
	})
}

// byCredentials makes an issuer with credentials of its own.
func (f *fakeSTS) byCredentials(t *testing.T) *Issuer {
	t.Helper()
	file := filepath.Join(t.TempDir(), "credentials")
	writeCredentials(t, file, "AKIATEST")
	return newTestAWS(t, Config{
		Region: "eu-west-1", Endpoint: f.url, Now: func() time.Time { return issuertest.Noon },
		AssumeRole: &AssumeRole{CredentialsFile: file, Profile: "broker"},
	})
}

func writeCredentials(t *testing.T, file, id string) {
	t.Helper()
	text := "[default]\naws_access_key_id = AKIAOTHER\naws_secret_access_key = other\n[broker]\naws_access_key_id = " + id + "\naws_secret_access_key = own-secret\n"
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func newTestAWS(t *testing.T, c Config) *Issuer {
	t.Helper()
	a, err := New(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// awsOrder is an order of "read" for an hour.
func awsOrder(t testing.TB, a *Issuer) broker.Order {
	t.Helper()
	r, e := reportsRole()
	e.Spec = compileAWS(t, a.cfg, r, e)
	l := issuertest.Lease(issuertest.Noon)
	l.Entitlement, l.Issuer, l.Scopes, l.Expires = "reports", "aws", []string{"read"}, issuertest.Noon.Add(time.Hour)
	l.Parameters, l.Revocation = map[string]string{"prefix": "acme"}, broker.RevokedAtExpiry
	return broker.Order{Lease: l, Entitlement: e}
}

const readPolicy = `{"Statement":[{"Action":["s3:GetObject"],"Effect":"Allow","Resource":["arn:aws:s3:::reports/acme/*"]}],"Version":"2012-10-17"}`

// checkSeconds checks a call's DurationSeconds: what is left of the lease, less what
// the call may take. It takes it out of the form.
func checkSeconds(t *testing.T, form url.Values, left time.Duration) {
	t.Helper()
	got, err := time.ParseDuration(form.Get("DurationSeconds") + "s")
	if err != nil || got > left-9*time.Second || got < left-awsCallTime {
		t.Errorf("DurationSeconds is %q, with %s left", form.Get("DurationSeconds"), left)
	}
	form.Del("DurationSeconds")
}

func checkForm(t *testing.T, got url.Values, want map[string]string) {
	t.Helper()
	for key := range got {
		if _, ok := want[key]; !ok {
			t.Errorf("the call has %s, %q", key, got[key])
		}
	}
	for key, value := range want {
		if got.Get(key) != value || len(got[key]) != 1 {
			t.Errorf("%s is %q, want %q", key, got[key], value)
		}
	}
}

func TestAWSConforms(t *testing.T) {
	f := newFakeSTS(t)
	for _, a := range []*Issuer{f.byAssertion(t), f.byCredentials(t)} {
		o := awsOrder(t, a)
		issuertest.Conform(t, a, o.Lease, o.Entitlement)
	}
}

func TestAssumeRoleByAssertion(t *testing.T) {
	f := newFakeSTS(t)
	a := f.byAssertion(t)
	o := awsOrder(t, a)
	c, handle, err := a.Issue(t.Context(), o)
	if err != nil || handle != nil {
		t.Fatalf("%q, %v", handle, err)
	}
	call := f.only()
	token := call.form.Get("WebIdentityToken")
	checkSeconds(t, call.form, time.Hour)
	checkForm(t, call.form, map[string]string{
		"Action": "AssumeRoleWithWebIdentity", "Version": "2011-06-15", "RoleArn": testRole,
		"RoleSessionName": o.Lease.ID.String(), "WebIdentityToken": token, "Policy": readPolicy,
	})
	if call.header.Get("Authorization") != "" {
		t.Error("the call is signed: it has an assertion")
	}
	if want := map[string]string{"access_key_id": testAccessKey, "secret_access_key": testSecretKey, "session_token": testSession}; fmt.Sprint(c.Secret.Reveal()) != fmt.Sprint(want) {
		t.Errorf("the secret is %v", c.Secret.Reveal())
	}
	if c.Type != "aws" || c.Revocation != broker.RevokedAtExpiry || c.Expires.After(o.Lease.Expires) || c.Expires.Before(o.Lease.Expires.Add(-awsCallTime)) {
		t.Errorf("the credential is %+v", c)
	}
	again, _, err := a.Issue(t.Context(), o)
	if err != nil || again.Hash == c.Hash {
		t.Errorf("the same secret has the same hash: it is not salted (%v)", err)
	}
}

func TestAssertion(t *testing.T) {
	f := newFakeSTS(t)
	a := f.byAssertion(t)
	o := awsOrder(t, a)
	for name, c := range map[string]struct {
		audience, holder, tag string /* empty: the hash */
	}{
		"as it is":        {"", "spiffe://acme.test/agent/triage", "spiffe://acme.test/agent/triage"},
		"own audience":    {"https://aws.acme.test", "spiffe://acme.test/a", "spiffe://acme.test/a"},
		"256 characters":  {"", "spiffe://acme.test/" + strings.Repeat("a", 237), "spiffe://acme.test/" + strings.Repeat("a", 237)},
		"257 characters":  {"", "spiffe://acme.test/" + strings.Repeat("a", 238), ""},
		"not AWS's signs": {"", "login/auth0|1", ""},
	} {
		t.Run(name, func(t *testing.T) {
			f.calls, o.Lease.Holder, a.cfg.WebIdentity.Audience = nil, c.holder, c.audience
			if c.tag == "" {
				c.tag = fmt.Sprintf("%x", sha256.Sum256([]byte(c.holder)))
			}
			if _, _, err := a.Issue(t.Context(), o); err != nil {
				t.Fatal(err)
			}
			claims := assertionClaims(t, f.jwks(), f.only().form.Get("WebIdentityToken"))
			want := map[string]any{
				"iss": testIssuer, "aud": cmp.Or(c.audience, "sts.amazonaws.com"), "sub": "entitlement:reports", "jti": o.Lease.ID.String(),
				"iat": float64(issuertest.Noon.Add(-2 * time.Minute).Unix()), "exp": float64(issuertest.Noon.Add(5 * time.Minute).Unix()),
				"https://aws.amazon.com/tags": map[string]any{"principal_tags": map[string]any{
					"holder": []any{c.tag}, "entitlement": []any{"reports"}, "request": []any{o.Lease.Request.String()},
				}},
				"https://aws.amazon.com/source_identity": o.Lease.Request.String(),
			}
			if fmt.Sprint(claims) != fmt.Sprint(want) {
				t.Errorf("claims are\n%v, want\n%v", claims, want)
			}
		})
	}
}

// assertionClaims verifies an assertion as any OpenID Connect client would.
func assertionClaims(t *testing.T, jwks []byte, token string) (claims map[string]any) {
	t.Helper()
	var set jose.JSONWebKeySet
	if err := json.Unmarshal(jwks, &set); err != nil {
		t.Fatal(err)
	}
	signed, err := jose.ParseSignedCompact(token, []jose.SignatureAlgorithm{jose.ES256, jose.RS256})
	if err != nil {
		t.Fatal(err)
	}
	if typ := signed.Signatures[0].Header.ExtraHeaders["typ"]; typ != "JWT" {
		t.Errorf("typ is %v", typ)
	}
	payload, err := signed.Verify(set.Key(signed.Signatures[0].Header.KeyID)[0])
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(payload, &claims); err != nil {
		t.Fatal(err)
	}
	return claims
}

// TestAssertionIsNoAccessToken: what STS gets is worth nothing at an API.
func TestAssertionIsNoAccessToken(t *testing.T) {
	f := newFakeSTS(t)
	a := f.byAssertion(t)
	if _, _, err := a.Issue(t.Context(), awsOrder(t, a)); err != nil {
		t.Fatal(err)
	}
	tokens := token.New(testIssuer, DefaultAudience, a.cfg.WebIdentity.Keys)
	if id, err := tokens.Inspect(t.Context(), f.only().form.Get("WebIdentityToken")); !errors.Is(err, broker.ErrNotFound) {
		t.Errorf("an assertion is taken for the token of %s: %v", id, err)
	}
}

func TestAssumeRoleByCredentials(t *testing.T) {
	f := newFakeSTS(t)
	a := f.byCredentials(t)
	o := awsOrder(t, a)
	r, e := reportsRole()
	r.ExternalID, r.ManagedPolicies = "acme:1", []string{"arn:aws:iam::aws:policy/ReadOnlyAccess", "arn:aws:iam::123456789012:policy/a"}
	o.Entitlement.Spec = compileAWS(t, a.cfg, r, e)
	if _, _, err := a.Issue(t.Context(), o); err != nil {
		t.Fatal(err)
	}
	call := f.only()
	checkSeconds(t, call.form, time.Hour)
	checkForm(t, call.form, map[string]string{
		"Action": "AssumeRole", "Version": "2011-06-15", "RoleArn": testRole, "RoleSessionName": o.Lease.ID.String(),
		"SourceIdentity": o.Lease.Request.String(), "ExternalId": "acme:1", "Policy": readPolicy,
		"PolicyArns.member.1.arn": "arn:aws:iam::123456789012:policy/a", "PolicyArns.member.2.arn": "arn:aws:iam::aws:policy/ReadOnlyAccess",
		"Tags.member.1.Key": "entitlement", "Tags.member.1.Value": "reports", "Tags.member.2.Key": "holder", "Tags.member.2.Value": o.Lease.Holder,
		"Tags.member.3.Key": "request", "Tags.member.3.Value": o.Lease.Request.String(),
	})
	if sig := call.header.Get("Authorization"); !strings.Contains(sig, "Credential=AKIATEST/") || !strings.Contains(sig, "/eu-west-1/sts/aws4_request") {
		t.Errorf("signed as %q", sig)
	}
	// A file that was replaced is read anew.
	writeCredentials(t, a.cfg.AssumeRole.CredentialsFile, "AKIANEXT")
	if _, _, err := a.Issue(t.Context(), o); err != nil || !strings.Contains(f.calls[1].header.Get("Authorization"), "Credential=AKIANEXT/") {
		t.Errorf("after the file was replaced: %v", err)
	}
	if err := os.Remove(a.cfg.AssumeRole.CredentialsFile); err != nil {
		t.Fatal(err)
	}
	if _, handle, err := a.Issue(t.Context(), o); !errors.Is(err, broker.ErrIssuerUnavailable) || string(handle) != awsNothing || f.count() != 2 {
		t.Errorf("without the file: %q, %v", handle, err)
	}
}

// TestNewSecretOfAnOldKey: MinIO's users keep their name when they get another
// password.
func TestNewSecretOfAnOldKey(t *testing.T) {
	signer := newFakeSTS(t).byCredentials(t).sts.Options().HTTPSignerV4
	sign := func(secret string) string {
		r := httptest.NewRequest(http.MethodPost, "https://sts.test/", nil)
		err := signer.SignHTTP(t.Context(), aws.Credentials{AccessKeyID: "AKIATEST", SecretAccessKey: secret}, r, "", "sts", "eu-west-1", issuertest.Noon)
		if err != nil {
			t.Fatal(err)
		}
		return r.Header.Get("Authorization")
	}
	if one := sign("one"); one == sign("other") || one != sign("one") {
		t.Error("the secret does not count")
	}
}

func TestAmbientCredentials(t *testing.T) {
	for key, value := range map[string]string{
		"AWS_ACCESS_KEY_ID": "AKIAENV", "AWS_SECRET_ACCESS_KEY": "env-secret", "AWS_CONFIG_FILE": os.DevNull, "AWS_SHARED_CREDENTIALS_FILE": os.DevNull,
		"AWS_REGION": "us-west-2", "AWS_ENDPOINT_URL": "http://127.0.0.1:1", "AWS_ENDPOINT_URL_STS": "http://127.0.0.1:1", "AWS_MAX_ATTEMPTS": "9",
	} {
		t.Setenv(key, value)
	}
	f := newFakeSTS(t)
	a := newTestAWS(t, Config{Region: "eu-west-1", Endpoint: f.url, AssumeRole: &AssumeRole{}, Now: func() time.Time { return issuertest.Noon }})
	if _, _, err := a.Issue(t.Context(), awsOrder(t, a)); err != nil {
		t.Fatal(err)
	}
	if sig := f.only().header.Get("Authorization"); !strings.Contains(sig, "Credential=AKIAENV/") || !strings.Contains(sig, "/eu-west-1/sts/") {
		t.Errorf("signed as %q: of the environment, only the credentials count", sig)
	}
	// Nothing of it counts where assertions are signed.
	f.calls = nil
	a = f.byAssertion(t)
	if _, _, err := a.Issue(t.Context(), awsOrder(t, a)); err != nil || f.only().header.Get("Authorization") != "" {
		t.Errorf("by assertion: %v", err)
	}
}

func TestFullRole(t *testing.T) {
	f := newFakeSTS(t)
	a := f.byAssertion(t)
	o := awsOrder(t, a)
	o.Entitlement.Spec = compileAWS(t, a.cfg, Role{RoleARN: testRole, FullRole: true}, o.Entitlement)
	o.Lease.Scopes = nil
	if _, _, err := a.Issue(t.Context(), o); err != nil {
		t.Fatal(err)
	}
	// A session policy is always sent; this one takes nothing away.
	everything := `{"Statement":[{"Action":["*"],"Effect":"Allow","Resource":["*"]}],"Version":"2012-10-17"}`
	if form := f.only().form; form.Get("Policy") != everything || form.Has("PolicyArns.member.1.arn") {
		t.Errorf("the full role has the session policy %q", form.Get("Policy"))
	}
	if text := a.Describe(o.Entitlement, nil, nil); !strings.HasSuffix(text, "with all that the role may") {
		t.Errorf("approvers are shown %q", text)
	}
}

func TestAWSSeconds(t *testing.T) {
	for _, c := range []struct {
		left, slack time.Duration
		want        int32
	}{
		{time.Hour, 10 * time.Second, 3590},
		{time.Hour, 9*time.Second + time.Millisecond, 3590},
		{time.Hour + 900*time.Millisecond, 0, 3600},
		{15*time.Minute + 10*time.Second, 10 * time.Second, 900},
		{15*time.Minute - 700*time.Millisecond, 10 * time.Second, 900},
		{24 * time.Hour, 0, 43200},
	} {
		if got := awsSeconds(c.left, c.slack); got != c.want {
			t.Errorf("%s left, %s for the call: %d, want %d", c.left, c.slack, got, c.want)
		}
	}
}

// TestShortestSession: a lease of 15m is a second shorter once it is opened,
// and STS makes nothing shorter.
func TestShortestSession(t *testing.T) {
	f := newFakeSTS(t)
	a := f.byAssertion(t)
	o := awsOrder(t, a)
	o.Lease.Expires = issuertest.Noon.Add(15*time.Minute - time.Second)
	c, _, err := a.Issue(t.Context(), o)
	if err != nil || f.only().form.Get("DurationSeconds") != "900" || !c.Expires.Equal(o.Lease.Expires) {
		t.Errorf("until %s for %q: %v", c.Expires, f.only().form.Get("DurationSeconds"), err)
	}
	o.Lease.Expires = issuertest.Noon.Add(14 * time.Minute)
	_, handle, err := a.Issue(t.Context(), o)
	if !errors.Is(err, broker.ErrInvalidTTL) || string(handle) != awsNothing || f.count() != 1 {
		t.Errorf("14m: %q, %v after %d calls", handle, err, f.count())
	}
}

func TestUpstreamClocks(t *testing.T) {
	for _, off := range []time.Duration{0, time.Minute, -time.Minute} {
		t.Run(off.String(), func(t *testing.T) {
			f := newFakeSTS(t)
			f.clock = func() time.Time { return issuertest.Noon.Add(off) }
			a := f.byAssertion(t)
			o := awsOrder(t, a)
			c, _, err := a.Issue(t.Context(), o)
			if err != nil {
				t.Fatal(err)
			}
			asked, err := time.ParseDuration(f.only().form.Get("DurationSeconds") + "s")
			if want := issuertest.Noon.Add(asked + min(off, 0)); err != nil || !c.Expires.Equal(want) || want.After(o.Lease.Expires) {
				t.Errorf("expires %s, want %s, before %s (%v)", c.Expires, want, o.Lease.Expires, err)
			}
		})
	}
}

// TestUnbelievableExpiry: an STS that does not do what it was asked is not
// believed, and nothing of what it made gets out.
func TestUnbelievableExpiry(t *testing.T) {
	for name, last := range map[string]time.Duration{"past": -time.Second, "now": time.Nanosecond, "a day": 24 * time.Hour, "a bit too long": time.Hour + 3*time.Minute} {
		t.Run(name, func(t *testing.T) {
			f := newFakeSTS(t)
			f.last = last
			a := f.byAssertion(t)
			c, handle, err := a.Issue(t.Context(), awsOrder(t, a))
			if !errors.Is(err, broker.ErrIssuerUnavailable) || handle != nil || c.Type != "" || c.Secret.Reveal() != nil {
				t.Errorf("%+v, %q, %v", c, handle, err)
			}
		})
	}
}

func TestSTSRefuses(t *testing.T) {
	const private = "arn:aws:iam::123456789012:user/secret-of-aws"
	for _, c := range []struct {
		status        int
		code, message string
		want          error
		detail        string
		nothing       bool // known that nothing was made
	}{
		{403, "AccessDenied", "User: " + private + " is not authorized", broker.ErrIssuerRefused, "trust policy", true},
		{400, "PackedPolicyTooLarge", "Packed policy consumes 147% " + private, broker.ErrPolicyTooLarge, "ask for fewer scopes", true},
		{400, "MalformedPolicyDocument", private, broker.ErrIssuerRefused, "does not understand the session policy", true},
		{400, "ValidationError", "The requested DurationSeconds exceeds the MaxSessionDuration set for this role.", broker.ErrInvalidTTL, "ask for a shorter ttl", true},
		{400, "ValidationError", "The requested DurationSeconds exceeds the 1 hour session limit for roles assumed by role chaining", broker.ErrInvalidTTL, "ask for a shorter ttl", true},
		{400, "ValidationError", "1 validation error detected: " + private, broker.ErrIssuerRefused, "the operators find its reason", true},
		{400, "InvalidIdentityToken", "Couldn't retrieve verification key from your identity provider", broker.ErrIssuerRefused, "OpenID Connect provider", true},
		{403, "IDPRejectedClaim", private, broker.ErrIssuerRefused, "OpenID Connect provider", true},
		{400, "ExpiredTokenException", private, broker.ErrIssuerRefused, "OpenID Connect provider", true},
		{403, "InvalidClientTokenId", private, broker.ErrIssuerRefused, "own credentials", true},
		{403, "SignatureDoesNotMatch", private, broker.ErrIssuerRefused, "own credentials", true},
		{403, "RegionDisabledException", private, broker.ErrIssuerRefused, "region", true},
		{400, "Throttling", "Rate exceeded", broker.ErrIssuerUnavailable, "too many calls", true},
		{400, "ThrottlingException", "Rate exceeded", broker.ErrIssuerUnavailable, "too many calls", true},
		{429, "Whatever", "", broker.ErrIssuerUnavailable, "too many calls", true},
		{400, "IDPCommunicationError", private, broker.ErrIssuerUnavailable, "could not reach", true},
		{418, "NeverHeardOf", private, broker.ErrIssuerRefused, "the operators find its reason", true},
		{500, "InternalFailure", private, broker.ErrIssuerUnavailable, "", false},
		{503, "ServiceUnavailable", private, broker.ErrIssuerUnavailable, "", false},
		{400, "<script>" + private, private, broker.ErrIssuerUnavailable, "", false},
		{403, "", private, broker.ErrIssuerUnavailable, "", false},
	} {
		t.Run(fmt.Sprintf("%d %s", c.status, c.code), func(t *testing.T) {
			f := newFakeSTS(t)
			f.answer = stsError(c.status, c.code, c.message)
			for _, a := range []*Issuer{f.byAssertion(t), f.byCredentials(t)} {
				f.calls = nil
				o := awsOrder(t, a)
				_, handle, err := a.Issue(t.Context(), o)
				if f.only(); !errors.Is(err, c.want) || (string(handle) == awsNothing) != c.nothing {
					t.Fatalf("%q, %v", handle, err)
				}
				var r *broker.Refusal
				if errors.As(err, &r) != (c.detail != "") || r != nil && !strings.Contains(r.Detail, c.detail) {
					t.Errorf("the detail is %+v, want %q", r, c.detail)
				}
				if retry := r != nil && r.Retry > 0; retry != (c.want == broker.ErrIssuerUnavailable && c.detail != "") {
					t.Errorf("may be tried again: %t", retry)
				}
				if named := strings.Contains(err.Error(), c.code+", request c6104cbe-af31-11e0-8154-cbc7ccf896c7"); named != c.nothing {
					t.Errorf("operators read %v", err)
				}
				checkSilent(t, err, private, "own-secret", "eyJ")
				// What is known not to exist needs no ending.
				o.Lease.Handle = handle
				if err := a.Revoke(t.Context(), o.Lease); c.nothing != (err == nil) || err != nil && !errors.Is(err, broker.ErrNotRevocable) {
					t.Errorf("ending it: %v", err)
				}
			}
		})
	}
}

// checkSilent: what STS or we hold stands in no error, however it is printed.
func checkSilent(t *testing.T, err error, private ...string) {
	t.Helper()
	var log bytes.Buffer
	slog.New(slog.NewJSONHandler(&log, nil)).Error("x", "err", err)
	text := fmt.Sprintf("%v %+v %#v %s", err, err, err, log.String())
	for _, p := range append(private, testSecretKey, testSession) {
		if strings.Contains(text, p) {
			t.Errorf("the error tells %q: %s", p, text)
		}
	}
}

func TestSTSFails(t *testing.T) {
	hangUp := func() { panic(http.ErrAbortHandler) }
	for name, c := range map[string]struct {
		answer http.HandlerFunc
		say    string
	}{
		"lost answer": {func(http.ResponseWriter, *http.Request) { hangUp() }, "the connection ended"},
		"half an answer": {func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", "1000")
			_, _ = io.WriteString(w, "<AssumeRoleResponse>")
			w.(http.Flusher).Flush()
			hangUp()
		}, "the connection ended"},
		"nothing":    {func(http.ResponseWriter, *http.Request) {}, "without a credential"},
		"not XML":    {func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, `{"a":1}`) }, ""},
		"broken XML": {func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, `<a><b></a>`) }, ""},
		"no credential": {func(w http.ResponseWriter, _ *http.Request) {
			_, _ = io.WriteString(w, `<AssumeRoleResponse></AssumeRoleResponse>`)
		}, ""},
		"bad expiration": {stsBody(`<AccessKeyId>A</AccessKeyId><SecretAccessKey>` + testSecretKey + `</SecretAccessKey><SessionToken>` + testSession + `</SessionToken><Expiration>tomorrow</Expiration>`), ""},
		"no expiration":  {stsBody(`<AccessKeyId>A</AccessKeyId><SecretAccessKey>` + testSecretKey + `</SecretAccessKey><SessionToken>` + testSession + `</SessionToken>`), "without a credential"},
		"no session":     {stsBody(`<AccessKeyId>A</AccessKeyId><SecretAccessKey>` + testSecretKey + `</SecretAccessKey><Expiration>2026-11-23T12:30:00Z</Expiration>`), "without a credential"},
		"huge":           {func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(bytes.Repeat([]byte("<a>"), awsAnswer)) }, "larger than"},
		"huge refusal": {func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(400)
			_, _ = w.Write(bytes.Repeat([]byte("<a>"), awsAnswer))
		}, "larger than"},
		"proxy's refusal": {func(w http.ResponseWriter, _ *http.Request) {
			http.Error(w, "<html><body>no</body></html>", http.StatusProxyAuthRequired)
		}, "407"},
		"redirect": {func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "/elsewhere", http.StatusTemporaryRedirect)
		}, "307"},
		"redirect by GET": {func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "/elsewhere", http.StatusFound)
		}, "302"},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFakeSTS(t)
			f.answer = c.answer
			for _, a := range []*Issuer{f.byAssertion(t), f.byCredentials(t)} {
				f.calls = nil
				cred, handle, err := a.Issue(t.Context(), awsOrder(t, a))
				if f.only(); !errors.Is(err, broker.ErrIssuerUnavailable) || handle != nil || cred.Secret.Reveal() != nil {
					t.Errorf("%+v, %q, %v", cred, handle, err)
				}
				if !strings.Contains(fmt.Sprint(err), c.say) {
					t.Errorf("the error is %v, want %q", err, c.say)
				}
				checkSilent(t, err)
			}
		})
	}
}

// TestLostAnswerOnAnOldConnection: an HTTP client repeats some calls by itself
// if a connection that it had kept breaks. It may not repeat this one.
func TestLostAnswerOnAnOldConnection(t *testing.T) {
	f := newFakeSTS(t)
	a := f.byAssertion(t)
	if _, _, err := a.Issue(t.Context(), awsOrder(t, a)); err != nil {
		t.Fatal(err)
	}
	f.answer = func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }
	_, handle, err := a.Issue(t.Context(), awsOrder(t, a))
	if !errors.Is(err, broker.ErrIssuerUnavailable) || handle != nil || f.count() != 2 {
		t.Errorf("after %d calls: %q, %v", f.count(), handle, err)
	}
}

func TestAWSIsSafeForConcurrentUse(t *testing.T) {
	f := newFakeSTS(t)
	a := f.byAssertion(t)
	o := awsOrder(t, a)
	var all sync.WaitGroup
	for range 16 {
		all.Go(func() {
			if _, _, err := a.Issue(t.Context(), o); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	if f.count() != 16 {
		t.Errorf("%d calls", f.count())
	}
}

// TestKeysThatRotate: what is in the JWKS verifies; an EdDSA key that signs
// until its successor does is not used.
func TestKeysThatRotate(t *testing.T) {
	s := issuertest.Store(t)
	openKeys(t, s, "EdDSA")
	keys := openKeys(t, s, "ES256")
	now := issuertest.Noon
	f := newFakeSTS(t)
	f.clock, f.jwks = func() time.Time { return now }, func() []byte { return keys.JWKS(now) }
	a := newTestAWS(t, Config{Region: "eu-west-1", Endpoint: f.url, Now: f.clock, WebIdentity: &WebIdentity{Issuer: testIssuer, Keys: keys}})
	o := awsOrder(t, a)
	o.Lease.Expires = issuertest.Noon.Add(36 * time.Hour)
	if _, handle, err := a.Issue(t.Context(), o); !errors.Is(err, broker.ErrIssuerUnavailable) || string(handle) != awsNothing || f.count() != 0 {
		t.Errorf("while EdDSA signs: %q, %v", handle, err)
	}
	kids := map[string]bool{}
	for _, now = range []time.Time{issuertest.Noon.Add(time.Hour), issuertest.Noon.Add(24 * time.Hour), issuertest.Noon.Add(25*time.Hour + time.Minute)} {
		if err := keys.Step(t.Context(), now); err != nil {
			t.Fatal(err)
		}
		if _, _, err := a.Issue(t.Context(), o); err != nil {
			t.Fatalf("at %s: %v", now, err)
		}
		header, _, _ := strings.Cut(f.calls[len(f.calls)-1].form.Get("WebIdentityToken"), ".")
		kids[header] = true
	}
	if len(kids) != 2 {
		t.Errorf("%d keys signed", len(kids))
	}
}

// stsBody answers both calls with credentials that consist of these elements.
func stsBody(elements string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		action := r.PostForm.Get("Action")
		fmt.Fprintf(w, "<%[1]sResponse><%[1]sResult><Credentials>%[2]s</Credentials></%[1]sResult></%[1]sResponse>", action, elements)
	}
}

func TestSlowSTS(t *testing.T) {
	f := newFakeSTS(t)
	release := make(chan struct{})
	defer close(release)
	f.answer = func(_ http.ResponseWriter, r *http.Request) {
		select {
		case <-release:
		case <-r.Context().Done():
		}
	}
	a := f.byAssertion(t)
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	start := time.Now()
	_, handle, err := a.Issue(ctx, awsOrder(t, a))
	if !errors.Is(err, broker.ErrIssuerUnavailable) || !errors.Is(err, context.DeadlineExceeded) || handle != nil || time.Since(start) > 5*time.Second {
		t.Errorf("after %s: %q, %v", time.Since(start), handle, err)
	}
	f.only()
	gone, leave := context.WithCancel(t.Context())
	time.AfterFunc(50*time.Millisecond, leave)
	if _, handle, err := a.Issue(gone, awsOrder(t, a)); !errors.Is(err, broker.ErrIssuerUnavailable) || handle != nil {
		t.Errorf("the caller went away: %q, %v", handle, err)
	}
}

func TestNoSTS(t *testing.T) {
	f := newFakeSTS(t)
	a := f.byCredentials(t)
	a.cfg.HTTP = nil
	closed := httptest.NewServer(http.NotFoundHandler())
	closed.Close()
	b := newTestAWS(t, Config{Region: "eu-west-1", Endpoint: closed.URL, AssumeRole: a.cfg.AssumeRole, Now: a.cfg.Now})
	if _, handle, err := b.Issue(t.Context(), awsOrder(t, b)); !errors.Is(err, broker.ErrIssuerUnavailable) || handle != nil || !strings.Contains(err.Error(), "refused") {
		t.Errorf("nobody listens: %q, %v", handle, err)
	}
	tls := httptest.NewTLSServer(f)
	defer tls.Close()
	b = newTestAWS(t, Config{Region: "eu-west-1", Endpoint: tls.URL, AssumeRole: a.cfg.AssumeRole, Now: a.cfg.Now})
	if _, _, err := b.Issue(t.Context(), awsOrder(t, b)); !errors.Is(err, broker.ErrIssuerUnavailable) || !strings.Contains(err.Error(), "certificate does not hold") {
		t.Errorf("a stranger's certificate: %v", err)
	}
	b = newTestAWS(t, Config{Region: "eu-west-1", Endpoint: tls.URL, AssumeRole: a.cfg.AssumeRole, Now: a.cfg.Now, HTTP: tls.Client()})
	if _, _, err := b.Issue(t.Context(), awsOrder(t, b)); err != nil {
		t.Errorf("with a client that trusts it: %v", err)
	}
}

// TestOrdersThatDoNotFit never get as far as STS.
func TestOrdersThatDoNotFit(t *testing.T) {
	f := newFakeSTS(t)
	a := f.byAssertion(t)
	for name, change := range map[string]func(*broker.Order){
		"no entitlement":      func(o *broker.Order) { o.Entitlement = nil },
		"of another issuer":   func(o *broker.Order) { o.Entitlement = &broker.Entitlement{Name: "x", Spec: 1} },
		"no scopes":           func(o *broker.Order) { o.Lease.Scopes = nil },
		"unknown scope":       func(o *broker.Order) { o.Lease.Scopes = []string{"delete"} },
		"no parameter":        func(o *broker.Order) { o.Lease.Parameters = nil },
		"wildcard":            func(o *broker.Order) { o.Lease.Parameters = map[string]string{"prefix": "*"} },
		"expired":             func(o *broker.Order) { o.Lease.Expires = issuertest.Noon },
		"before the keys are": func(o *broker.Order) { a.cfg.Now = func() time.Time { return issuertest.Noon.Add(-time.Minute) } },
	} {
		o := awsOrder(t, a)
		change(&o)
		if _, handle, err := a.Issue(t.Context(), o); err == nil || string(handle) != awsNothing {
			t.Errorf("%s: %q, %v", name, handle, err)
		}
		a.cfg.Now = func() time.Time { return issuertest.Noon }
	}
	if f.count() > 0 {
		t.Errorf("STS was called %d times", f.count())
	}
}

func TestAWSConfigCheck(t *testing.T) {
	own, web := &AssumeRole{}, &WebIdentity{Issuer: testIssuer}
	for name, c := range map[string]struct {
		cfg  Config
		want string // keys
	}{
		"assertions":           {Config{Region: "eu-west-1", WebIdentity: web}, ""},
		"own credentials":      {Config{Region: "us-gov-west-1", AssumeRole: own}, ""},
		"MinIO":                {Config{Region: "us-east-1", Endpoint: "https://minio.test:9000", WebIdentity: &WebIdentity{Issuer: "https://broker.test:8443"}}, ""},
		"loopback":             {Config{Region: "us-east-1", Endpoint: "http://[::1]:9000", AssumeRole: own}, ""},
		"nothing":              {Config{}, "auth region"},
		"both":                 {Config{Region: "eu-west-1", AssumeRole: own, WebIdentity: web}, "auth"},
		"region":               {Config{Region: "Ireland", AssumeRole: own}, "region"},
		"plain":                {Config{Region: "us-east-1", Endpoint: "http://minio.test", AssumeRole: own}, "endpoint"},
		"not a URL":            {Config{Region: "us-east-1", Endpoint: "minio", AssumeRole: own}, "endpoint"},
		"password in the URL":  {Config{Region: "us-east-1", Endpoint: "https://a:b@minio.test", AssumeRole: own}, "endpoint"},
		"port of the provider": {Config{Region: "eu-west-1", WebIdentity: &WebIdentity{Issuer: "https://broker.test:8443"}}, "auth/web_identity"},
		"provider without TLS": {Config{Region: "eu-west-1", WebIdentity: &WebIdentity{Issuer: "http://broker.test"}}, "auth/web_identity"},
		"EdDSA":                {Config{Region: "eu-west-1", WebIdentity: &WebIdentity{Issuer: testIssuer, Algorithm: "EdDSA"}}, "auth/web_identity"},
		"audience":             {Config{Region: "eu-west-1", WebIdentity: &WebIdentity{Issuer: testIssuer, Audience: strings.Repeat("a", 256)}}, "auth/web_identity/audience"},
	} {
		var keys []string
		c.cfg.Check(func(key, _ string, _ ...any) { keys = append(keys, key) })
		if slices.Sort(keys); strings.Join(keys, " ") != c.want {
			t.Errorf("%s: faults at %q, want %q", name, keys, c.want)
		}
	}
}

func TestNewAWSRefuses(t *testing.T) {
	eddsa := openKeys(t, issuertest.Store(t), "EdDSA")
	file := filepath.Join(t.TempDir(), "credentials")
	writeCredentials(t, file, "AKIATEST")
	for want, c := range map[string]Config{
		"region: ":                            {AssumeRole: &AssumeRole{CredentialsFile: file}},
		"there are no keys":                   {Region: "eu-west-1", WebIdentity: &WebIdentity{Issuer: testIssuer}},
		"STS can't verify EdDSA":              {Region: "eu-west-1", WebIdentity: &WebIdentity{Issuer: testIssuer, Keys: eddsa}},
		`has no profile "nobody"`:             {Region: "eu-west-1", AssumeRole: &AssumeRole{CredentialsFile: file, Profile: "nobody"}},
		`credentials-x has no profile "def`:   {Region: "eu-west-1", AssumeRole: &AssumeRole{CredentialsFile: file + "-x"}},
		"the broker's own AWS credentials: f": {Region: "eu-west-1", AssumeRole: &AssumeRole{Profile: "no-such-profile"}},
	} {
		if _, err := New(t.Context(), c); err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "own-secret") {
			t.Errorf("want %q: %v", want, err)
		}
	}
	if got := (Config{WebIdentity: &WebIdentity{}}).Audience(); got != DefaultAudience {
		t.Errorf("the reserved audience is %q", got)
	}
	if got := (Config{AssumeRole: &AssumeRole{}}).Audience(); got != "" {
		t.Errorf("without assertions, %q is reserved", got)
	}
}
