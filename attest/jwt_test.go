package attest

import (
	"crypto/hmac"
	"crypto/sha256"
	"crypto/x509"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"accessbroker.internal/broker"
	"accessbroker.internal/internal/strictjson"
)

func TestJWT(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	token := w.token(triage, 5*time.Minute)
	for range 2 { // verified, then cached
		who, err := w.verifier.JWT(token, time.Now())
		check(t, err)
		if who.ID != triage || who.TrustDomain != "acme.test" || who.Kind != broker.KindWorkload ||
			!slices.Equal(who.Paths, []string{triage, "spiffe://acme.test/agent"}) {
			t.Errorf("got identity %+v", who)
		}
		p := who.Proof
		if p.Method != broker.MethodJWTSVID || p.SHA256 != sha256.Sum256([]byte(token)) || !p.Valid(time.Now()) || time.Until(p.Expires) > 5*time.Minute {
			t.Errorf("got proof %+v", p)
		}
	}
	if n := w.failures(); n != nil {
		t.Errorf("got failures %v", n)
	}
}

// A form is a token, usually malformed. %k stands for the kid of a valid key, and
// %n+5 for five seconds from now.
type form struct {
	name, header, claims string
	want                 Cause
}

const (
	goodHeader = `{"alg":"ES256","kid":"%k","typ":"JWT"}`
	goodClaims = `{"sub":"spiffe://acme.test/agent/triage","aud":"https://broker.acme.test","iat":%n,"exp":%n+60}`
)

// claims returns goodClaims with one part replaced.
func claims(old, fresh string) string {
	if !strings.Contains(goodClaims, old) {
		panic(old)
	}
	return strings.Replace(goodClaims, old, fresh, 1)
}

// many returns n claims.
func many(n int) string {
	list := make([]string, n)
	for i := range list {
		list[i] = fmt.Sprintf(`"c%d":%d`, i, i)
	}
	return strings.Join(list, ",")
}

func header(rest string) string { return `{"alg":"ES256","kid":"%k"` + rest + `}` }

