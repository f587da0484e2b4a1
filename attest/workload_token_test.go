package attest

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/hmac"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"accessbroker.internal/attest/mapping"
	"accessbroker.internal/broker"
)

const ciURL = "https://token.actions.githubusercontent.com"

// A tokenKey is a key of an issuer.
type tokenKey struct {
	kid string
	ec  *ecdsa.PrivateKey
	rsa *rsa.PrivateKey
}

func newTokenKey(t testing.TB, kid string) tokenKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	check(t, err)
	return tokenKey{kid: kid, ec: key}
}

// jwk returns the public key.
func (k tokenKey) jwk() map[string]string {
	if k.rsa != nil {
		return map[string]string{"kty": "RSA", "use": "sig", "alg": "RS256", "kid": k.kid, "n": encode(string(k.rsa.N.Bytes())), "e": encode(string(big.NewInt(int64(k.rsa.E)).Bytes()))}
	}
	point, _ := k.ec.PublicKey.Bytes()
	return map[string]string{"kty": "EC", "crv": "P-256", "use": "sig", "alg": "ES256", "kid": k.kid, "x": encode(string(point[1:33])), "y": encode(string(point[33:]))}
}

// keySetOf returns the JWK Set of keys.
func keySetOf(t testing.TB, keys ...tokenKey) string {
	t.Helper()
	list := []map[string]string{}
	for _, k := range keys {
		list = append(list, k.jwk())
	}
	text, err := json.Marshal(map[string]any{"keys": list})
	check(t, err)
	return string(text)
}

// sign returns a token with any header and any payload.
func (k tokenKey) sign(t testing.TB, header, payload string) string {
	t.Helper()
	input := encode(header) + "." + encode(payload)
	digest := sha256.Sum256([]byte(input))
	if k.rsa != nil {
		signature, err := rsa.SignPKCS1v15(rand.Reader, k.rsa, crypto.SHA256, digest[:])
		check(t, err)
		return input + "." + encode(string(signature))
	}
	r, s, err := ecdsa.Sign(rand.Reader, k.ec, digest[:])
	check(t, err)
	return input + "." + encode(string(append(r.FillBytes(make([]byte, 32)), s.FillBytes(make([]byte, 32))...)))
}

func (k tokenKey) header() string { return fmt.Sprintf(`{"typ":"JWT","alg":"ES256","kid":%q}`, k.kid) }

// A workloadWorld has an issuer whose keys are in a file, and a verifier that accepts its
// tokens as well as SVIDs.
type workloadWorld struct {
	*world
	key     tokenKey
	file    string
	issuers *WorkloadIssuers
	now     time.Time
}

// ciConfig is the issuer of the CI service.
func ciConfig(t testing.TB, file string) WorkloadIssuerConfig {
	t.Helper()
	rule, err := mapping.Compile(mapping.Rule{
		Claims:   map[string]mapping.Want{"repository_id": {Values: []mapping.Value{mapping.Text("74")}}, "ref": {Values: []mapping.Value{mapping.Text("refs/heads/main")}}},
		SPIFFEID: "spiffe://ci.acme.test/github/${repository_owner_id}/${repository_id}",
	})
	check(t, err)
	return WorkloadIssuerConfig{
		Name: "github", Issuer: ciURL, Audience: audienceURL, Algorithms: []string{"ES256", "RS256"}, MaxLifetime: time.Hour, JWKSFile: file, Rules: []*mapping.Compiled{rule},
	}
}

func newWorkloadWorld(t testing.TB, more ...WorkloadIssuerConfig) *workloadWorld {
	t.Helper()
	w := &workloadWorld{world: newWorld(t), key: newTokenKey(t, "first"), file: filepath.Join(t.TempDir(), "jwks.json"), now: time.Now()}
	check(t, os.WriteFile(w.file, []byte(keySetOf(t, w.key)), 0o600))
	var err error
	w.issuers, err = NewWorkloadIssuers(append(more, ciConfig(t, w.file))...)
	check(t, err)
	check(t, w.issuers.Refresh(t.Context()))
	w.verifier = NewVerifier(VerifierConfig{Source: w.source, Audiences: []string{audienceURL}, Workloads: w.issuers})
	return w
}

