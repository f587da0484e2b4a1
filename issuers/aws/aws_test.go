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
	"sync/atomic"
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
	accessKey    = "ASIATESTTESTTESTTEST"
	secretKey    = "secret/of+the/session+that+no+log+may+show"
	sessionToken = "session-token-that-no-log-may-show"
)

// A fakeSTS answers STS's query protocol as AWS documents it, and has a clock of
// its own.
type fakeSTS struct {
	t     *testing.T
	url   string
	jwks  func() []byte
	clock func() time.Time
	// answer, if set, answers instead of issuing a session.
	answer http.HandlerFunc
	last   time.Duration // the TTL of sessions, if not DurationSeconds

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
	w.Header().Set("Date", f.clock().UTC().Format(http.TimeFormat))
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

// refuses verifies an assertion as AWS does, and returns an error code.
func (f *fakeSTS) refuses(form url.Values) string {
	token := form.Get("WebIdentityToken")
	if token == "" || f.jwks == nil {
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
	seconds, err := time.ParseDuration(cmp.Or(form.Get("DurationSeconds"), "3600") + "s")
	if err != nil || seconds < 900*time.Second || seconds > 12*time.Hour {
		f.t.Errorf("DurationSeconds is %q", form.Get("DurationSeconds"))
	}
	action := form.Get("Action")
	fmt.Fprintf(w, `<%[1]sResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/"><%[1]sResult>
		<AssumedRoleUser><Arn>arn:aws:sts::123456789012:assumed-role/reports/x</Arn><AssumedRoleId>AROA:x</AssumedRoleId></AssumedRoleUser>
		<Credentials><AccessKeyId>%[2]s</AccessKeyId><SecretAccessKey>%[3]s</SecretAccessKey><SessionToken>%[4]s</SessionToken><Expiration>%[5]s</Expiration></Credentials>
		<PackedPolicySize>6</PackedPolicySize></%[1]sResult><ResponseMetadata><RequestId>c6104cbe-af31-11e0-8154-cbc7ccf896c7</RequestId></ResponseMetadata></%[1]sResponse>`,
		action, accessKey, secretKey, sessionToken, f.clock().Add(cmp.Or(f.last, seconds)).UTC().Format(time.RFC3339))
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
		f.t.Fatalf("%d requests to STS, want 1", len(f.calls))
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

// byAssertion returns an issuer that authenticates with assertions.
func (f *fakeSTS) byAssertion(t *testing.T) *Issuer {
	t.Helper()
	keys := openKeys(t, issuertest.Store(t), "ES256")
	f.jwks = func() []byte { return keys.JWKS(issuertest.Noon) }
	return newIssuer(t, Config{
		Region: "eu-west-1", Endpoint: f.url, Now: func() time.Time { return issuertest.Noon },
		WebIdentity: &WebIdentity{Issuer: testIssuer, Keys: keys},
	})
}

// byCredentials returns an issuer with credentials of its own.
func (f *fakeSTS) byCredentials(t *testing.T) *Issuer {
	t.Helper()
	file := filepath.Join(t.TempDir(), "credentials")
	writeCredentials(t, file, "AKIATEST")
	return newIssuer(t, Config{
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

func newIssuer(t *testing.T, c Config) *Issuer {
	t.Helper()
	a, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// newOrder returns an order for the scope "read", for an hour.
func newOrder(t testing.TB, a *Issuer) broker.Order {
	t.Helper()
	r, e := reportsRole()
	e.Spec = compile(t, a.cfg, r, e)
	l := issuertest.Lease(issuertest.Noon)
	l.Entitlement, l.Issuer, l.Scopes, l.Expires = "reports", "aws", []string{"read"}, issuertest.Noon.Add(time.Hour)
	l.Parameters, l.Revocation = map[string]string{"prefix": "acme"}, broker.RevokedAtExpiry
	return broker.Order{Lease: l, Entitlement: e}
}

const readPolicy = `{"Statement":[{"Action":["s3:GetObject"],"Effect":"Allow","Resource":["arn:aws:s3:::reports/acme/*"]}],"Version":"2012-10-17"}`

// checkSeconds checks that DurationSeconds is the rest of the lease less the time
// that the request could still take when took had passed, and removes it from the
// form.
func checkSeconds(t *testing.T, form url.Values, left, took time.Duration) {
	t.Helper()
	got, err := time.ParseDuration(form.Get("DurationSeconds") + "s")
	if err != nil || got > left-callTimeout+took+time.Second || got < left-callTimeout {
		t.Errorf("DurationSeconds is %q, with %s left, and %s after the request", form.Get("DurationSeconds"), left, took)
	}
	form.Del("DurationSeconds")
}

func checkForm(t *testing.T, got url.Values, want map[string]string) {
	t.Helper()
	for key := range got {
		if _, ok := want[key]; !ok {
			t.Errorf("the request has %s = %q", key, got[key])
		}
	}
	for key, value := range want {
		if got.Get(key) != value || len(got[key]) != 1 {
			t.Errorf("%s = %q, want %q", key, got[key], value)
		}
	}
}

func TestConforms(t *testing.T) {
	f := newFakeSTS(t)
	for _, a := range []*Issuer{f.byAssertion(t), f.byCredentials(t)} {
		o := newOrder(t, a)
		issuertest.Conform(t, a, o.Lease, o.Entitlement)
	}
}

func TestIssueByAssertion(t *testing.T) {
	f := newFakeSTS(t)
	a := f.byAssertion(t)
	o := newOrder(t, a)
	start := time.Now()
	c, handle, err := a.Issue(t.Context(), o)
	if err != nil || handle != nil {
		t.Fatalf("%q, %v", handle, err)
	}
	call, took := f.only(), time.Since(start)
	token := call.form.Get("WebIdentityToken")
	checkSeconds(t, call.form, time.Hour, took)
	checkForm(t, call.form, map[string]string{
		"Action": "AssumeRoleWithWebIdentity", "Version": "2011-06-15", "RoleArn": testRole,
		"RoleSessionName": o.Lease.ID.String(), "WebIdentityToken": token, "Policy": readPolicy,
	})
	if call.header.Get("Authorization") != "" {
		t.Error("the request is signed although it has an assertion")
	}
	if want := map[string]string{"access_key_id": accessKey, "secret_access_key": secretKey, "session_token": sessionToken}; fmt.Sprint(c.Secret.Reveal()) != fmt.Sprint(want) {
		t.Errorf("the secret is %v", c.Secret.Reveal())
	}
	if c.Type != "aws" || c.Revocation != broker.RevokedAtExpiry || c.Expires.After(o.Lease.Expires) || c.Expires.Before(o.Lease.Expires.Add(-callTimeout)) {
		t.Errorf("the credential is %+v", c)
	}
	again, _, err := a.Issue(t.Context(), o)
	if err != nil || again.Hash == c.Hash {
		t.Errorf("the hash has no salt (%v)", err)
	}
}

func TestAssertionClaims(t *testing.T) {
	f := newFakeSTS(t)
	a := f.byAssertion(t)
	o := newOrder(t, a)
	for name, c := range map[string]struct {
		audience, holder, tag string // tag is empty for the hash of holder
	}{
		"default":        {"", "spiffe://acme.test/agent/triage", "spiffe://acme.test/agent/triage"},
		"own audience":   {"https://aws.acme.test", "spiffe://acme.test/a", "spiffe://acme.test/a"},
		"256 characters": {"", "spiffe://acme.test/" + strings.Repeat("a", 237), "spiffe://acme.test/" + strings.Repeat("a", 237)},
		"257 characters": {"", "spiffe://acme.test/" + strings.Repeat("a", 238), ""},
		"bad characters": {"", "login/auth0|1", ""},
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

// assertionClaims verifies an assertion as an OpenID Connect client does.
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

func TestAssertionIsNotAnAccessToken(t *testing.T) {
	f := newFakeSTS(t)
	a := f.byAssertion(t)
	if _, _, err := a.Issue(t.Context(), newOrder(t, a)); err != nil {
		t.Fatal(err)
	}
	tokens := token.New(testIssuer, DefaultAudience, a.cfg.WebIdentity.Keys)
	if id, err := tokens.Inspect(t.Context(), f.only().form.Get("WebIdentityToken")); !errors.Is(err, broker.ErrNotFound) {
		t.Errorf("Inspect accepted an assertion as the token of %s: %v", id, err)
	}
}

func TestIssueByCredentials(t *testing.T) {
	f := newFakeSTS(t)
	a := f.byCredentials(t)
	o := newOrder(t, a)
	r, e := reportsRole()
	r.ExternalID, r.ManagedPolicies = "acme:1", []string{"arn:aws:iam::aws:policy/ReadOnlyAccess", "arn:aws:iam::123456789012:policy/a"}
	o.Entitlement.Spec = compile(t, a.cfg, r, e)
	start := time.Now()
	if _, _, err := a.Issue(t.Context(), o); err != nil {
		t.Fatal(err)
	}
	call, took := f.only(), time.Since(start)
	checkSeconds(t, call.form, time.Hour, took)
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
	// A replaced file takes effect at once.
	writeCredentials(t, a.cfg.AssumeRole.CredentialsFile, "AKIANEXT")
	if _, _, err := a.Issue(t.Context(), o); err != nil || !strings.Contains(f.calls[1].header.Get("Authorization"), "Credential=AKIANEXT/") {
		t.Errorf("after the file was replaced: %v", err)
	}
	if err := os.Remove(a.cfg.AssumeRole.CredentialsFile); err != nil {
		t.Fatal(err)
	}
	if _, handle, err := a.Issue(t.Context(), o); !errors.Is(err, broker.ErrIssuerUnavailable) || string(handle) != nothingIssued || f.count() != 2 {
		t.Errorf("without the file: %q, %v", handle, err)
	}
}

// A user of MinIO keeps the access key when the secret changes.
func TestSignerUsesNewSecretOfOldKey(t *testing.T) {
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
		t.Error("the signature does not depend on the secret")
	}
}

func TestFullRoleSendsOpenPolicy(t *testing.T) {
	f := newFakeSTS(t)
	a := f.byAssertion(t)
	o := newOrder(t, a)
	o.Entitlement.Spec = compile(t, a.cfg, Role{RoleARN: testRole, FullRole: true}, o.Entitlement)
	o.Lease.Scopes = nil
	if _, _, err := a.Issue(t.Context(), o); err != nil {
		t.Fatal(err)
	}
	everything := `{"Statement":[{"Action":["*"],"Effect":"Allow","Resource":["*"]}],"Version":"2012-10-17"}`
	if form := f.only().form; form.Get("Policy") != everything || form.Has("PolicyArns.member.1.arn") {
		t.Errorf("the full role has the session policy %q", form.Get("Policy"))
	}
	if text := a.Describe(o.Entitlement, nil, nil); !strings.HasSuffix(text, "with everything that the role may do") {
		t.Errorf("approvers are shown %q", text)
	}
}

func TestSessionSeconds(t *testing.T) {
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
		if got := sessionSeconds(c.left, c.slack); got != c.want {
			t.Errorf("%s left, %s for the request: got %d, want %d", c.left, c.slack, got, c.want)
		}
	}
}

// A lease of 15m is a second shorter once it is open, and STS issues no shorter
// session.
func TestIssueShortestSession(t *testing.T) {
	f := newFakeSTS(t)
	a := f.byAssertion(t)
	o := newOrder(t, a)
	o.Lease.Expires = issuertest.Noon.Add(15*time.Minute - time.Second)
	c, _, err := a.Issue(t.Context(), o)
	if err != nil || f.only().form.Get("DurationSeconds") != "900" || !c.Expires.Equal(o.Lease.Expires) {
		t.Errorf("expires at %s with DurationSeconds %q: %v", c.Expires, f.only().form.Get("DurationSeconds"), err)
	}
	o.Lease.Expires = issuertest.Noon.Add(14 * time.Minute)
	_, handle, err := a.Issue(t.Context(), o)
	if !errors.Is(err, broker.ErrInvalidTTL) || string(handle) != nothingIssued || f.count() != 1 {
		t.Errorf("14m: %q, %v after %d requests", handle, err, f.count())
	}
}

func TestCredentialExpiresByEarlierClock(t *testing.T) {
	for _, off := range []time.Duration{0, time.Minute, -time.Minute} {
		t.Run(off.String(), func(t *testing.T) {
			f := newFakeSTS(t)
			f.clock = func() time.Time { return issuertest.Noon.Add(off) }
			a := f.byAssertion(t)
			o := newOrder(t, a)
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

// STS states the end of a session that it made shorter by its own clock.
func TestShortenedSessionEndsByOurClock(t *testing.T) {
	for _, off := range []time.Duration{0, 90 * time.Second, -time.Minute} {
		f := newFakeSTS(t)
		f.clock, f.last = func() time.Time { return issuertest.Noon.Add(off) }, 20*time.Minute
		for _, a := range []*Issuer{f.byAssertion(t), f.byCredentials(t)} {
			c, _, err := a.Issue(t.Context(), newOrder(t, a))
			if want := issuertest.Noon.Add(20*time.Minute + min(off, 0)); err != nil || !c.Expires.Equal(want) {
				t.Errorf("with a clock that is off by %s: expires %s, want %s (%v)", off, c.Expires, want, err)
			}
		}
	}
}

// A session with an expiry that was not requested is not handed out.
func TestIssueRefusesUnrequestedExpiry(t *testing.T) {
	for name, last := range map[string]time.Duration{"past": -time.Second, "now": time.Nanosecond, "a day": 24 * time.Hour, "a bit too long": time.Hour + 3*time.Minute} {
		t.Run(name, func(t *testing.T) {
			f := newFakeSTS(t)
			f.last = last
			a := f.byAssertion(t)
			c, handle, err := a.Issue(t.Context(), newOrder(t, a))
			if !errors.Is(err, broker.ErrIssuerUnavailable) || handle != nil || c.Type != "" || c.Secret.Reveal() != nil {
				t.Errorf("%+v, %q, %v", c, handle, err)
			}
		})
	}
}

func TestSTSRefusals(t *testing.T) {
	const private = "arn:aws:iam::123456789012:user/secret-of-aws"
	for _, c := range []struct {
		status        int
		code, message string
		want          error
		detail        string
		nothing       bool // certainly no session exists
	}{
		{403, "AccessDenied", "User: " + private + " is not authorized", broker.ErrIssuerRefused, "trust policy", true},
		{400, "PackedPolicyTooLarge", "Packed policy consumes 147% " + private, broker.ErrPolicyTooLarge, "request fewer scopes", true},
		{400, "MalformedPolicyDocument", private, broker.ErrIssuerRefused, "rejects the session policy", true},
		{400, "ValidationError", "The requested DurationSeconds exceeds the MaxSessionDuration set for this role.", broker.ErrInvalidTTL, "request a shorter ttl", true},
		{400, "ValidationError", "The requested DurationSeconds exceeds the 1 hour session limit for roles assumed by role chaining", broker.ErrInvalidTTL, "request a shorter ttl", true},
		{400, "ValidationError", "1 validation error detected: " + private, broker.ErrIssuerRefused, "the broker's log has the error code", true},
		{400, "InvalidIdentityToken", "Couldn't retrieve verification key from your identity provider", broker.ErrIssuerRefused, "OpenID Connect provider", true},
		{403, "IDPRejectedClaim", private, broker.ErrIssuerRefused, "OpenID Connect provider", true},
		{400, "ExpiredTokenException", private, broker.ErrIssuerUnavailable, "has expired by AWS's clock", true},
		{403, "ExpiredToken", private, broker.ErrIssuerUnavailable, "has expired by AWS's clock", true},
		{400, "RequestExpired", private, broker.ErrIssuerUnavailable, "set the broker's clock", true},
		{403, "SignatureDoesNotMatch", "Signature expired: 20261123T115000Z is now earlier than 20261123T115500Z (20261123T120000Z - 5 min.)", broker.ErrIssuerUnavailable, "set the broker's clock", true},
		{403, "SignatureDoesNotMatch", "Signature not yet current: 20261123T121000Z is still later than 20261123T120500Z", broker.ErrIssuerUnavailable, "set the broker's clock", true},
		{403, "InvalidClientTokenId", private, broker.ErrIssuerRefused, "own credentials", true},
		{403, "SignatureDoesNotMatch", private, broker.ErrIssuerRefused, "own credentials", true},
		{403, "RegionDisabledException", private, broker.ErrIssuerRefused, "region", true},
		{400, "Throttling", "Rate exceeded", broker.ErrIssuerUnavailable, "too many requests", true},
		{400, "ThrottlingException", "Rate exceeded", broker.ErrIssuerUnavailable, "too many requests", true},
		{429, "Whatever", "", broker.ErrIssuerUnavailable, "too many requests", true},
		{400, "IDPCommunicationError", private, broker.ErrIssuerUnavailable, "could not reach", true},
		{418, "NeverHeardOf", private, broker.ErrIssuerRefused, "the broker's log has the error code", true},
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
				o := newOrder(t, a)
				_, handle, err := a.Issue(t.Context(), o)
				if f.only(); !errors.Is(err, c.want) || (string(handle) == nothingIssued) != c.nothing {
					t.Fatalf("%q, %v", handle, err)
				}
				var r *broker.Refusal
				if errors.As(err, &r) != (c.detail != "") || r != nil && !strings.Contains(r.Detail, c.detail) {
					t.Errorf("the detail is %+v, want %q", r, c.detail)
				}
				if retry := r != nil && r.Retry > 0; retry != (c.want == broker.ErrIssuerUnavailable && c.detail != "") {
					t.Errorf("has Retry: %t", retry)
				}
				if named := strings.Contains(err.Error(), c.code+", request c6104cbe-af31-11e0-8154-cbc7ccf896c7"); named != c.nothing {
					t.Errorf("code and request ID in the error: %t, want %t: %v", named, c.nothing, err)
				}
				checkNoSecrets(t, err, private, "own-secret", "eyJ")
				// A session that does not exist is revoked at once.
				o.Lease.Handle = handle
				if err := a.Revoke(t.Context(), o.Lease); c.nothing != (err == nil) || err != nil && !errors.Is(err, broker.ErrNotRevocable) {
					t.Errorf("Revoke: %v", err)
				}
			}
		})
	}
}

// checkNoSecrets checks that an error shows no secret, however it is printed.
func checkNoSecrets(t *testing.T, err error, private ...string) {
	t.Helper()
	var log bytes.Buffer
	slog.New(slog.NewJSONHandler(&log, nil)).Error("x", "err", err)
	text := fmt.Sprintf("%v %+v %#v %s", err, err, err, log.String())
	for _, p := range append(private, secretKey, sessionToken) {
		if strings.Contains(text, p) {
			t.Errorf("the error shows %q: %s", p, text)
		}
	}
}

func TestSTSFailures(t *testing.T) {
	hangUp := func() { panic(http.ErrAbortHandler) }
	for name, c := range map[string]struct {
		answer http.HandlerFunc
		want   string // in the error
	}{
		"lost answer": {func(http.ResponseWriter, *http.Request) { hangUp() }, "the connection ended"},
		"half an answer": {func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", "1000")
			_, _ = io.WriteString(w, "<AssumeRoleResponse>")
			w.(http.Flusher).Flush()
			hangUp()
		}, "the connection ended"},
		"no body":    {func(http.ResponseWriter, *http.Request) {}, "without a credential"},
		"not XML":    {func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, `{"a":1}`) }, ""},
		"broken XML": {func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, `<a><b></a>`) }, ""},
		"no credential": {func(w http.ResponseWriter, _ *http.Request) {
			_, _ = io.WriteString(w, `<AssumeRoleResponse></AssumeRoleResponse>`)
		}, ""},
		"bad expiration": {stsBody(`<AccessKeyId>A</AccessKeyId><SecretAccessKey>` + secretKey + `</SecretAccessKey><SessionToken>` + sessionToken + `</SessionToken><Expiration>tomorrow</Expiration>`), ""},
		"no expiration":  {stsBody(`<AccessKeyId>A</AccessKeyId><SecretAccessKey>` + secretKey + `</SecretAccessKey><SessionToken>` + sessionToken + `</SessionToken>`), "without a credential"},
		"no session":     {stsBody(`<AccessKeyId>A</AccessKeyId><SecretAccessKey>` + secretKey + `</SecretAccessKey><Expiration>2026-11-23T12:30:00Z</Expiration>`), "without a credential"},
		"huge":           {func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(bytes.Repeat([]byte("<a>"), maxAnswer)) }, "larger than"},
		"huge refusal": {func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(400)
			_, _ = w.Write(bytes.Repeat([]byte("<a>"), maxAnswer))
		}, "larger than"},
		"refusal by a proxy": {func(w http.ResponseWriter, _ *http.Request) {
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
				cred, handle, err := a.Issue(t.Context(), newOrder(t, a))
				if f.only(); !errors.Is(err, broker.ErrIssuerUnavailable) || handle != nil || cred.Secret.Reveal() != nil {
					t.Errorf("%+v, %q, %v", cred, handle, err)
				}
				if !strings.Contains(fmt.Sprint(err), c.want) {
					t.Errorf("got %v, want %q", err, c.want)
				}
				checkNoSecrets(t, err)
			}
		})
	}
}

