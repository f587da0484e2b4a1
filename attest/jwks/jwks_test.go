package jwks

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"maps"
	"math/big"
	"slices"
	"strings"
	"testing"
	"time"
)

var b64 = base64.RawURLEncoding.EncodeToString

type members map[string]any

// with returns a copy with changes. A nil value removes a member.
func (m members) with(changes members) members {
	m = maps.Clone(m)
	maps.Copy(m, changes)
	maps.DeleteFunc(m, func(_ string, v any) bool { return v == nil })
	return m
}

func ecJWK(t testing.TB, key *ecdsa.PublicKey) members {
	t.Helper()
	point, err := key.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	size := (len(point) - 1) / 2
	return members{"kty": "EC", "crv": key.Params().Name, "kid": "1", "x": b64(point[1 : 1+size]), "y": b64(point[1+size:])}
}

func newEC(t testing.TB, c elliptic.Curve) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(c, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func rsaJWK(n *big.Int, e int64) members {
	return members{"kty": "RSA", "kid": "1", "n": b64(n.Bytes()), "e": b64(big.NewInt(e).Bytes())}
}

// odd returns an odd modulus of that many bits. It is not a product of two primes,
// which Parse does not check.
func odd(bits int) *big.Int {
	n := new(big.Int).Lsh(big.NewInt(1), uint(bits-1))
	return n.Add(n, big.NewInt(12345))
}

func document(t testing.TB, keys ...any) []byte {
	t.Helper()
	b, err := json.Marshal(map[string]any{"keys": append([]any{}, keys...)})
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func parse(t testing.TB, keys ...any) *Set {
	t.Helper()
	s, err := Parse(document(t, keys...), "", "sig")
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func selfSigned(t testing.TB, key *ecdsa.PrivateKey) string {
	t.Helper()
	now := time.Now()
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "x"}, NotBefore: now, NotAfter: now.Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return base64.StdEncoding.EncodeToString(der)
}

// One bad key never affects the good keys next to it.
func TestParseLeavesOutBadKeys(t *testing.T) {
	t.Parallel()
	key, other := newEC(t, elliptic.P256()), newEC(t, elliptic.P256())
	ec, good := ecJWK(t, &key.PublicKey), ecJWK(t, &other.PublicKey).with(members{"kid": "good"})
	x, y := ec["x"].(string), ec["y"].(string)
	long := ecJWK(t, &newEC(t, elliptic.P384()).PublicKey)
	ed, _, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	okp := members{"kty": "OKP", "crv": "Ed25519", "kid": "1", "x": b64(ed)}
	rs := rsaJWK(odd(2048), 65537)
	leading := append([]byte{0}, odd(2048).Bytes()...)

	for _, test := range []struct {
		name string
		key  any
		want Reason // empty: accepted
	}{
		{"EC", ec, ""},
		{"EC P-384", long, ""},
		{"EC P-521", ecJWK(t, &newEC(t, elliptic.P521()).PublicKey), ""},
		{"Ed25519", okp, ""},
		{"RSA", rs, ""},
		{"RSA of 8192 bits", rsaJWK(odd(8192), 3), ""},
		{"largest exponent", rsaJWK(odd(2048), 1<<31-1), ""},
		{"alg, use and key_ops that fit", ec.with(members{"alg": "ES256", "use": "sig", "key_ops": []string{"verify"}}), ""},
		{"PS256", rs.with(members{"alg": "PS256"}), ""},
		{"unknown members", ec.with(members{"x5t": 1, "nbf": nil, "vendor": members{"a": []int{1}}}), ""},
		{"no kid", ec.with(members{"kid": nil}), ""},
		{"x5c of the key", ec.with(members{"x5c": []string{selfSigned(t, key), "ignored"}}), ""},

		{"not an object", 7, Malformed},
		{"null", nil, Malformed},
		{"kid twice in one key", json.RawMessage(`{"kty":"EC","kid":"a","kid":"b","crv":"P-256","x":"` + x + `","y":"` + y + `"}`), Malformed},
		{"a lone surrogate", json.RawMessage(`{"kty":"EC","kid":"\ud800","crv":"P-256","x":"` + x + `","y":"` + y + `"}`), Malformed},
		{"names in capitals", members{"KTY": "EC", "CRV": "P-256", "KID": "1", "X": x, "Y": y}, UnknownType},
		{"a kid of another type", ec.with(members{"kid": 1}), Malformed},
		{"a long kid", ec.with(members{"kid": strings.Repeat("k", maxKeyID+1)}), Malformed},
		{"no kty", ec.with(members{"kty": nil}), UnknownType},
		{"kty of another type", ec.with(members{"kty": []string{"EC"}}), Malformed},
		{"kty in lower case", ec.with(members{"kty": "ec"}), UnknownType},
		{"AKP", members{"kty": "AKP", "alg": "ML-DSA-65", "kid": "1", "pub": "AAAA"}, UnknownType},
		{"X25519", okp.with(members{"crv": "X25519"}), UnknownType},
		{"Ed448", okp.with(members{"crv": "Ed448"}), UnknownType},
		{"secp256k1", ec.with(members{"crv": "secp256k1"}), UnknownType},
		{"P-224", ec.with(members{"crv": "P-224"}), UnknownType},
		{"another curve of the same length", ec.with(members{"crv": "P-384"}), Malformed},

		{"use enc", ec.with(members{"use": "enc"}), OtherUse},
		{"an empty use", ec.with(members{"use": ""}), OtherUse},
		{"use in capitals", ec.with(members{"use": "SIG"}), OtherUse},
		{"use of another type", ec.with(members{"use": []string{"sig"}}), Malformed},
		{"alg of another curve", ec.with(members{"alg": "ES384"}), OtherUse},
		{"alg of another type", ec.with(members{"alg": "RS256"}), OtherUse},
		{"alg for encryption", rs.with(members{"alg": "RSA-OAEP"}), OtherUse},
		{"alg none", ec.with(members{"alg": "none"}), OtherUse},
		{"alg of HMAC", rs.with(members{"alg": "HS256"}), OtherUse},
		{"an empty alg", ec.with(members{"alg": ""}), OtherUse},
		{"alg is a number", ec.with(members{"alg": 5}), Malformed},
		{"key_ops encrypt", ec.with(members{"key_ops": []string{"encrypt", "sign"}}), OtherUse},
		{"no key_ops", ec.with(members{"key_ops": []string{}}), OtherUse},
		{"key_ops repeated", ec.with(members{"key_ops": []string{"verify", "verify"}}), Malformed},
		{"key_ops is a string", ec.with(members{"key_ops": "verify"}), Malformed},

		{"a symmetric key", members{"kty": "oct", "kid": "1", "k": "AAAA"}, PrivateKey},
		{"a private EC key", ec.with(members{"d": x}), PrivateKey},
		{"a private RSA key without d", rs.with(members{"p": "AQAB"}), PrivateKey},
		{"other primes", rs.with(members{"oth": []members{}}), PrivateKey},
		{"a private key of an unknown type", members{"kty": "AKP", "kid": "1", "priv": "AAAA"}, PrivateKey},

		{"no x", ec.with(members{"x": nil}), Malformed},
		{"an empty x", ec.with(members{"x": ""}), Malformed},
		{"x with padding", ec.with(members{"x": x + "="}), Malformed},
		{"x with a line end", ec.with(members{"x": x[:8] + "\n" + x[8:]}), Malformed},
		{"x in base64", ec.with(members{"x": strings.Repeat("+", 43)}), Malformed},
		{"x with trailing bits", ec.with(members{"x": x[:42] + "B"}), Malformed},
		{"a short y", ec.with(members{"y": b64(make([]byte, 31))}), Malformed},
		{"a long y", ec.with(members{"y": b64(make([]byte, 33))}), Malformed},
		{"a point off the curve", ec.with(members{"y": x, "x": y}), WeakKey},
		{"the point at infinity", ec.with(members{"x": b64(make([]byte, 32)), "y": b64(make([]byte, 32))}), WeakKey},
		{"a coordinate beyond the field", ec.with(members{"x": b64(slices.Repeat([]byte{0xff}, 32))}), WeakKey},
		{"a short Ed25519 key", okp.with(members{"x": "AAAA"}), Malformed},

		{"RSA of 1024 bits", rsaJWK(odd(1024), 65537), WeakKey},
		{"RSA of 2047 bits", rsaJWK(odd(2047), 65537), WeakKey},
		{"RSA of 8193 bits", rsaJWK(odd(8193), 65537), WeakKey},
		{"RSA of 65536 bits", rsaJWK(odd(65536), 65537), WeakKey},
		{"an even modulus", rsaJWK(new(big.Int).Lsh(big.NewInt(1), 2047), 65537), WeakKey},
		{"exponent 1", rsaJWK(odd(2048), 1), WeakKey},
		{"exponent 2", rsaJWK(odd(2048), 2), WeakKey},
		{"an even exponent", rsaJWK(odd(2048), 65536), WeakKey},
		{"an exponent of 33 bits", rsaJWK(odd(2048), 1<<32+1), WeakKey},
		{"an exponent as long as the modulus", rs.with(members{"e": rs["n"]}), WeakKey},
		{"exponent 0", rs.with(members{"e": "AA"}), Malformed},
		{"a leading zero in n", rs.with(members{"n": b64(leading)}), Malformed},
		{"a leading zero in e", rs.with(members{"e": "AAEAAQ"}), Malformed},
		{"no e", rs.with(members{"e": nil}), Malformed},

		{"x5c of another key", ec.with(members{"x5c": []string{selfSigned(t, other)}}), Certificate},
		{"x5c is not a certificate", ec.with(members{"x5c": []string{"AAAA"}}), Certificate},
		{"an empty x5c", ec.with(members{"x5c": []string{}}), Certificate},
		{"x5c is a string", ec.with(members{"x5c": "AAAA"}), Certificate},
		{"x5c is null", json.RawMessage(`{"kty":"EC","crv":"P-256","x":"` + x + `","y":"` + y + `","x5c":null}`), Certificate},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := parse(t, good, test.key)
			if len(s.Keys) == 0 || s.Keys[0].ID != "good" {
				t.Fatalf("got %d keys, without the good one", len(s.Keys))
			}
			if test.want == "" {
				if len(s.Keys) != 2 || len(s.LeftOut) != 0 {
					t.Fatalf("got %d keys, left out %v", len(s.Keys), s.LeftOut)
				}
				return
			}
			if len(s.Keys) != 1 || len(s.LeftOut) != 1 || s.LeftOut[0].Reason != test.want || s.LeftOut[0].Index != 1 {
				t.Fatalf("got %d keys, left out %v, want %s", len(s.Keys), s.LeftOut, test.want)
			}
			if text := s.LeftOut[0].String(); !strings.HasPrefix(text, "key 2") || strings.Contains(text, x) || strings.Contains(text, y) || len(text) > 300 {
				t.Errorf("got %q", text)
			}
			if !slices.Contains(Reasons, test.want) {
				t.Errorf("%s is not in Reasons", test.want)
			}
		})
	}
}

