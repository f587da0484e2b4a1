package attest_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/go-jose/go-jose/v4"

	"accessbroker.internal/broker"
)

var null = json.RawMessage("null")

// Claims that are only shown never keep a person out. Claims that decide are strict.
func TestClaimsOfOddTypes(t *testing.T) {
	t.Parallel()
	type claims map[string]any
	for _, test := range []struct {
		name        string
		token, info claims
		want        string // groups, name, email and manager; or the error
		logged      string // claims that are dropped
	}{
		{"a name that is a number", claims{"name": 7}, nil, "dba  ana@acme.test ", "name"},
		{"a name that is an object", claims{"name": claims{"formatted": "Ana"}}, nil, "dba  ana@acme.test ", "name"},
		{"a name that is a list", claims{"name": []string{"Ana"}}, nil, "dba  ana@acme.test ", "name"},
		{"a null name, and UserInfo has it", claims{"name": null}, claims{"sub": "ana", "name": "Ana B"}, "dba Ana B ana@acme.test ", ""},
		{"no name, and UserInfo has a number", claims{"name": nil}, claims{"sub": "ana", "name": 7}, "dba  ana@acme.test ", "name"},
		{"no name, and UserInfo is of another person", claims{"name": nil}, claims{"sub": "ben", "name": "Ben"}, "dba  ana@acme.test ", ""},
		{"an address that is false", claims{"email": false}, nil, "dba Ana  ", "email"},
		{"an address that is null", claims{"email": null}, nil, "dba Ana  ", ""},
		{"email_verified as text", claims{"email_verified": "true"}, nil, "dba Ana ana@acme.test ", ""},
		{"email_verified of another type", claims{"email_verified": []int{1}}, claims{"sub": "ana", "email_verified": claims{}}, "dba Ana ana@acme.test ", ""},
		{"a manager", claims{"manager": "ben"}, nil, "dba Ana ana@acme.test login/ben", ""},
		{"a manager that is a DN", claims{"manager": "CN=Ben Roth,OU=x"}, nil, "dba Ana ana@acme.test ", "manager"},
		{"a manager that is an object", claims{"manager": claims{"value": "1"}}, nil, "dba Ana ana@acme.test ", "manager"},
		{"a manager that is a number", claims{"manager": 7}, nil, "dba Ana ana@acme.test ", "manager"},
		{"a manager that is a list", claims{"manager": []string{"ben"}}, nil, "dba Ana ana@acme.test ", "manager"},
		{"a null manager", claims{"manager": null}, nil, "dba Ana ana@acme.test ", ""},
		{"an empty manager", claims{"manager": ""}, nil, "dba Ana ana@acme.test ", ""},
		{"a long manager", claims{"manager": strings.Repeat("x", 256)}, nil, "dba Ana ana@acme.test ", "manager"},

		{"null groups, and UserInfo has them", claims{"groups": null}, claims{"sub": "ana", "groups": []string{"ops"}}, "ops Ana ana@acme.test ", ""},
		{"null groups everywhere", claims{"groups": null}, claims{"sub": "ana", "groups": null}, " Ana ana@acme.test ", ""},
		{"an empty list", claims{"groups": []string{}}, claims{"sub": "ana", "groups": []string{"ops"}}, " Ana ana@acme.test ", ""},
		{"one group", claims{"groups": "ops"}, nil, "ops Ana ana@acme.test ", ""},
		{"a group with a space", claims{"groups": []string{"data base"}}, nil, "data base Ana ana@acme.test ", ""},
		{"a null group", claims{"groups": []any{nil}}, nil, "neither a string nor a list of strings", ""},
		{"a null group among others", claims{"groups": []any{"dba", nil}}, nil, "neither a string nor a list of strings", ""},
		{"a number for a group", claims{"groups": []any{"dba", 7}}, nil, "neither a string nor a list of strings", ""},
		{"an object for a group", claims{"groups": []any{claims{"name": "dba"}}}, nil, "neither a string nor a list of strings", ""},
		{"a nested list", claims{"groups": []any{[]string{"dba"}}}, nil, "neither a string nor a list of strings", ""},
		{"an object", claims{"groups": claims{"dba": true}}, nil, "neither a string nor a list of strings", ""},
		{"true", claims{"groups": true}, nil, "neither a string nor a list of strings", ""},
		{"an empty group", claims{"groups": []string{""}}, nil, "has a group that is empty", ""},
		{"an empty text", claims{"groups": ""}, nil, "has a group that is empty", ""},
		{"a space", claims{"groups": []string{" "}}, nil, "has a group that is empty", ""},
		{"a group that ends with a space", claims{"groups": []string{"dba "}}, nil, "has a group that is empty", ""},
		{"a group with a line end", claims{"groups": []string{"d\nba"}}, nil, "has a group that is empty", ""},
		{"a group with an invisible character", claims{"groups": []string{"d\u200bba"}}, nil, "has a group that is empty", ""},
		{"a group with half a character", claims{"groups": json.RawMessage(`["\ud800"]`)}, nil, "not Unicode", ""},
		{"groups twice", claims{"x": json.RawMessage(`{"groups":["a"],"groups":["b"]}`)}, nil, "member twice", ""},
		{"null groups, and a number in UserInfo", claims{"groups": null}, claims{"sub": "ana", "groups": 7}, "neither a string nor a list of strings", ""},
		{"null groups, and UserInfo of another person", claims{"groups": null}, claims{"sub": "ben", "groups": []string{"ops"}}, "belongs to another person", ""},
		{"null groups, and a number for the sub of UserInfo", claims{"groups": null}, claims{"sub": 7}, "belongs to another person", ""},
		{"hasgroups", claims{"groups": nil, "hasgroups": true}, claims{"sub": "ana"}, "hasgroups", ""},
		{"malformed _claim_names", claims{"groups": nil, "_claim_names": []string{"groups"}}, claims{"sub": "ana"}, "", ""},
		{"distributed groups in UserInfo", claims{"groups": nil}, claims{"sub": "ana", "_claim_names": claims{"groups": "src1"}}, "is distributed", ""},

		{"a sub that is a number", claims{"sub": 7}, nil, "", ""},
		{"a null sub", claims{"sub": null}, nil, "the subject is not", ""},
		{"SUB next to sub", claims{"SUB": "eve"}, nil, `"sub" in another case`, ""},
		{"ſub next to sub", claims{"ſub": "eve"}, nil, `"sub" in another case`, ""},
		{"a sid that is a number", claims{"sid": 5}, nil, `"sid"`, ""},
		{"a null sid", claims{"sid": null}, nil, "dba Ana ana@acme.test ", ""},
		{"a null azp", claims{"azp": null}, nil, "dba Ana ana@acme.test ", ""},
		{"two audiences, and a null azp", claims{"aud": []string{"broker", "x"}, "azp": null}, nil, "(azp)", ""},
		{"two audiences, and azp", claims{"aud": []string{"broker", "x"}, "azp": "broker"}, nil, "dba Ana ana@acme.test ", ""},
		{"an audience that is a number", claims{"aud": []any{"broker", 7}, "azp": "broker"}, nil, "", ""},
		{"an azp that is a list", claims{"azp": []string{"broker"}}, nil, `"azp"`, ""},
		{"an auth_time in text", claims{"auth_time": "1700000000"}, nil, `"auth_time"`, ""},
		{"a null auth_time", claims{"auth_time": null}, nil, "dba Ana ana@acme.test ", ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			p := newProvider(t)
			p.claims["email"] = "ana@acme.test"
			for name, value := range test.token {
				p.claims[name] = value
			}
			p.userInfo = test.info
			in, err := p.login(false, nil)
			if err != nil {
				if strings.Contains(test.want, "acme.test") || !strings.Contains(err.Error(), test.want) {
					t.Errorf("got %v, want %q", err, test.want)
				}
				return
			}
			who := in.Who.Person
			if got := fmt.Sprintf("%s %s %s %s", strings.Join(who.Groups, ","), who.Name, who.Email, who.Manager); got != test.want || slices.Contains(who.Groups, "") {
				t.Errorf("got %q, want %q", got, test.want)
			}
			const message = "the claim is dropped because its value is malformed"
			if test.logged != "" && strings.Count(p.log.String(), message) != 1 || test.logged != "" && !strings.Contains(p.log.String(), "level=WARN") || test.logged == "" && strings.Contains(p.log.String(), message) {
				t.Errorf("got log %s, want %q", p.log.String(), test.logged)
			}
			if strings.Contains(p.log.String(), "Ben") {
				t.Errorf("the log has a value: %s", p.log.String())
			}
		})
	}
}