// The time that STS, or a proxy in front of it, names for the next attempt reaches the
// caller.
func TestRetryAfterReachesCaller(t *testing.T) {
	for name, c := range map[string]struct {
		answer http.HandlerFunc
		want   time.Duration // zero: none
	}{
		"throttled":               {stsError(400, "Throttling", "Rate exceeded"), 7 * time.Second},
		"too many requests":       {stsError(429, "Whatever", ""), 7 * time.Second},
		"failed":                  {stsError(500, "InternalFailure", ""), 7 * time.Second},
		"unavailable":             {stsError(503, "ServiceUnavailable", ""), 7 * time.Second},
		"unavailable, of a proxy": {func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "<html>", http.StatusServiceUnavailable) }, 7 * time.Second},
		"refused":                 {stsError(403, "AccessDenied", ""), 0},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFakeSTS(t)
			f.answer = func(w http.ResponseWriter, r *http.Request) {
				w.Header().Set("Retry-After", "7")
				c.answer(w, r)
			}
			for _, a := range []*Issuer{f.byAssertion(t), f.byCredentials(t)} {
				_, _, err := a.Issue(t.Context(), newOrder(t, a))
				var r *broker.Refusal
				if !errors.As(err, &r) || r.Retry != c.want {
					t.Errorf("got %v, %+v, want %s", err, r, c.want)
				}
			}
		})
	}
}