func TestParseRejectsDocuments(t *testing.T) {
	t.Parallel()
	for name, document := range map[string]string{
		"nothing":              ``,
		"a byte order mark":    "\ufeff" + `{"keys":[]}`,
		"keys twice":           `{"keys":[],"keys":[]}`,
		"keys in capitals":     `{"KEYS":[]}`,
		"no keys":              `{}`,
		"keys null":            `{"keys":null}`,
		"keys is an object":    `{"keys":{}}`,
		"a list":               `[]`,
		"trailing data":        `{"keys":[]}{}`,
		"another member twice": `{"spiffe_sequence":1,"spiffe_sequence":2,"keys":[]}`,
		"invalid UTF-8":        "{\"keys\":[],\"a\":\"\xff\"}",
		"too many keys":        `{"keys":[` + strings.Repeat(`{},`, maxKeys) + `{}]}`,
		"deep nesting":         `{"keys":[],"a":` + strings.Repeat(`[`, 100) + strings.Repeat(`]`, 100) + `}`,
	} {
		if s, err := Parse([]byte(document), ""); err == nil {
			t.Errorf("%s: got %+v, want an error", name, s)
		}
	}
	s, err := Parse([]byte(` {"keys":[],"spiffe_refresh_hint":300} `), "")
	if err != nil || len(s.Keys)+len(s.LeftOut) != 0 || string(s.Members["spiffe_refresh_hint"]) != "300" || s.Members["keys"] != nil {
		t.Errorf("an empty set: got %+v, %v", s, err)
	}
}

