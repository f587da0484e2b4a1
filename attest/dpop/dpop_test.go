package dpop

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/hmac"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/tls"
	"encoding/base64"
	"encoding/json"
	"errors"
	"maps"
	"math/big"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"accessbroker.internal/audit"
	"accessbroker.internal/broker"
)

const external = "https://broker.acme.test/base"

var noon = time.Date(2026, 11, 29, 12, 0, 30, 0, time.UTC)

func newVerifier(t testing.TB, issuer string, secrets ...byte) *Verifier {
	t.Helper()
	u, err := url.Parse(issuer)
	if err != nil {
		t.Fatal(err)
	}
	cfg := Config{External: u}
	for _, b := range secrets {
		secret := make([]byte, 32)
		secret[0] = b
		cfg.Secrets = append(cfg.Secrets, secret)
	}
	v, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// A client makes proofs, also wrong ones.
type client struct {
	signer crypto.Signer
	alg    string
	jwk    map[string]any
}

func encode(b []byte) string { return base64.RawURLEncoding.EncodeToString(b) }

func newClient(t testing.TB, alg string) client {
	t.Helper()
	must := func(err error) {
		if err != nil {
			t.Fatal(err)
		}
	}
	switch alg {
	case "ES256":
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		must(err)
		point, err := key.PublicKey.Bytes()
		must(err)
		return client{key, alg, map[string]any{"kty": "EC", "crv": "P-256", "x": encode(point[1:33]), "y": encode(point[33:])}}
	case "Ed25519", "EdDSA":
		public, key, err := ed25519.GenerateKey(rand.Reader)
		must(err)
		return client{key, alg, map[string]any{"kty": "OKP", "crv": "Ed25519", "x": encode(public)}}
	}
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	must(err)
	return client{key, alg, map[string]any{"kty": "RSA", "n": encode(key.N.Bytes()), "e": encode(big.NewInt(int64(key.E)).Bytes())}}
}

func (c client) header() map[string]any {
	return map[string]any{"typ": "dpop+jwt", "alg": c.alg, "jwk": c.jwk}
}

func claims(nonce string) map[string]any {
	return map[string]any{"jti": rand.Text(), "htm": "POST", "htu": external + "/oauth2/token", "iat": noon.Unix(), "nonce": nonce}
}

func (c client) sign(t testing.TB, header, claims map[string]any) string {
	t.Helper()
	h, err := json.Marshal(header)
	if err != nil {
		t.Fatal(err)
	}
	p, err := json.Marshal(claims)
	if err != nil {
		t.Fatal(err)
	}
	return c.signText(t, encode(h)+"."+encode(p))
}

func (c client) signText(t testing.TB, text string) string {
	t.Helper()
	digest := sha256.Sum256([]byte(text))
	var signature []byte
	var err error
	switch key := c.signer.(type) {
	case *ecdsa.PrivateKey:
		var r, s *big.Int
		r, s, err = ecdsa.Sign(rand.Reader, key, digest[:])
		signature = append(r.FillBytes(make([]byte, 32)), s.FillBytes(make([]byte, 32))...)
	case ed25519.PrivateKey:
		signature = ed25519.Sign(key, []byte(text))
	case *rsa.PrivateKey:
		if c.alg == "RS256" {
			signature, err = rsa.SignPKCS1v15(rand.Reader, key, crypto.SHA256, digest[:])
		} else {
			signature, err = rsa.SignPSS(rand.Reader, key, crypto.SHA256, digest[:], &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash})
		}
	}
	if err != nil {
		t.Fatal(err)
	}
	return text + "." + encode(signature)
}

// request returns a request as the broker's handlers get it, behind a proxy that removed the
// path of the external URL.
func request(proofs ...string) *http.Request {
	r := httptest.NewRequest("POST", "https://broker.acme.test/oauth2/token", nil)
	r.RequestURI = "/oauth2/token"
	r.TLS = &tls.ConnectionState{}
	for _, p := range proofs {
		r.Header.Add("DPoP", p)
	}
	return r
}

func wantRefusal(t *testing.T, name string, err, sentinel error, detail string) {
	t.Helper()
	var refusal *broker.Refusal
	if !errors.As(err, &refusal) || refusal.Err != sentinel || !strings.Contains(refusal.Detail, detail) {
		t.Errorf("%s: got %v, want %v with %q", name, err, sentinel, detail)
	}
}