// Credentials of the broker's own that ended before their time are fetched again, once:
// AWS refused the request, so nothing was issued.
func TestOwnCredentialsThatExpiredAreFetchedAgain(t *testing.T) {
	for _, code := range []string{"ExpiredToken", "InvalidClientTokenId"} {
		for _, renewed := range []bool{true, false} {
			var fetches atomic.Int64
			own := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
				fetched := fetches.Add(1)
				fmt.Fprintf(w, `{"AccessKeyId": "AKIA%d", "SecretAccessKey": "own-secret", "Token": "t", "Expiration": %q}`, fetched, time.Now().Add(time.Hour).UTC().Format(time.RFC3339))
			}))
			t.Cleanup(own.Close)
			f := newFakeSTS(t)
			env := map[string]string{"AWS_CONTAINER_CREDENTIALS_FULL_URI": own.URL}
			a, err := New(Config{Region: "eu-west-1", Endpoint: f.url, AssumeRole: &AssumeRole{}, Getenv: func(name string) string { return env[name] }, Now: f.clock})
			if err != nil {
				t.Fatal(err)
			}
			f.answer = func(w http.ResponseWriter, r *http.Request) {
				if renewed && strings.Contains(r.Header.Get("Authorization"), "Credential=AKIA2/") {
					f.session(w, r.PostForm)
					return
				}
				stsError(403, code, "no")(w, r)
			}
			_, handle, err := a.Issue(t.Context(), newOrder(t, a))
			if renewed && err != nil || !renewed && (err == nil || string(handle) != nothingIssued) {
				t.Errorf("%s, renewed %t: %q, %v", code, renewed, handle, err)
			}
			if fetched := fetches.Load(); f.count() != 2 || fetched != 2 {
				t.Errorf("%s, renewed %t: %d requests with %d credentials, want 2 with 2", code, renewed, f.count(), fetched)
			}
		}
	}
}