// Two keys with one kid are ambiguous only if both verify the same algorithm.
func TestSameKeyID(t *testing.T) {
	t.Parallel()
	a, b := ecJWK(t, &newEC(t, elliptic.P256()).PublicKey), ecJWK(t, &newEC(t, elliptic.P256()).PublicKey)
	rs := rsaJWK(odd(2048), 65537)
	for _, test := range []struct {
		name       string
		keys       []any
		kept, left int
	}{
		{"different keys", []any{a, b}, 0, 2},
		{"different keys, and a third", []any{a, a.with(members{"kid": "2"}), b}, 1, 2},
		{"three keys", []any{a, b, ecJWK(t, &newEC(t, elliptic.P256()).PublicKey)}, 0, 3},
		{"one key twice", []any{a, a}, 2, 0},
		{"one key with two algorithms", []any{rs.with(members{"alg": "RS256"}), rs.with(members{"alg": "PS256"})}, 2, 0},
		{"different types", []any{a, rs}, 2, 0},
		{"different algorithms", []any{rs.with(members{"alg": "RS256"}), rsaJWK(odd(3072), 65537).with(members{"alg": "PS256"})}, 2, 0},
		{"overlapping algorithms", []any{rs, rsaJWK(odd(3072), 65537).with(members{"alg": "PS256"})}, 0, 2},
		{"no kid", []any{a.with(members{"kid": nil}), b.with(members{"kid": nil})}, 2, 0},
	} {
		s := parse(t, test.keys...)
		if len(s.Keys) != test.kept || len(s.LeftOut) != test.left {
			t.Errorf("%s: got %d keys, left out %v; want %d and %d", test.name, len(s.Keys), s.LeftOut, test.kept, test.left)
		}
		for i, l := range s.LeftOut {
			if l.Reason != SameKeyID || i > 0 && l.Index <= s.LeftOut[i-1].Index {
				t.Errorf("%s: got %v", test.name, s.LeftOut)
			}
		}
	}
}

