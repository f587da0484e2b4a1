package jwks

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// A wycheproof is a file of test vectors (github.com/C2SP/wycheproof, testvectors_v1).
type wycheproof struct {
	TestGroups []struct {
		Comment         string
		Public, Private json.RawMessage
		Tests           []struct {
			TcID                 int
			Comment, JWS, Result string
		}
	}
}

func vectors(t *testing.T, name string) wycheproof {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("testdata", "wycheproof", name))
	if err != nil {
		t.Fatal(err)
	}
	var w wycheproof
	if err := json.Unmarshal(b, &w); err != nil {
		t.Fatal(err)
	}
	return w
}

// verifies reports whether a token verifies with a set, as an OpenID provider publishes it.
func verifies(t *testing.T, set, token string) bool {
	t.Helper()
	s, err := Parse([]byte(set), "", "sig")
	if err != nil {
		t.Fatal(err)
	}
	signed, err := ParseCompact(token)
	return err == nil && signed.Verify(s.Keys) == nil
}

// run checks every vector. Groups without a public key are of HMAC, for which no key
// may be accepted.
func (w wycheproof) run(t *testing.T, asSet func(json.RawMessage) string) (valid, invalid int) {
	for _, g := range w.TestGroups {
		set, symmetric := string(g.Public), len(g.Public) == 0
		if symmetric {
			set = string(g.Private)
		}
		set = asSet(json.RawMessage(set))
		// The tokens of RFC 7520 are signed with PS384 (figure 20) and ES512 (figure 27),
		// but the vectors' keys are for PS256 and ES521, which is not registered.
		if g.Comment == "rfc7520" || g.Comment == "rfc7520WithKeyOps" {
			set = strings.NewReplacer(`"ES521"`, `"ES512"`, `"PS256"`, `"PS384"`).Replace(set)
		}
		for _, test := range g.Tests {
			want := test.Result == "valid" && !symmetric
			if got := verifies(t, set, test.JWS); got != want {
				t.Errorf("test %d of group %s, %s: got accepted %t, want %t", test.TcID, g.Comment, test.Comment, got, want)
			}
			if want {
				valid++
			} else {
				invalid++
			}
		}
	}
	return valid, invalid
}

func TestWycheproofSignatures(t *testing.T) {
	t.Parallel()
	valid, invalid := vectors(t, "json_web_signature_test.json").run(t, func(key json.RawMessage) string { return `{"keys":[` + string(key) + `]}` })
	if valid != 36 || valid+invalid != 401 {
		t.Errorf("got %d valid and %d invalid vectors, want 36 and 365", valid, invalid)
	}
}

func TestWycheproofKeys(t *testing.T) {
	t.Parallel()
	valid, invalid := vectors(t, "json_web_key_test.json").run(t, func(set json.RawMessage) string { return string(set) })
	if valid != 1 || valid+invalid != 26 {
		t.Errorf("got %d valid and %d invalid vectors, want 1 and 25", valid, invalid)
	}
}