func TestEveryAlgorithmIsAccepted(t *testing.T) {
	v := newVerifier(t, external, 1)
	for _, alg := range Algorithms() {
		c := newClient(t, alg)
		proof, err := v.Check(request(c.sign(t, c.header(), claims(v.Nonce(noon)))), noon)
		if err != nil || proof.Key.IsZero() || proof.Once.IsZero() || !proof.Until.After(noon) {
			t.Errorf("%s: got %+v, %v", alg, proof, err)
		}
	}
	if proof, err := v.Check(request(), noon); err != nil || proof != (Proof{}) {
		t.Errorf("without a proof: got %+v, %v", proof, err)
	}
}

// The thumbprint is that of RFC 9449, section 6.1, for the key of its examples.
func TestThumbprintOfTheRFC(t *testing.T) {
	p, err := new(headers).parse("eyJ0eXAiOiJkcG9wK2p3dCIsImFsZyI6IkVTMjU2IiwiandrIjp7Imt0eSI6IkVDIiwieCI6Imw4dEZyaHgtMzR0VjNoUklDUkRZOXpDa0RscEJoRjQyVVFVZldWQVdCRnMiLCJ5IjoiOVZFNGpmX09rX282NHpiVFRsY3VOSmFqSG10NnY5VERWclUwQ2R2R1JEQSIsImNydiI6IlAtMjU2In19.eyJqdGkiOiItQndDM0VTYzZhY2MybFRjIiwiaHRtIjoiUE9TVCIsImh0dSI6Imh0dHBzOi8vc2VydmVyLmV4YW1wbGUuY29tL3Rva2VuIiwiaWF0IjoxNTYyMjYyNjE2fQ.2-GxA6T8lP4vfrg8v-FdWP0A0zdrj8igiMLvqRMUvwnQg4PtFLbdLXiOSsX0x7NVY-FNyJK70nfbV37xRZT3Lg")
	if err != nil {
		t.Fatal(err)
	}
	if got, want := encode(p.thumbprint[:]), "0ZcOCORZNYy-DWpqq30jZyJGHTN0d2HglBV3uiguA4I"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	if p.id != "-BwC3ESc6acc2lTc" || p.method != "POST" || p.target != "https://server.example.com/token" || p.issued.Unix() != 1562262616 {
		t.Errorf("got %+v", p)
	}
}