// UserInfo may be signed.
func TestSignedUserInfo(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		claims map[string]any
		key    any
		want   bool
	}{
		"signed":           {map[string]any{"sub": "ana", "groups": "ops", "iss": "", "aud": []string{"x", "broker"}}, nil, true},
		"another audience": {map[string]any{"sub": "ana", "groups": "ops", "aud": "x"}, nil, false},
		"another issuer":   {map[string]any{"sub": "ana", "groups": "ops", "iss": "https://evil.test"}, nil, false},
		"another person":   {map[string]any{"sub": "eve", "groups": "ops"}, nil, false},
		"another key":      {map[string]any{"sub": "ana", "groups": "ops"}, "other", false},
	} {
		p := newProvider(t)
		p.claims["groups"] = nil
		other, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		if test.claims["iss"] == "" {
			test.claims["iss"] = p.URL
		}
		p.hook = func(w http.ResponseWriter, r *http.Request) bool {
			if r.URL.Path != "/userinfo" {
				return false
			}
			w.Header().Set("Content-Type", "Application/JWT; charset=utf-8")
			if test.key != nil {
				p.signWith = jose.JSONWebKey{Key: other, KeyID: "1"}
			}
			fmt.Fprint(w, p.sign(test.claims, ""))
			return true
		}
		in, err := p.login(false, nil)
		if (err == nil) != test.want || err == nil && !slices.Equal(in.Who.Person.Groups, []string{"ops"}) {
			t.Errorf("%s: got %v, %v", name, in.Who.Person, err)
		}
	}
}