// When a reused connection breaks, net/http repeats some requests by itself. It
// must not repeat this one.
func TestIssueSendsOnceOnReusedConnection(t *testing.T) {
	f := newFakeSTS(t)
	a := f.byAssertion(t)
	if _, _, err := a.Issue(t.Context(), newOrder(t, a)); err != nil {
		t.Fatal(err)
	}
	f.answer = func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }
	_, handle, err := a.Issue(t.Context(), newOrder(t, a))
	if !errors.Is(err, broker.ErrIssuerUnavailable) || handle != nil || f.count() != 2 {
		t.Errorf("%d requests, want 2: %q, %v", f.count(), handle, err)
	}
}

func TestIssueConcurrently(t *testing.T) {
	f := newFakeSTS(t)
	a := f.byAssertion(t)
	o := newOrder(t, a)
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
		t.Errorf("%d requests, want 16", f.count())
	}
}

// Assertions verify with the JWKS across a rotation. An EdDSA key that still signs
// is not used.
func TestAssertionAcrossRotation(t *testing.T) {
	s := issuertest.Store(t)
	openKeys(t, s, "EdDSA")
	keys := openKeys(t, s, "ES256")
	now := issuertest.Noon
	f := newFakeSTS(t)
	f.clock, f.jwks = func() time.Time { return now }, func() []byte { return keys.JWKS(now) }
	a := newIssuer(t, Config{Region: "eu-west-1", Endpoint: f.url, Now: f.clock, WebIdentity: &WebIdentity{Issuer: testIssuer, Keys: keys}})
	o := newOrder(t, a)
	o.Lease.Expires = issuertest.Noon.Add(36 * time.Hour)
	if _, handle, err := a.Issue(t.Context(), o); !errors.Is(err, broker.ErrIssuerUnavailable) || string(handle) != nothingIssued || f.count() != 0 {
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
		t.Errorf("%d keys signed, want 2", len(kids))
	}
}