func TestForgedProofsAreRefused(t *testing.T) {
	v := newVerifier(t, external, 1)
	c, other := newClient(t, "ES256"), newClient(t, "ES256")
	weak, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	with := func(m map[string]any, name string, value any) map[string]any {
		m = maps.Clone(m)
		if m[name] = value; value == nil {
			delete(m, name)
		}
		return m
	}
	good := func() map[string]any { return claims(v.Nonce(noon)) }
	hmacKey := func() string {
		h := with(c.header(), "alg", "HS256")
		raw, _ := json.Marshal(h)
		body, _ := json.Marshal(good())
		text := encode(raw) + "." + encode(body)
		mac := hmac.New(sha256.New, []byte(c.jwk["x"].(string)))
		mac.Write([]byte(text))
		return text + "." + encode(mac.Sum(nil))
	}
	unsigned := func() string {
		signed := c.sign(t, with(c.header(), "alg", "none"), good())
		return signed[:strings.LastIndexByte(signed, '.')+1]
	}
	repeated := func() string {
		raw, _ := json.Marshal(c.header())
		body, _ := json.Marshal(good())
		return c.signText(t, encode(raw)+"."+encode([]byte(strings.Replace(string(body), `"htm"`, `"htm":"GET","htm"`, 1))))
	}
	for name, test := range map[string]struct{ proof, detail string }{
		"another key signed":     {other.sign(t, c.header(), good()), "signature"},
		"no algorithm":           {unsigned(), "empty"},
		"alg none":               {c.sign(t, with(c.header(), "alg", "none"), good()), "alg"},
		"alg HS256":              {hmacKey(), "alg"},
		"alg ES384":              {c.sign(t, with(c.header(), "alg", "ES384"), good()), "alg"},
		"alg of another key":     {c.sign(t, with(c.header(), "alg", "RS256"), good()), "does not fit"},
		"no alg":                 {c.sign(t, with(c.header(), "alg", nil), good()), "alg"},
		"typ JWT":                {c.sign(t, with(c.header(), "typ", "JWT"), good()), "typ"},
		"typ in other case":      {c.sign(t, with(c.header(), "typ", "DPoP+jwt"), good()), "typ"},
		"no typ":                 {c.sign(t, with(c.header(), "typ", nil), good()), "typ"},
		"crit":                   {c.sign(t, with(c.header(), "crit", []string{"b64"}), good()), "crit"},
		"no jwk":                 {c.sign(t, with(c.header(), "jwk", nil), good()), "jwk"},
		"jwk is a text":          {c.sign(t, with(c.header(), "jwk", "x"), good()), "jwk"},
		"private part":           {c.sign(t, with(c.header(), "jwk", with(c.jwk, "d", encode(make([]byte, 32)))), good()), "private key"},
		"private part, empty":    {c.sign(t, with(c.header(), "jwk", with(c.jwk, "d", "")), good()), "private key"},
		"symmetric key":          {c.sign(t, with(c.header(), "jwk", map[string]any{"kty": "oct", "k": "AAAA"}), good()), "jwk"},
		"point off the curve":    {c.sign(t, with(c.header(), "jwk", with(c.jwk, "y", c.jwk["x"])), good()), "curve"},
		"short modulus":          {client{weak, "RS256", nil}.sign(t, map[string]any{"typ": "dpop+jwt", "alg": "RS256", "jwk": map[string]any{"kty": "RSA", "e": "AQAB", "n": encode(weak.N.Bytes()[:128])}}, good()), "jwk"},
		"key for encryption":     {c.sign(t, with(c.header(), "jwk", with(c.jwk, "use", "enc")), good()), "use"},
		"a member twice":         {repeated(), "twice"},
		"no jti":                 {c.sign(t, c.header(), with(good(), "jti", nil)), "jti"},
		"empty jti":              {c.sign(t, c.header(), with(good(), "jti", "")), "jti"},
		"jti is a number":        {c.sign(t, c.header(), with(good(), "jti", 7)), "jti"},
		"long jti":               {c.sign(t, c.header(), with(good(), "jti", strings.Repeat("x", maxID+1))), "jti"},
		"another method":         {c.sign(t, c.header(), with(good(), "htm", "GET")), "htm"},
		"method in other case":   {c.sign(t, c.header(), with(good(), "htm", "post")), "htm"},
		"no htm":                 {c.sign(t, c.header(), with(good(), "htm", nil)), "htm"},
		"another path":           {c.sign(t, c.header(), with(good(), "htu", external+"/oauth2/introspect")), "htu"},
		"another host":           {c.sign(t, c.header(), with(good(), "htu", "https://evil.test/base/oauth2/token")), "htu"},
		"another scheme":         {c.sign(t, c.header(), with(good(), "htu", "http://broker.acme.test/base/oauth2/token")), "htu"},
		"another port":           {c.sign(t, c.header(), with(good(), "htu", "https://broker.acme.test:8443/base/oauth2/token")), "htu"},
		"user in the URL":        {c.sign(t, c.header(), with(good(), "htu", "https://broker.acme.test@evil.test/base/oauth2/token")), "htu"},
		"relative URL":           {c.sign(t, c.header(), with(good(), "htu", "/base/oauth2/token")), "htu"},
		"no htu":                 {c.sign(t, c.header(), with(good(), "htu", nil)), "htu"},
		"no iat":                 {c.sign(t, c.header(), with(good(), "iat", nil)), "iat"},
		"iat is a text":          {c.sign(t, c.header(), with(good(), "iat", "1")), "iat"},
		"clock an hour behind":   {c.sign(t, c.header(), with(good(), "iat", noon.Add(-time.Hour).Unix())), "clock"},
		"clock an hour ahead":    {c.sign(t, c.header(), with(good(), "iat", noon.Add(time.Hour).Unix())), "clock"},
		"a year ahead":           {c.sign(t, c.header(), with(good(), "iat", int64(1)<<62)), "iat"},
		"10 KB":                  {c.sign(t, c.header(), with(good(), "pad", strings.Repeat("x", 10<<10))), "longer"},
		"padding":                {c.sign(t, c.header(), good()) + "=", "base64url"},
		"four parts":             {c.sign(t, c.header(), good()) + ".x", "three parts"},
		"two proofs in one line": {c.sign(t, c.header(), good()) + ", " + c.sign(t, c.header(), good()), "three parts"},
		"empty":                  {"", "three parts"},
	} {
		proof, err := v.Check(request(test.proof), noon)
		wantRefusal(t, name, err, broker.ErrInvalidDPoP, test.detail)
		if proof != (Proof{}) {
			t.Errorf("%s: got the key %v", name, proof.Key)
		}
	}
	_, err = v.Check(request(c.sign(t, c.header(), good()), c.sign(t, c.header(), good())), noon)
	wantRefusal(t, "two headers", err, broker.ErrInvalidDPoP, "more than one")
}