func TestFilterKeepsOrder(t *testing.T) {
	t.Parallel()
	var keys []any
	for _, id := range []string{"a", "b", "c"} {
		keys = append(keys, ecJWK(t, &newEC(t, elliptic.P256()).PublicKey).with(members{"kid": id}))
	}
	s := parse(t, keys...)
	s.Filter(func(k *Key) (Reason, string) {
		if k.ID == "b" {
			return NoKeyID, "x"
		}
		return "", ""
	})
	if len(s.Keys) != 2 || s.Keys[0].ID != "a" || s.Keys[1].ID != "c" || fmt.Sprint(s.LeftOut) != `[key 2 (kid "b"): x]` {
		t.Errorf("got %v, left out %v", s.Keys, s.LeftOut)
	}
}

func compact(header string, payload []byte, sign func(message []byte) []byte) string {
	message := b64([]byte(header)) + "." + b64(payload)
	return message + "." + b64(sign([]byte(message)))
}

// RFC 7518, section 3.5: the salt is as long as the hash.
func TestPSSSaltLength(t *testing.T) {
	t.Parallel()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	s := parse(t, rsaJWK(key.N, int64(key.E)))
	for _, salt := range []int{32, 1, 20, 31, 33, 64, 256 - 32 - 2} {
		token := compact(`{"alg":"PS256","kid":"1"}`, []byte("{}"), func(message []byte) []byte {
			digest := sha256.Sum256(message)
			signature, err := rsa.SignPSS(rand.Reader, key, crypto.SHA256, digest[:], &rsa.PSSOptions{SaltLength: salt})
			if err != nil {
				t.Fatal(err)
			}
			return signature
		})
		signed, err := ParseCompact(token)
		if err != nil {
			t.Fatal(err)
		}
		if err := signed.Verify(s.Keys); (err == nil) != (salt == sha256.Size) {
			t.Errorf("salt of %d bytes: got %v", salt, err)
		}
	}
}