// stsBody answers with credentials that consist of these elements.
func stsBody(elements string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		action := r.PostForm.Get("Action")
		fmt.Fprintf(w, "<%[1]sResponse><%[1]sResult><Credentials>%[2]s</Credentials></%[1]sResult></%[1]sResponse>", action, elements)
	}
}

func TestIssueEndsWithContext(t *testing.T) {
	f := newFakeSTS(t)
	release, arrived := make(chan struct{}), make(chan struct{}, 2)
	defer close(release)
	f.answer = func(_ http.ResponseWriter, r *http.Request) {
		arrived <- struct{}{}
		select {
		case <-release:
		case <-r.Context().Done():
		}
	}
	a := f.byAssertion(t)
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	start := time.Now()
	_, handle, err := a.Issue(ctx, newOrder(t, a))
	if !errors.Is(err, broker.ErrIssuerUnavailable) || !errors.Is(err, context.DeadlineExceeded) || handle != nil || time.Since(start) > callTimeout {
		t.Errorf("after %s: %q, %v", time.Since(start), handle, err)
	}
	<-arrived
	f.only()
	gone, leave := context.WithCancel(t.Context())
	go func() {
		<-arrived
		leave()
	}()
	if _, handle, err := a.Issue(gone, newOrder(t, a)); !errors.Is(err, broker.ErrIssuerUnavailable) || !errors.Is(err, context.Canceled) || handle != nil {
		t.Errorf("the caller disconnected: %q, %v", handle, err)
	}
}