// claims returns the claims of a job's token, with changes; a nil value leaves a claim out.
func (w *workloadWorld) claims(changes map[string]any) string {
	w.t.Helper()
	all := map[string]any{
		"iss": ciURL, "aud": audienceURL, "sub": "repo:acme/shop:ref:refs/heads/main", "jti": rand.Text(), "repository": "acme/shop", "repository_id": "74", "repository_owner_id": "65", "ref": "refs/heads/main",
		"iat": w.now.Unix(), "nbf": w.now.Unix() - 600, "exp": w.now.Unix() + 300,
	}
	maps.Copy(all, changes)
	maps.DeleteFunc(all, func(_ string, v any) bool { return v == nil })
	text, err := json.Marshal(all)
	check(w.t, err)
	return string(text)
}

func (w *workloadWorld) job(changes map[string]any) string {
	return w.key.sign(w.t, w.key.header(), w.claims(changes))
}

func (w *workloadWorld) identify(token string) (broker.Identity, error) {
	return w.verifier.token(w.t.Context(), token, w.now)
}

func TestWorkloadToken(t *testing.T) {
	t.Parallel()
	w := newWorkloadWorld(t)
	token := w.job(nil)
	for range 2 { // the second time, it is remembered
		who, err := w.identify(token)
		if err != nil {
			t.Fatal(err)
		}
		if who.ID != "spiffe://ci.acme.test/github/65/74" || who.TrustDomain != "ci.acme.test" || who.Kind != broker.KindWorkload || who.Attested != broker.AttestedOIDC ||
			who.Proof.Method != broker.MethodOIDCToken || who.Proof.SHA256 != sha256.Sum256([]byte(token)) || who.Proof.Expires.Unix() != w.now.Unix()+300 || len(who.Once) != 1 {
			t.Errorf("got %+v", who)
		}
		if !w.verifier.Cached(token) {
			t.Error("the token is not remembered")
		}
	}
	if _, err := w.verifier.token(t.Context(), token, w.now.Add(5*time.Minute)); causeOf(t, err) != CauseExpired {
		t.Errorf("a remembered token that has expired: got %v", err)
	}
	if who, err := w.identify(w.token(triage, time.Minute)); err != nil || who.ID != triage || who.Attested != broker.AttestedSPIFFE {
		t.Errorf("a JWT-SVID: got %+v, %v", who, err)
	}
	for name, changes := range map[string]map[string]any{
		"a list of one audience": {"aud": []string{audienceURL}},
		"no jti":                 {"jti": nil},
		"no nbf":                 {"nbf": nil},
		"a later nbf in leeway":  {"nbf": w.now.Unix() + 20, "iat": w.now.Unix() + 20},
		"no sub":                 {"sub": nil},
		"unknown claims":         {"x": map[string]any{"y": []any{1, true, nil}}},
		"a null claim":           {"act": json.RawMessage("null")},
	} {
		if _, err := w.identify(w.job(changes)); err != nil {
			t.Errorf("%s: got %v", name, err)
		}
	}
	if who, err := w.identify(w.job(map[string]any{"jti": nil})); err != nil || len(who.Once) != 0 {
		t.Errorf("a token without jti: got %+v, %v", who.Once, err)
	}
}