// With a nonce, a clock may be off by minutes.
func TestNonceDatesTheProof(t *testing.T) {
	v := newVerifier(t, external, 1)
	c := newClient(t, "ES256")
	for _, off := range []time.Duration{-9 * time.Minute, 9 * time.Minute} {
		body := claims(v.Nonce(noon))
		body["iat"] = noon.Add(off).Unix()
		if _, err := v.Check(request(c.sign(t, c.header(), body)), noon); err != nil {
			t.Errorf("a clock that is off by %s: %v", off, err)
		}
	}
}

func TestNonces(t *testing.T) {
	v := newVerifier(t, external, 1)
	c := newClient(t, "ES256")
	check := func(by *Verifier, nonce string, now time.Time) error {
		body := claims(nonce)
		if body["iat"] = now.Unix(); nonce == "" {
			delete(body, "nonce")
		}
		r := request(c.sign(t, c.header(), body))
		_, err := by.Check(r, now)
		return err
	}
	wantRefusal(t, "no nonce", check(v, "", noon), broker.ErrUseDPoPNonce, "no nonce")
	for name, nonce := range map[string]string{
		"a nonce of another broker": newVerifier(t, "https://other.test", 1).Nonce(noon), "a nonce of other keys": newVerifier(t, external, 2).Nonce(noon),
		"a made-up nonce": "x", "a nonce of another minute with this MAC": v.Nonce(noon.Add(nonceStep))[:6] + v.Nonce(noon)[6:], "a long nonce": v.Nonce(noon) + "AAAA",
		"an expired nonce": v.Nonce(noon.Add(-nonceLasts)), "a nonce of the future": v.Nonce(noon.Add(2 * nonceStep)),
	} {
		wantRefusal(t, name, check(v, nonce, noon), broker.ErrUseDPoPNonce, "nonce")
	}
	if v.Nonce(noon) == v.Nonce(noon.Add(nonceStep)) {
		t.Error("nonces do not rotate")
	}
	// Another replica, with a clock that is a minute behind and a new first key.
	replica := newVerifier(t, external, 2, 1)
	for at := noon; at.Before(noon.Add(nonceSteps * nonceStep)); at = at.Add(nonceStep) {
		if err := check(replica, v.Nonce(noon), at); err != nil {
			t.Errorf("a nonce of another replica after %s: %v", at.Sub(noon), err)
		}
	}
	if err := check(replica, v.Nonce(noon.Add(nonceStep)), noon); err != nil {
		t.Errorf("a nonce of a replica whose clock is ahead: %v", err)
	}
	// Which proofs were used before a restore is lost: none of them is accepted afterwards.
	restored, err := New(Config{External: v.external, Secrets: [][]byte{append([]byte{1}, make([]byte, 31)...)}, Restored: noon})
	if err != nil {
		t.Fatal(err)
	}
	wantRefusal(t, "a nonce from before a restore", check(restored, v.Nonce(noon), noon), broker.ErrUseDPoPNonce, "nonce")
	if err := check(restored, restored.Nonce(noon), noon); err != nil {
		t.Errorf("a nonce from after a restore: %v", err)
	}
	_, err = New(Config{External: v.external})
	if err == nil {
		t.Error("a verifier without secrets was made")
	}
}