func TestUnreachableSTS(t *testing.T) {
	f := newFakeSTS(t)
	a := f.byCredentials(t)
	a.cfg.HTTP = nil
	closed := httptest.NewServer(http.NotFoundHandler())
	closed.Close()
	b := newIssuer(t, Config{Region: "eu-west-1", Endpoint: closed.URL, AssumeRole: a.cfg.AssumeRole, Now: a.cfg.Now})
	if _, handle, err := b.Issue(t.Context(), newOrder(t, b)); !errors.Is(err, broker.ErrIssuerUnavailable) || handle != nil || !strings.Contains(err.Error(), "refused") {
		t.Errorf("closed port: %q, %v", handle, err)
	}
	tls := httptest.NewTLSServer(f)
	defer tls.Close()
	b = newIssuer(t, Config{Region: "eu-west-1", Endpoint: tls.URL, AssumeRole: a.cfg.AssumeRole, Now: a.cfg.Now})
	if _, _, err := b.Issue(t.Context(), newOrder(t, b)); !errors.Is(err, broker.ErrIssuerUnavailable) || !strings.Contains(err.Error(), "certificate can't be verified") {
		t.Errorf("unknown certificate: %v", err)
	}
	b = newIssuer(t, Config{Region: "eu-west-1", Endpoint: tls.URL, AssumeRole: a.cfg.AssumeRole, Now: a.cfg.Now, HTTP: tls.Client()})
	if _, _, err := b.Issue(t.Context(), newOrder(t, b)); err != nil {
		t.Errorf("trusted certificate: %v", err)
	}
}