// The kid and the algorithm of the token, and the alg of the JWK, select the key.
func TestVerifySelectsKey(t *testing.T) {
	t.Parallel()
	key := newEC(t, elliptic.P256())
	own, other := ecJWK(t, &key.PublicKey), ecJWK(t, &newEC(t, elliptic.P256()).PublicKey).with(members{"kid": "2"})
	sign := func(message []byte) []byte {
		digest := sha256.Sum256(message)
		r, s, err := ecdsa.Sign(rand.Reader, key, digest[:])
		if err != nil {
			t.Fatal(err)
		}
		return slices.Concat(r.FillBytes(make([]byte, 32)), s.FillBytes(make([]byte, 32)))
	}
	for _, test := range []struct {
		name, header string
		keys         []any
		want         bool
	}{
		{"kid", `{"alg":"ES256","kid":"1"}`, []any{other, own}, true},
		{"no kid", `{"alg":"ES256"}`, []any{other, own}, true},
		{"other parameters", `{"alg":"ES256","kid":"1","typ":"JWT","x5t":"x","jwk":{},"jku":"https://evil.test"}`, []any{own}, true},
		{"another kid", `{"alg":"ES256","kid":"2"}`, []any{other, own}, false},
		{"an unknown kid", `{"alg":"ES256","kid":"3"}`, []any{other, own}, false},
		{"another algorithm", `{"alg":"ES384","kid":"1"}`, []any{own}, false},
		{"an HMAC", `{"alg":"HS256","kid":"1"}`, []any{own}, false},
		{"none", `{"alg":"none","kid":"1"}`, []any{own}, false},
		{"no algorithm", `{"kid":"1"}`, []any{own}, false},
		{"no keys", `{"alg":"ES256","kid":"1"}`, nil, false},
	} {
		signed, err := ParseCompact(compact(test.header, []byte("{}"), sign))
		if err != nil {
			t.Fatalf("%s: %v", test.name, err)
		}
		if err := signed.Verify(parse(t, test.keys...).Keys); (err == nil) != test.want {
			t.Errorf("%s: got %v, want accepted %t", test.name, err, test.want)
		}
	}
}

func TestParseCompactRejects(t *testing.T) {
	t.Parallel()
	header := b64([]byte(`{"alg":"ES256"}`))
	for name, token := range map[string]string{
		"nothing": "", "two parts": header + ".e30", "four parts": header + ".e30.AA.", "JSON": `{"payload":"e30","signatures":[]}`,
		"padding": header + ".e30=.AA", "a line end": header + ".e3\n0.AA", "trailing bits": header + ".e31.AA", "base64": header + ".+/+/.AA", "a space": header + ".e30. AA",
		"no header": ".e30.AA", "a header that is a list": b64([]byte(`[]`)) + ".e30.AA", "a member twice": b64([]byte(`{"alg":"ES256","alg":"none"}`)) + ".e30.AA",
		"crit": b64([]byte(`{"alg":"ES256","crit":["b64"],"b64":false}`)) + ".e30.AA", "an empty crit": b64([]byte(`{"alg":"ES256","crit":[]}`)) + ".e30.AA",
		"alg is a list": b64([]byte(`{"alg":["ES256"]}`)) + ".e30.AA", "kid is a number": b64([]byte(`{"alg":"ES256","kid":1}`)) + ".e30.AA",
	} {
		if _, err := ParseCompact(token); err == nil {
			t.Errorf("%s: got no error", name)
		}
	}
}