// Each token is refused, for this cause.
func TestWorkloadTokenAttacks(t *testing.T) {
	t.Parallel()
	w := newWorkloadWorld(t)
	other := newTokenKey(t, "first")
	header := w.key.header()
	mac := func() string {
		input := encode(`{"typ":"JWT","alg":"HS256","kid":"first"}`) + "." + encode(w.claims(nil))
		h := hmac.New(sha256.New, []byte(keySetOf(t, w.key)))
		h.Write([]byte(input))
		return input + "." + encode(string(h.Sum(nil)))
	}
	raw := func(payload string) string { return w.key.sign(t, header, payload) }
	with := func(name string, value any) string { return w.job(map[string]any{name: value}) }
	headed := func(header string) string { return w.key.sign(t, header, w.claims(nil)) }
	good := w.job(nil)
	parts := strings.Split(good, ".")
	now := w.now.Unix()
	for name, c := range map[string]struct {
		token string
		cause Cause
	}{
		"another repository":            {with("repository_id", "75"), CauseRule},
		"a fork":                        {w.job(map[string]any{"repository": "mallory/shop", "repository_id": "99", "repository_owner_id": "13"}), CauseRule},
		"a pull request":                {w.job(map[string]any{"ref": "refs/pull/7/merge", "sub": "repo:acme/shop:pull_request"}), CauseRule},
		"a number for a text":           {with("repository_id", 74), CauseRule},
		"a list with the value":         {with("repository_id", []string{"74"}), CauseRule},
		"a path in a segment":           {with("repository_owner_id", "65/74"), CauseRule},
		"percent signs":                 {with("repository_owner_id", "65%2f74"), CauseRule},
		"dots":                          {with("repository_owner_id", ".."), CauseRule},
		"a look-alike":                  {with("repository_owner_id", "６５"), CauseRule},
		"another audience":              {with("aud", "https://other.acme.test"), CauseAudience},
		"two audiences":                 {with("aud", []string{audienceURL, "https://other.acme.test"}), CauseAudience},
		"one audience twice":            {with("aud", []string{audienceURL, audienceURL}), CauseAudience},
		"no audience":                   {with("aud", nil), CauseAudience},
		"an empty list of audiences":    {with("aud", []string{}), CauseAudience},
		"an audience in another case":   {with("aud", strings.ToUpper(audienceURL)), CauseAudience},
		"an audience with a slash":      {with("aud", audienceURL+"/"), CauseAudience},
		"an object as audience":         {with("aud", map[string]any{"a": audienceURL}), CauseAudience},
		"an issuer with a slash":        {with("iss", ciURL+"/"), CauseIssuer},
		"an issuer in another case":     {with("iss", "https://Token.actions.githubusercontent.com"), CauseIssuer},
		"an issuer with a port":         {with("iss", ciURL+":443"), CauseIssuer},
		"an issuer below":               {with("iss", ciURL+"/acme"), CauseIssuer},
		"a list as issuer":              {with("iss", []string{ciURL}), CauseIssuer},
		"no issuer":                     {with("iss", nil), CauseIssuer},
		"expired":                       {w.job(map[string]any{"exp": now, "iat": now - 300}), CauseExpired},
		"expired since long":            {w.job(map[string]any{"exp": now - 1, "iat": now - 300}), CauseExpired},
		"not valid yet":                 {with("nbf", now+31), CauseNotYetValid},
		"issued in the future":          {with("iat", now+31), CauseNotYetValid},
		"valid for too long":            {with("exp", now+3600+31), CauseLifetime},
		"expires before it was issued":  {w.job(map[string]any{"iat": now + 10, "exp": now + 10}), CauseLifetime},
		"no exp":                        {with("exp", nil), CauseMalformed},
		"no iat":                        {with("iat", nil), CauseMalformed},
		"exp is a text":                 {with("exp", fmt.Sprint(now+300)), CauseMalformed},
		"exp is beyond any date":        {with("exp", 1e300), CauseMalformed},
		"a negative iat":                {with("iat", -1), CauseMalformed},
		"nbf is a text":                 {with("nbf", "now"), CauseMalformed},
		"jti is a number":               {with("jti", 7), CauseMalformed},
		"an empty jti":                  {with("jti", ""), CauseMalformed},
		"a long jti":                    {with("jti", strings.Repeat("j", 513)), CauseMalformed},
		"sub is a number":               {with("sub", 7), CauseMalformed},
		"an ID token of a login":        {with("nonce", "n"), CauseType},
		"a logout token":                {with("events", map[string]any{}), CauseType},
		"someone who acts":              {with("act", map[string]any{"sub": "x"}), CauseType},
		"a key-bound token":             {with("cnf", map[string]any{"jkt": "x"}), CauseType},
		"an access token":               {headed(`{"typ":"at+jwt","alg":"ES256","kid":"first"}`), CauseType},
		"an ID-JAG":                     {headed(`{"typ":"oauth-id-jag+jwt","alg":"ES256","kid":"first"}`), CauseType},
		"alg none":                      {encode(`{"typ":"JWT","alg":"none"}`) + "." + encode(w.claims(nil)) + ".", CauseAlgorithm},
		"alg None":                      {encode(`{"typ":"JWT","alg":"None","kid":"first"}`) + "." + encode(w.claims(nil)) + ".AA", CauseAlgorithm},
		"no alg":                        {headed(`{"typ":"JWT","kid":"first"}`), CauseAlgorithm},
		"a MAC with the public key":     {mac(), CauseAlgorithm},
		"an algorithm off the list":     {headed(`{"typ":"JWT","alg":"ES384","kid":"first"}`), CauseAlgorithm},
		"RS256 with a key for ES256":    {headed(`{"typ":"JWT","alg":"RS256","kid":"first"}`), CauseSignature},
		"another key with the same kid": {other.sign(t, header, w.claims(nil)), CauseSignature},
		"an unknown kid":                {headed(`{"typ":"JWT","alg":"ES256","kid":"second"}`), CauseSignature},
		"a kid that is a path":          {headed(`{"typ":"JWT","alg":"ES256","kid":"../../../etc/passwd"}`), CauseSignature},
		"a key in the header":           {other.sign(t, `{"typ":"JWT","alg":"ES256","jwk":`+jsonOf(t, other.jwk())+`}`, w.claims(nil)), CauseSignature},
		"a changed payload":             {parts[0] + "." + encode(w.claims(nil)) + "." + parts[2], CauseSignature},
		"no signature":                  {parts[0] + "." + parts[1] + ".", CauseSignature},
		"a SPIFFE ID as sub":            {with("sub", triage), CauseUnknownKey},
		"a SPIFFE ID of its own domain": {with("sub", "spiffe://ci.acme.test/github/65/74"), CauseTrustDomain},
		"a SPIFFE ID in capitals":       {with("sub", "SPIFFE://acme.test/agent/triage"), CauseSPIFFEID},
		"a kid that is a number":        {headed(`{"typ":"JWT","alg":"ES256","kid":7}`), CauseMalformed},
		"a critical extension":          {headed(`{"typ":"JWT","alg":"ES256","kid":"first","crit":["b64"],"b64":false}`), CauseMalformed},
		"a header twice":                {headed(`{"typ":"JWT","alg":"ES256","kid":"first","kid":"first"}`), CauseMalformed},
		"a claim twice":                 {raw(strings.Replace(w.claims(nil), `{`, `{"repository_id":"75",`, 1)), CauseMalformed},
		"a nested claim twice":          {raw(strings.Replace(w.claims(nil), `{`, `{"x":{"a":1,"a":2},`, 1)), CauseMalformed},
		"an escaped claim twice":        {raw(strings.Replace(w.claims(nil), `{`, `{"repository\u005fid":"74",`, 1)), CauseMalformed},
		"text that is not Unicode":      {raw(strings.Replace(w.claims(nil), `{`, `{"x":"\ud800",`, 1)), CauseMalformed},
		"nested too deeply":             {raw(strings.Replace(w.claims(nil), `{`, `{"x":`+strings.Repeat("[", 20)+strings.Repeat("]", 20)+`,`, 1)), CauseMalformed},
		"a list as payload":             {raw(`[` + w.claims(nil) + `]`), CauseMalformed},
		"text after the payload":        {raw(w.claims(nil) + `{}`), CauseMalformed},
		"padding":                       {parts[0] + "=." + parts[1] + "." + parts[2], CauseMalformed},
		"a line end":                    {parts[0] + "\n." + parts[1] + "." + parts[2], CauseMalformed},
		"four parts":                    {good + ".x", CauseMalformed},
		"two parts":                     {parts[0] + "." + parts[1], CauseMalformed},
		"nothing":                       {"..", CauseMalformed},
		"larger than 16 KiB":            {with("x", strings.Repeat("x", 16<<10)), CauseOversized},
	} {
		who, err := w.identify(c.token)
		if got := causeOf(t, err); got != c.cause || who.ID != "" {
			t.Errorf("%s: got %q (%v) for %q, want %q", name, got, err, who.ID, c.cause)
		}
		if w.verifier.Cached(c.token) {
			t.Errorf("%s: a refused token is remembered", name)
		}
	}
	if _, err := w.identify(good); err != nil {
		t.Errorf("the good token: %v", err)
	}
}