func TestBadOrderMakesNoRequest(t *testing.T) {
	f := newFakeSTS(t)
	a := f.byAssertion(t)
	for name, change := range map[string]func(*broker.Order){
		"no entitlement":  func(o *broker.Order) { o.Entitlement = nil },
		"another issuer":  func(o *broker.Order) { o.Entitlement = &broker.Entitlement{Name: "x", Spec: 1} },
		"no scopes":       func(o *broker.Order) { o.Lease.Scopes = nil },
		"unknown scope":   func(o *broker.Order) { o.Lease.Scopes = []string{"delete"} },
		"no parameter":    func(o *broker.Order) { o.Lease.Parameters = nil },
		"wildcard":        func(o *broker.Order) { o.Lease.Parameters = map[string]string{"prefix": "*"} },
		"expired":         func(o *broker.Order) { o.Lease.Expires = issuertest.Noon },
		"before the keys": func(o *broker.Order) { a.cfg.Now = func() time.Time { return issuertest.Noon.Add(-time.Minute) } },
	} {
		o := newOrder(t, a)
		change(&o)
		if _, handle, err := a.Issue(t.Context(), o); err == nil || string(handle) != nothingIssued {
			t.Errorf("%s: %q, %v", name, handle, err)
		}
		a.cfg.Now = func() time.Time { return issuertest.Noon }
	}
	if f.count() > 0 {
		t.Errorf("%d requests, want none", f.count())
	}
}

