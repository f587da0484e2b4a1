package verify

import (
	"bytes"
	"crypto"
	"encoding/json"
	"errors"
	"testing"
	"time"
)

// What this package reads as JSON, encoding/json reads as well, and with the same value.
func FuzzJSON(f *testing.F) {
	for _, seed := range []string{
		`{}`, `{"a":1}`, `{"a":[1,2.5,-3e2],"b":{"c":null,"d":true,"e":false}}`, `{"a":"\ud83d\ude00\n\u0041"}`, `{"a":1,"a":2}`, `{"a":"\ud800"}`, `{"a":01}`, `[]`, "{\"a\":\"\xff\"}",
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		v, err := parseObject(text)
		if err != nil {
			return
		}
		decoder := json.NewDecoder(bytes.NewReader(text))
		decoder.UseNumber()
		var other map[string]any
		if err := decoder.Decode(&other); err != nil {
			t.Fatalf("%q was read, but encoding/json does not: %v", text, err)
		}
		compare(t, v, other)
	})
}

func compare(t *testing.T, v value, other any) {
	t.Helper()
	switch other := other.(type) {
	case map[string]any:
		if v.kind != '{' || len(v.fields) != len(other) {
			t.Fatalf("got an object of %d members, want %d", len(v.fields), len(other))
		}
		for _, f := range v.fields {
			compare(t, f.value, other[f.name])
		}
	case []any:
		if v.kind != '[' || len(v.list) != len(other) {
			t.Fatalf("got a list of %d, want %d", len(v.list), len(other))
		}
		for i := range v.list {
			compare(t, v.list[i], other[i])
		}
	case string:
		if v.kind != '"' || v.text != other {
			t.Fatalf("got %q, want %q", v.text, other)
		}
	case json.Number:
		if v.kind != '0' || v.text != other.String() {
			t.Fatalf("got %s, want %s", v.text, other)
		}
	case bool, nil:
		if string(v.raw) != string(jsonOf(t, other)) {
			t.Fatalf("got %s, want %v", v.raw, other)
		}
	}
}

// No token, proof, list or set of keys makes the package panic, and every error is one of its
// own.
func FuzzInput(f *testing.F) {
	i := newIssuer(f)
	v := i.verifier(nil)
	// It has its keys, and fetches none: the network would make runs differ.
	v.keys.set, v.keys.fresh, v.keys.r.last = map[string]crypto.PublicKey{"k1": &i.key.PublicKey}, i.clock().Add(time.Hour), i.clock()
	f.Add(i.token(nil), `{"keys":[{"kty":"EC"}]}`, []byte{0x78, 0xda, 0xdb, 0xb9, 0x18, 0, 2, 0x17, 1, 0x5d})
	f.Add("a.b.c", `{"keys":[{"kty":"RSA","n":"AQAB","e":"AQAB","kid":"x"}]}`, []byte(nil))
	f.Fuzz(func(t *testing.T, token, keys string, packed []byte) {
		now := time.Unix(1_795_940_000, 0)
		err := v.check(t, token)
		if err != nil && !errors.Is(err, ErrInvalidToken) && !errors.Is(err, ErrUnavailable) {
			t.Errorf("got %v", err)
		}
		_, _ = v.checkProof("key", "token", Presentation{Proof: token}, now)
		_, _ = v.readClaims([]byte(keys), now)
		_, _ = v.parseList(t.Context(), i.url+"/status/1", token, now)
		_, _ = parseKeys([]byte(keys))
		if bits, err := inflate(packed); err == nil && len(bits) > maxList {
			t.Errorf("%d bytes became %d", len(packed), len(bits))
		}
	})
}

// URLs that are the same to this package are the same to a reader that compares bytes after
// normalizing them once more.
func FuzzURL(f *testing.F) {
	f.Add("https://a.test/x/../y?q#f")
	f.Add("HTTP://A.test:80/%7e%2f")
	f.Fuzz(func(t *testing.T, text string) {
		once, ok := normalURL(text)
		if !ok {
			return
		}
		if twice, ok := normalURL(once); !ok || twice != once {
			t.Errorf("%q became %q, and then %q", text, once, twice)
		}
	})
}