func jsonOf(t testing.TB, v any) string {
	t.Helper()
	text, err := json.Marshal(v)
	check(t, err)
	return string(text)
}

// A token proves its issuer by name: one that shares its key with another cannot speak for it.
func TestIssuersWithOneKey(t *testing.T) {
	t.Parallel()
	twin := ciConfig(t, "")
	rule, err := mapping.Compile(mapping.Rule{Claims: map[string]mapping.Want{"role": {Values: []mapping.Value{mapping.Text("admin")}}}, SPIFFEID: "spiffe://ci.acme.test/admin"})
	check(t, err)
	twin.Name, twin.Issuer, twin.Rules = "twin", "https://twin.acme.test", []*mapping.Compiled{rule}
	shared := filepath.Join(t.TempDir(), "twin.json")
	twin.JWKSFile = shared
	key := newTokenKey(t, "first")
	check(t, os.WriteFile(shared, []byte(keySetOf(t, key)), 0o600))
	w := newWorkloadWorld(t, twin)
	check(t, os.WriteFile(w.file, []byte(keySetOf(t, key)), 0o600))
	w.key = key
	w.issuers.byURL[ciURL].keys.Reset()
	check(t, w.issuers.Refresh(t.Context()))
	if who, err := w.identify(w.job(map[string]any{"iss": "https://twin.acme.test", "role": "admin"})); err != nil || who.ID != "spiffe://ci.acme.test/admin" {
		t.Fatalf("got %+v, %v", who, err)
	}
	for name, changes := range map[string]map[string]any{
		"the claims of the twin":  {"repository_id": "1", "role": "admin"},
		"the issuer of the twin":  {"iss": "https://twin.acme.test"},
		"both names":              {"iss": []string{ciURL, "https://twin.acme.test"}, "role": "admin"},
		"the name with a newline": {"iss": "https://twin.acme.test\n", "role": "admin"},
	} {
		if who, err := w.identify(w.job(changes)); err == nil {
			t.Errorf("%s: got %s", name, who.ID)
		}
	}
}