func TestCheckPublic(t *testing.T) {
	t.Parallel()
	ed, _, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		key  crypto.PublicKey
		want Reason
	}{
		{&newEC(t, elliptic.P256()).PublicKey, ""}, {ed, ""}, {&rsa.PublicKey{N: odd(2048), E: 65537}, ""},
		{&newEC(t, elliptic.P224()).PublicKey, UnknownType}, {&rsa.PublicKey{N: odd(1024), E: 65537}, WeakKey}, {nil, UnknownType}, {"key", UnknownType},
	} {
		if reason, err := CheckPublic(test.key); reason != test.want || (err == nil) != (reason == "") {
			t.Errorf("%T: got %q, %v, want %q", test.key, reason, err, test.want)
		}
	}
}

func TestEqual(t *testing.T) {
	t.Parallel()
	key := newEC(t, elliptic.P256())
	ec := ecJWK(t, &key.PublicKey)
	a := parse(t, ec).Keys[0]
	for name, test := range map[string]struct {
		jwk  members
		want bool
	}{
		"the same":           {ec.with(members{"alg": "ES256", "vendor": 1}), true},
		"another kid":        {ec.with(members{"kid": "2"}), false},
		"another use":        {ec.with(members{"use": "sig"}), false},
		"another key":        {ecJWK(t, &newEC(t, elliptic.P256()).PublicKey), false},
		"another type":       {rsaJWK(odd(2048), 65537), false},
		"with a certificate": {ec.with(members{"x5c": []string{selfSigned(t, key)}}), false},
	} {
		b := parse(t, test.jwk).Keys[0]
		if a.Equal(&b) != test.want || b.Equal(&a) != test.want {
			t.Errorf("%s: got equal %t", name, a.Equal(&b))
		}
	}
}

// FuzzParse reads arbitrary sets. A key is kept only if it is complete, and every
// entry is either kept or left out with a reason.
func FuzzParse(f *testing.F) {
	ec := ecJWK(f, &newEC(f, elliptic.P256()).PublicKey)
	f.Add(document(f, ec, ec.with(members{"use": "enc"}), rsaJWK(odd(2048), 65537)))
	f.Add(document(f, ec.with(members{"x": "AAAA"}), members{"kty": "OKP", "crv": "Ed25519", "x": b64(make([]byte, 32))}))
	f.Add([]byte(`{"keys":[{"kty":"RSA","use":"sig","kid":"a","n":"AQ","e":"AQ"},null,[],{"kty":"AKP"}],"a":[[]]}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		s, err := Parse(b, "", "sig")
		if err != nil {
			return
		}
		var document struct {
			Keys []json.RawMessage `json:"keys"`
		}
		if err := json.Unmarshal(b, &document); err != nil || len(document.Keys) != len(s.Keys)+len(s.LeftOut) {
			t.Fatalf("%q: got %d keys and left out %d", b, len(s.Keys), len(s.LeftOut))
		}
		for i := range s.Keys {
			k := &s.Keys[i]
			if reason, err := CheckPublic(k.public); err != nil || len(k.algorithms) == 0 {
				t.Fatalf("%q: kept a key: %s, algorithms %q", b, reason, k.algorithms)
			}
			if k.Verify("HS256", nil, nil) == nil || k.Verify("none", nil, nil) == nil || k.Verify(k.algorithms[0], nil, nil) == nil {
				t.Fatalf("%q: an empty signature verifies", b)
			}
		}
		for _, l := range s.LeftOut {
			if !slices.Contains(Reasons, l.Reason) || l.Detail == "" {
				t.Fatalf("%q: left out %+v", b, l)
			}
		}
	})
}