func TestConfigCheck(t *testing.T) {
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
			t.Errorf("%s: mistakes at %q, want %q", name, keys, c.want)
		}
	}
}

func TestNewFindsMistakes(t *testing.T) {
	eddsa := openKeys(t, issuertest.Store(t), "EdDSA")
	file := filepath.Join(t.TempDir(), "credentials")
	writeCredentials(t, file, "AKIATEST")
	for want, c := range map[string]Config{
		"region: ":                              {AssumeRole: &AssumeRole{CredentialsFile: file}},
		"there are no signing keys":             {Region: "eu-west-1", WebIdentity: &WebIdentity{Issuer: testIssuer}},
		"STS can't verify EdDSA":                {Region: "eu-west-1", WebIdentity: &WebIdentity{Issuer: testIssuer, Keys: eddsa}},
		`has no profile "missing"`:              {Region: "eu-west-1", AssumeRole: &AssumeRole{CredentialsFile: file, Profile: "missing"}},
		`credentials-x has no profile "def`:     {Region: "eu-west-1", AssumeRole: &AssumeRole{CredentialsFile: file + "-x"}},
		`there is no profile "no-such-profile"`: {Region: "eu-west-1", AssumeRole: &AssumeRole{Profile: "no-such-profile"}},
	} {
		if _, err := New(c); err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "own-secret") {
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