// A key that the issuer withdraws is not accepted any longer, also for a token that was
// verified with it before.
func TestWithdrawnKeyOfIssuer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorkloadWorld(t)
		go func() { _ = w.issuers.Run(t.Context()) }()
		time.Sleep(time.Second)
		w.now = time.Now()
		old := w.job(nil)
		if _, err := w.identify(old); err != nil {
			t.Fatal(err)
		}
		first := w.key
		forged := newTokenKey(t, "forged")
		for range 3 {
			if _, err := w.identify(forged.sign(t, forged.header(), w.claims(nil))); causeOf(t, err) != CauseSignature {
				t.Errorf("a forged token: got %v", err)
			}
		}
		time.Sleep(unknownKeyRest)
		w.now = time.Now()
		w.key = newTokenKey(t, "second")
		check(t, os.WriteFile(w.file, []byte(keySetOf(t, w.key)), 0o600))
		if _, err := w.identify(w.job(nil)); err != nil {
			t.Errorf("a key that was just published: %v", err)
		}
		time.Sleep(2 * fileInterval)
		w.now = time.Now()
		if _, err := w.identify(old); causeOf(t, err) != CauseSignature {
			t.Errorf("a remembered token of a withdrawn key: got %v", err)
		}
		if _, err := w.identify(first.sign(t, first.header(), w.claims(nil))); causeOf(t, err) != CauseSignature {
			t.Errorf("a new token of a withdrawn key: got %v", err)
		}
		check(t, os.WriteFile(w.file, []byte("<html>garbage</html>"), 0o600))
		time.Sleep(10 * time.Minute)
		w.now = time.Now()
		if _, err := w.identify(w.job(nil)); err != nil {
			t.Errorf("the last keys are not trusted for a while: %v", err)
		}
		if w.issuers.Degraded() == nil {
			t.Error("the broken file is not shown")
		}
		time.Sleep(time.Hour)
		w.now = time.Now()
		if _, err := w.identify(w.job(nil)); !errors.Is(err, broker.ErrUnavailable) {
			t.Errorf("keys that are too old: got %v", err)
		}
	})
}