var forms = []form{
	{"good", goodHeader, goodClaims, ""},
	{"no typ", header(""), goodClaims, ""},
	{"typ JOSE", header(`,"typ":"JOSE"`), goodClaims, ""},
	{"list of one audience", goodHeader, claims(`"https://broker.acme.test"`, `["https://broker.acme.test"]`), ""},
	{"nbf and iat within the leeway", goodHeader, claims(`%n,`, `%n+25,"nbf":%n+25,`), ""},
	{"no iat", goodHeader, claims(`"iat":%n,`, ``), ""},
	{"other claims", goodHeader, claims(`"iat"`, `"a":{"b":[{"c":1},{"c":1}]},"iat"`), ""},

	{"fractions", goodHeader, claims(`%n,"exp":%n+60`, `%n.25,"nbf":%n.5,"exp":%n+60.75`), ""},
	{"exponents", goodHeader, claims(`%n`, `1.7e9`), ""},
	{"one hour, by a clock that is ahead", goodHeader, claims(`%n,"exp":%n+60`, `%n+5,"exp":%n+3605`), ""},
	{"a whole character", goodHeader, claims(`{`, `{"a":"\ud83d\ude00 \\ud800 \n",`), ""},
	{"many claims", goodHeader, claims(`{`, `{`+many(200)+`,`), ""},

	{"expired", goodHeader, claims(`%n+60`, `%n-1`), CauseExpired},
	{"expired this second", goodHeader, claims(`%n+60`, `%n+0`), CauseExpired},
	{"nbf to come", goodHeader, claims(`"iat":%n`, `"nbf":%n+35`), CauseNotYetValid},
	{"iat to come", goodHeader, claims(`"iat":%n`, `"iat":%n+35`), CauseNotYetValid},
	{"two hours", goodHeader, claims(`%n+60`, `%n+7200`), CauseLifetime},
	{"no exp", goodHeader, claims(`,"exp":%n+60`, ``), CauseMalformed},
	{"exp null", goodHeader, claims(`%n+60`, `null`), CauseMalformed},
	{"exp text", goodHeader, claims(`%n+60`, `"%n+60"`), CauseMalformed},
	{"exp exponent", goodHeader, claims(`%n+60`, `9e9`), CauseLifetime},
	{"exp fraction of this second", goodHeader, claims(`%n+60`, `%n.999999`), CauseExpired},
	{"exp hexadecimal", goodHeader, claims(`%n+60`, `0x7fffffff`), CauseMalformed},
	{"exp infinite", goodHeader, claims(`%n+60`, `1e999`), CauseMalformed},
	{"iat fraction to come", goodHeader, claims(`"iat":%n`, `"iat":%n+31.5`), CauseNotYetValid},
	{"iat negative", goodHeader, claims(`"iat":%n`, `"iat":-1.5`), CauseMalformed},
	{"iat null", goodHeader, claims(`"iat":%n`, `"iat":null`), CauseMalformed},
	{"a number beyond every parser", goodHeader, claims(`{`, `{"a":[1e999],`), CauseMalformed},
	{"half a character", goodHeader, claims(`{`, `{"a":"\ud800",`), CauseMalformed},
	{"the other half of a character", goodHeader, claims(`{`, `{"a":{"\udc00":1},`), CauseMalformed},
	{"two first halves of a character", goodHeader, claims(`{`, `{"a":"\ud83d\ud83d\ude00",`), CauseMalformed},
	{"exp too large", goodHeader, claims(`%n+60`, `99999999999999999999`), CauseMalformed},
	{"exp negative", goodHeader, claims(`%n+60`, `-1`), CauseMalformed},
	{"nbf text", goodHeader, claims(`"iat":%n`, `"nbf":"%n"`), CauseMalformed},

	{"wrong audience", goodHeader, claims(`https://broker.acme.test`, `https://other.acme.test`), CauseAudience},
	{"two audiences", goodHeader, claims(`"https://broker.acme.test"`, `["https://broker.acme.test","x"]`), CauseAudience},
	{"one audience twice", goodHeader, claims(`"https://broker.acme.test"`, `["https://broker.acme.test","https://broker.acme.test"]`), CauseAudience},
	{"empty audience", goodHeader, claims(`"https://broker.acme.test"`, `[]`), CauseAudience},
	{"no audience", goodHeader, claims(`"aud":"https://broker.acme.test",`, ``), CauseAudience},
	{"nested audience", goodHeader, claims(`"https://broker.acme.test"`, `[["https://broker.acme.test"]]`), CauseAudience},
	{"prefix of the audience", goodHeader, claims(`https://broker.acme.test"`, `https://broker.acme.test/"`), CauseAudience},

	{"other trust domain", goodHeader, claims(`acme.test/agent`, `other.test/agent`), CauseTrustDomain},
	{"longer trust domain", goodHeader, claims(`acme.test/agent`, `acme.test.other.test/agent`), CauseTrustDomain},
	{"no sub", goodHeader, claims(`"sub":"spiffe://acme.test/agent/triage",`, ``), CauseSPIFFEID},
	{"sub not SPIFFE", goodHeader, claims(`spiffe://acme.test/agent/triage`, `ana`), CauseSPIFFEID},
	{"sub a trust domain", goodHeader, claims(`acme.test/agent/triage`, `acme.test`), CauseSPIFFEID},
	{"sub with dots", goodHeader, claims(`agent/triage`, `agent/../operator`), CauseSPIFFEID},
	{"sub with escapes", goodHeader, claims(`agent/triage`, `agent/tri%61ge`), CauseSPIFFEID},
	{"sub with a slash at its end", goodHeader, claims(`agent/triage`, `agent/`), CauseSPIFFEID},
	{"sub of capitals", goodHeader, claims(`acme.test/agent`, `ACME.test/agent`), CauseSPIFFEID},
	{"sub with a port", goodHeader, claims(`acme.test/agent`, `acme.test:80/agent`), CauseSPIFFEID},
	{"sub with a query", goodHeader, claims(`agent/triage`, `agent?x`), CauseSPIFFEID},
	{"sub a list", goodHeader, claims(`"spiffe://acme.test/agent/triage"`, `["spiffe://acme.test/agent/triage"]`), CauseSPIFFEID},
	{"sub too long", goodHeader, claims(`agent/triage`, strings.Repeat("a", 2048)), CauseSPIFFEID},
	{"Sub", goodHeader, claims(`"sub"`, `"Sub"`), CauseSPIFFEID},

	{"jti a number", goodHeader, claims(`{`, `{"jti":7,`), CauseMalformed},
	{"iss null", goodHeader, claims(`{`, `{"iss":null,`), CauseMalformed},
	{"one of many claims twice", goodHeader, claims(`{`, `{`+many(200)+`,"c7":1,`), CauseMalformed},
	{"sub twice", goodHeader, claims(`{`, `{"sub":"spiffe://acme.test/operator",`), CauseMalformed},
	{"sub twice, once escaped", goodHeader, claims(`{`, `{"\u0073ub":"spiffe://acme.test/operator",`), CauseMalformed},
	{"duplicate member in a claim", goodHeader, claims(`{`, `{"a":[{"b":1,"b":2}],`), CauseMalformed},
	{"nested deeply", goodHeader, claims(`{`, `{"a":`+strings.Repeat("[", 40)+strings.Repeat("]", 40)+`,`), CauseMalformed},
	{"claims a list", goodHeader, `[` + goodClaims + `]`, CauseMalformed},
	{"claims null", goodHeader, `null`, CauseMalformed},
	{"claims empty", goodHeader, ``, CauseMalformed},
	{"two claim sets", goodHeader, goodClaims + goodClaims, CauseMalformed},
	{"claims cut off", goodHeader, goodClaims[:20], CauseMalformed},
	{"not UTF-8", goodHeader, claims(`{`, "{\"a\":\"\xff\","), CauseMalformed},

	{"alg none", `{"alg":"none","kid":"%k"}`, goodClaims, CauseAlgorithm},
	{"alg None", `{"alg":"None","kid":"%k"}`, goodClaims, CauseAlgorithm},
	{"alg HS256", `{"alg":"HS256","kid":"%k"}`, goodClaims, CauseAlgorithm},
	{"alg EdDSA", `{"alg":"EdDSA","kid":"%k"}`, goodClaims, CauseAlgorithm},
	{"alg missing", `{"kid":"%k"}`, goodClaims, CauseAlgorithm},
	{"alg twice", header(`,"alg":"none"`), goodClaims, CauseMalformed},
	{"alg of another key", `{"alg":"RS256","kid":"%k"}`, goodClaims, CauseSignature},
	{"alg of another curve", `{"alg":"ES384","kid":"%k"}`, goodClaims, CauseSignature},
	{"no kid", `{"alg":"ES256"}`, goodClaims, CauseMalformed},
	{"empty kid", `{"alg":"ES256","kid":""}`, goodClaims, CauseMalformed},
	{"unknown kid", `{"alg":"ES256","kid":"nobody"}`, goodClaims, CauseUnknownKey},
	{"typ of an access token", header(`,"typ":"at+jwt"`), goodClaims, CauseMalformed},
	{"typ null", header(`,"typ":null`), goodClaims, CauseMalformed},
	{"crit", header(`,"crit":["exp"]`), goodClaims, CauseMalformed},
	{"b64", header(`,"b64":false`), goodClaims, CauseMalformed},
	{"jwk", header(`,"jwk":{"kty":"EC"}`), goodClaims, CauseMalformed},
	{"x5c", header(`,"x5c":["AA=="]`), goodClaims, CauseMalformed},
}