// Every spelling of the URL that RFC 9449, section 4.3, lets a server accept, through every
// way to the broker.
func TestTargets(t *testing.T) {
	v := newVerifier(t, external, 1)
	at := func(host, requestURI, path string, secure bool) *http.Request {
		r := httptest.NewRequest("POST", "https://x.test"+path, nil)
		r.Host, r.RequestURI, r.TLS = host, requestURI, nil
		if secure {
			r.TLS = &tls.ConnectionState{}
		}
		return r
	}
	direct := at("broker.acme.test", "/base/oauth2/token", "/oauth2/token", true)
	for name, test := range map[string]struct {
		r    *http.Request
		htu  string
		want bool
	}{
		"as it is":              {direct, external + "/oauth2/token", true},
		"with a query":          {direct, external + "/oauth2/token?x=1", true},
		"with a fragment":       {direct, external + "/oauth2/token#x", true},
		"default port":          {direct, "https://broker.acme.test:443/base/oauth2/token", true},
		"empty port":            {direct, "https://broker.acme.test:/base/oauth2/token", true},
		"upper case":            {direct, "HTTPS://Broker.ACME.test/base/oauth2/token", true},
		"dot segments":          {direct, "https://broker.acme.test/base/x/../oauth2/./token", true},
		"escaped letters":       {direct, "https://broker.acme.test/base/%6fauth2/toke%6E", true},
		"an escaped slash":      {direct, "https://broker.acme.test/base/oauth2%2Ftoken", false},
		"path in other case":    {direct, "https://broker.acme.test/base/OAuth2/token", false},
		"a trailing slash":      {direct, external + "/oauth2/token/", false},
		"a proxy's other host":  {at("10.0.0.7:8443", "/oauth2/token", "/oauth2/token", true), external + "/oauth2/token", true},
		"directly by address":   {at("10.0.0.7:8443", "/oauth2/token", "/oauth2/token", true), "https://10.0.0.7:8443/oauth2/token", true},
		"by address, no port":   {at("10.0.0.7:8443", "/oauth2/token", "/oauth2/token", true), "https://10.0.0.7/oauth2/token", false},
		"loopback without TLS":  {at("127.0.0.1:8080", "/oauth2/token", "/oauth2/token", false), "http://127.0.0.1:8080/oauth2/token", true},
		"TLS of a proxy":        {at("broker.internal.test", "/oauth2/token", "/oauth2/token", false), "https://broker.internal.test/oauth2/token", true},
		"plain HTTP over TLS":   {direct, "http://broker.acme.test/base/oauth2/token", false},
		"IPv6":                  {at("[::1]:8443", "/oauth2/token", "/oauth2/token", true), "https://[::1]:8443/oauth2/token", true},
		"query of the request":  {at("broker.acme.test", "/base/oauth2/token?a=b", "/oauth2/token", true), external + "/oauth2/token", true},
		"user":                  {direct, "https://x@broker.acme.test/base/oauth2/token", false},
		"opaque":                {direct, "https:broker.acme.test/base/oauth2/token", false},
		"not a URL":             {direct, "https://broker.acme.test/%zz", false},
		"a proxy's short path":  {at("broker.acme.test", "/oauth2/token", "/oauth2/token", false), external + "/oauth2/token", true},
		"another service":       {at("broker.acme.test", "/oauth2/token", "/oauth2/token", false), "https://broker.acme.test/oauth2/token", false},
		"another service, TLS":  {at("Broker.acme.test:443", "/oauth2/token", "/oauth2/token", true), "https://broker.acme.test/oauth2/token", false},
		"another path's prefix": {direct, external + "/oauth2/tokens", false},
		"file":                  {direct, "file://broker.acme.test/base/oauth2/token", false},
	} {
		if got := v.addresses(test.htu, test.r); got != test.want {
			t.Errorf("%s: %q is the URL: got %t, want %t", name, test.htu, got, test.want)
		}
	}
}