// publish serves extra keys next to the provider's own.
func (p *provider) publish(keys ...string) {
	encode := base64.RawURLEncoding.EncodeToString
	point, err := p.key.PublicKey.Bytes()
	if err != nil {
		p.t.Fatal(err)
	}
	own := fmt.Sprintf(`{"kty":"EC","crv":"P-256","kid":"1","alg":"ES256","use":"sig","x":%q,"y":%q}`, encode(point[1:33]), encode(point[33:]))
	p.hook = func(w http.ResponseWriter, r *http.Request) bool {
		if r.URL.Path == "/keys" {
			fmt.Fprintf(w, `{"keys":[%s]}`, strings.Join(append(keys, own), ","))
		}
		return r.URL.Path == "/keys"
	}
}

// A broken key does not spoil the good keys next to it.
func TestProviderKeysNextToOddKeys(t *testing.T) {
	t.Parallel()
	for _, odd := range []string{
		`{"kty":"AKP","alg":"ML-DSA-65","kid":"pq","pub":"AAAA"}`, `{"kty":"AKP","kid":"pq","pub":"AAAA"}`,
		`{"kty":"OKP","crv":"X25519","kid":"x","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}`, `{"kty":"OKP","crv":"Ed448","kid":"x","x":"AAAA"}`,
		`{"kty":"oct","kid":"o","k":"AAAA"}`, `{"kty":"EC","crv":"P-256","kid":"b","x":"AAAA","y":"AAAA"}`, `{"kty":"EC","crv":"secp256k1","kid":"k","x":"AAAA","y":"AAAA"}`,
		`{"kty":"RSA","kid":"r","e":"AQAB","n":"AQAB","x5c":["AAAA"]}`, `{"kty":"RSA","use":"enc","kid":"r","e":"AQAB","n":"AQAB"}`, `{"kty":"EC","alg":7}`, `null`, `7`, `{}`, `{"kid":"1"}`,
	} {
		p := newProvider(t)
		p.publish(odd)
		if _, err := p.login(false, nil); err != nil {
			t.Errorf("%s: got %v", odd, err)
		}
		k := p.people.KeySources(p.now)
		if len(k) != 1 || k[0].Name != "login" || k[0].Keys["sig"] != 1 || len(k[0].LeftOut) != 1 || strings.Count(p.log.String(), "keys of the provider are left out") != 1 {
			t.Errorf("%s: got %+v, log %s", odd, k, p.log.String())
		}
	}
}

func TestProviderRejectsMetadata(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"jwks_uri", "token_endpoint", "authorization_endpoint", "userinfo_endpoint"} {
		for _, address := range []string{"http://login.acme.test/x", "ftp://127.0.0.1/x", "//login.acme.test/x", "://"} {
			p := newProvider(t)
			p.metadata[name] = address
			if _, _, err := p.begin(false); !errors.Is(err, broker.ErrUnavailable) {
				t.Errorf("%s %s: got %v", name, address, err)
			}
		}
	}
}