func TestJWTForms(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	for _, f := range forms {
		t.Run(f.name, func(t *testing.T) {
			now := time.Now()
			token := w.sign(w.fill(f.header, now), w.fill(f.claims, now))
			w.checkToken(t, token, now, f.want)
		})
	}
}

// fill replaces the placeholders of a form.
func (w *world) fill(s string, now time.Time) string {
	kid, _ := w.ca.JWTAuthority()
	return fillForm(s, kid, now)
}

func fillForm(s, kid string, now time.Time) string {
	s = strings.ReplaceAll(s, "%k", kid)
	for strings.Contains(s, "%n") {
		at := strings.Index(s, "%n")
		offset, used := 0, 0
		if n, _ := fmt.Sscanf(s[at+2:], "%d", &offset); n == 1 {
			used = len(fmt.Sprintf("%+d", offset))
		}
		s = s[:at] + fmt.Sprint(now.Unix()+int64(offset)) + s[at+2+used:]
	}
	return s
}

// checkToken verifies a token and checks the cause. A failure must be reported once
// and must not contain parts of the token.
func (w *world) checkToken(t *testing.T, token string, now time.Time, want Cause) {
	t.Helper()
	w.failures()
	who, err := w.verifier.JWT(token, now)
	if got := causeOf(t, err); got != want {
		t.Fatalf("got cause %q, want %q: %v", got, want, err)
	}
	counted := w.failures()
	if want == "" {
		if who.ID == "" || counted != nil {
			t.Errorf("got identity %+v, failures %v", who, counted)
		}
		return
	}
	if who.ID != "" || !slices.Equal(counted, []string{"jwt-svid " + string(want)}) {
		t.Errorf("got identity %+v, failures %v", who, counted)
	}
	for part := range strings.SplitSeq(token, ".") {
		if len(part) > 3 && strings.Contains(err.Error(), part) {
			t.Errorf("the error %v contains a part of the token", err)
		}
	}
}