// Of many equal proofs at once, one is accepted.
func TestReplayedProofs(t *testing.T) {
	v := newVerifier(t, external, 1)
	c := newClient(t, "ES256")
	proof := c.sign(t, c.header(), claims(v.Nonce(noon)))
	var accepted atomic.Int32
	var all sync.WaitGroup
	for range 16 {
		all.Go(func() {
			if _, err := v.Check(request(proof), noon); err == nil {
				accepted.Add(1)
			}
		})
	}
	all.Wait()
	if n := accepted.Load(); n != 1 {
		t.Errorf("a proof was accepted %d times", n)
	}
	_, err := v.Check(request(proof), noon.Add(nonceSteps*nonceStep-time.Minute))
	wantRefusal(t, "later", err, broker.ErrInvalidDPoP, "used before")
	// Another process has the same name for it, by which the database knows that it is spent.
	again, err := newVerifier(t, external, 1).Check(request(proof), noon)
	if err != nil || again.Once.IsZero() {
		t.Fatal(err)
	}
	other := newClient(t, "ES256")
	body := claims(v.Nonce(noon))
	body["jti"] = "same"
	one, err := v.Check(request(c.sign(t, c.header(), body)), noon)
	if err != nil {
		t.Fatal(err)
	}
	two, err := v.Check(request(other.sign(t, other.header(), body)), noon)
	if err != nil || one.Once == two.Once {
		t.Errorf("two keys with one jti: %v, %v and %v", err, one.Once, two.Once)
	}
}

// A proof is remembered at least as long as its nonce is accepted, and memory is bounded.
func TestSeenProofsAreBounded(t *testing.T) {
	var s seen
	key := func(n int) (k broker.SpentKey) {
		k[0], k[1], k[2] = byte(n), byte(n>>8), byte(n>>16)
		k[31] = 1
		return k
	}
	if !s.add(key(0), noon) || s.add(key(0), noon.Add(nonceLasts-1)) || s.add(key(0), noon.Add(2*nonceLasts-1)) {
		t.Error("a proof was forgotten before its nonce expired")
	}
	for n := range 3 * maxSeen {
		s.add(key(n), noon.Add(2*nonceLasts))
	}
	if len(s.now) > maxSeen || len(s.earlier) > maxSeen {
		t.Errorf("%d and %d proofs are remembered, want at most %d each", len(s.now), len(s.earlier), maxSeen)
	}
}

// A token that is bound to a key needs a proof of that key, for that token.
func TestTokensNeedTheirProof(t *testing.T) {
	v := newVerifier(t, external, 1)
	c, other := newClient(t, "ES256"), newClient(t, "ES256")
	hash := func(token string) string {
		sum := sha256.Sum256([]byte(token))
		return encode(sum[:])
	}
	present := func(by client, names string) *http.Request {
		body := claims(v.Nonce(noon))
		if names != "" {
			body["ath"] = hash(names)
		}
		return request(by.sign(t, by.header(), body))
	}
	first, err := v.Check(present(c, ""), noon)
	if err != nil {
		t.Fatal(err)
	}
	bound := first.Key
	if err := v.CheckToken(present(c, "token"), "token", bound, noon); err != nil {
		t.Error(err)
	}
	for name, test := range map[string]struct {
		r     *http.Request
		bound audit.Digest
	}{
		"no proof": {request(), bound}, "no ath": {present(c, ""), bound}, "ath of another token": {present(c, "other"), bound},
		"proof by another key": {present(other, "token"), bound}, "token without a key": {present(c, "token"), audit.Digest{}},
	} {
		wantRefusal(t, name, v.CheckToken(test.r, "token", test.bound, noon), broker.ErrInvalidDPoP, "")
	}
}

// The parser neither panics nor accepts what it did not verify.
func FuzzProof(f *testing.F) {
	v := newVerifier(f, external, 1)
	for _, alg := range []string{"ES256", "Ed25519", "RS256"} {
		c := newClient(f, alg)
		f.Add(c.sign(f, c.header(), claims(v.Nonce(noon))))
	}
	f.Add("..")
	f.Add("e30.e30.e30")
	f.Fuzz(func(t *testing.T, text string) {
		p, err := new(headers).parse(text)
		if err != nil {
			return
		}
		if len(text) > maxProof || p.thumbprint.IsZero() || p.id == "" || p.method == "" || p.target == "" || strings.Count(text, ".") != 2 {
			t.Errorf("%q was accepted as %+v", text, p)
		}
		_ = v.addresses(p.target, request())
	})
}