func TestJWTShapes(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	now := time.Now()
	good := w.token(triage, time.Minute)
	parts := strings.Split(good, ".")
	flip := func(s string) string { // returns another signature of the same length
		last := "A"
		if s[0] == 'A' {
			last = "B"
		}
		return last + s[1:]
	}
	for _, test := range []struct {
		name, token string
		want        Cause
	}{
		{"empty", "", CauseMalformed},
		{"a word", "token", CauseMalformed},
		{"dots", "..", CauseMalformed},
		{"without signature", parts[0] + "." + parts[1] + ".", CauseMalformed},
		{"without its last part", parts[0] + "." + parts[1], CauseMalformed},
		{"cut off", good[:len(good)-2], CauseSignature},
		{"cut off in the claims", good[:len(parts[0])+20], CauseMalformed},
		{"four parts", good + ".AAAA", CauseMalformed},
		{"encrypted", good + ".AAAA.AAAA", CauseMalformed},
		{"padded", parts[0] + "=." + parts[1] + "." + parts[2], CauseMalformed},
		{"a line end", good + "\n", CauseMalformed},
		{"a line end within", parts[0] + ".\n" + parts[1] + "." + parts[2], CauseMalformed},
		{"several signatures", `{"payload":"` + parts[1] + `","signatures":[{"protected":"` + parts[0] + `","signature":"` + parts[2] + `"},{"protected":"` + parts[0] + `","signature":"` + parts[2] + `"}]}`, CauseMalformed},
		{"too large", good + strings.Repeat("A", MaxTokenSize), CauseOversized},
		{"another signature", parts[0] + "." + parts[1] + "." + flip(parts[2]), CauseSignature},
		{"signed with the public key as secret", hmacWithPublicKey(t, w), CauseAlgorithm},
		{"alg none without signature", encode(`{"alg":"none"}`) + "." + parts[1] + ".", CauseMalformed},
		{"of another authority", reKey(t, w), CauseSignature},
	} {
		t.Run(test.name, func(t *testing.T) { w.checkToken(t, test.token, now, test.want) })
	}
	w.checkToken(t, good, now, "")
}

// hmacWithPublicKey returns the token of the attack in RFC 8725, section 2.1.
func hmacWithPublicKey(t *testing.T, w *world) string {
	kid, public := w.ca.JWTAuthority()
	der, err := x509.MarshalPKIXPublicKey(public)
	check(t, err)
	input := encode(`{"alg":"HS256","kid":"`+kid+`"}`) + "." + encode(w.fill(goodClaims, time.Now()))
	mac := hmac.New(sha256.New, der)
	mac.Write([]byte(input))
	return input + "." + encode(string(mac.Sum(nil)))
}

// reKey returns a token with the kid of a valid key and the signature of another.
func reKey(t *testing.T, w *world) string {
	input := encode(w.fill(goodHeader, time.Now())) + "." + encode(w.fill(goodClaims, time.Now()))
	_, signature, err := newCA(t, "acme.test").SignBytes(input)
	check(t, err)
	return input + "." + encode(string(signature))
}

func TestJWTAlgorithms(t *testing.T) {
	t.Parallel()
	for _, alg := range []string{"RS256", "RS384", "RS512", "ES256", "ES384", "ES512", "PS256", "PS384", "PS512"} {
		var tok token
		if err := tok.readHeader([]byte(`{"alg":"` + alg + `","kid":"k"}`)); err != nil || tok.alg != alg {
			t.Errorf("%s: got %q, %v", alg, tok.alg, err)
		}
	}
}

func TestClaimsNesting(t *testing.T) {
	t.Parallel()
	for depth, want := range map[int]error{1: nil, maxDepth: nil, maxDepth + 1: strictjson.ErrDepth} {
		raw := `{"a":` + strings.Repeat("[", depth-1) + "1" + strings.Repeat("]", depth-1) + `}`
		if _, err := strictjson.Members([]byte(raw), maxDepth); err != want {
			t.Errorf("depth %d: got %v, want %v", depth, err, want)
		}
	}
}

func TestJWTBounds(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	now := time.Now().Truncate(time.Second)
	claims := func(exp time.Duration) string {
		return strings.Replace(w.fill(goodClaims, now), fmt.Sprint(now.Unix()+60), fmt.Sprint(now.Add(exp).Unix()), 1)
	}
	w.checkToken(t, w.sign(w.fill(goodHeader, now), claims(MaxLifetime+Leeway)), now, "")
	w.checkToken(t, w.sign(w.fill(goodHeader, now), claims(MaxLifetime+Leeway+time.Second)), now, CauseLifetime)
	long := func(n int) string {
		return strings.Replace(claims(time.Minute), "agent/triage", strings.Repeat("a", n-len("spiffe://acme.test/")), 1)
	}
	w.checkToken(t, w.sign(w.fill(goodHeader, now), long(2048)), now, "")
	w.checkToken(t, w.sign(w.fill(goodHeader, now), long(2048+1)), now, CauseSPIFFEID)
}
