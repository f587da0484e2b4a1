package config

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"accessbroker.internal/signals/signalstest"
)

// signalsConfig is goodConfig with a provider and two transmitters without a mistake.
func signalsConfig(t *testing.T) (dir, text string) {
	t.Helper()
	dir = sealedDir(t)
	for name, content := range map[string]string{
		"client.secret": "s3cret", "push.token": "s3cret-push-token-of-okta", "short.token": "s3cret", "poll.token": "s3cret-poll",
		"keys.json": string(signalstest.New("a").JWKS()), "none.json": `{"keys":[]}`, "weak.json": `{"keys":[{"kty":"oct","k":"AAAA"}]}`,
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	people := "\n  people:\n    login: {issuer: https://login.acme.test, client_id: broker, client_secret_file: client.secret}\nstore:"
	return dir, strings.Replace(goodConfig, "\nstore:", people, 1) + `
signals:
  okta:
    issuer: https://acme.okta.com
    jwks_uri: https://acme.okta.com/keys
    provider: login
    push: {token_files: [push.token]}
    verification: {endpoint: https://acme.okta.com/verify, stream_id: s1, token_file: poll.token}
    stale_after: 1h
    page: security
  corp:
    issuer: https://idp.corp.test
    keys_file: keys.json
    audience: https://broker.acme.test/signals
    provider: login
    subjects: {email: account, opaque: session, accounts: {"ana@acme.test": "00u1"}}
    poll: {endpoint: https://idp.corp.test/poll, token_file: poll.token, every: 30s}
    stale_after: 10m
    on_stale: hold
    most_percent: 5
    always: 0
    page: security
`
}

func TestTransmitters(t *testing.T) {
	dir, text := signalsConfig(t)
	c, err := Parse(filepath.Join(dir, "broker.yaml"), []byte(text), nil)
	if err != nil {
		t.Fatal(err)
	}
	if len(c.Transmitters) != 2 || len(c.Warnings) != 0 {
		t.Fatalf("got %+v, warnings %q", c.Transmitters, c.Warnings)
	}
	corp, okta := c.Transmitters[0], c.Transmitters[1]
	if okta.Audience != "https://broker.acme.test" || okta.MostPercent != 20 || okta.Always != 10 || okta.MaxAge != 24*time.Hour || okta.StaleAfter != time.Hour || okta.Hold ||
		time.Duration(okta.Verification.Every) != 10*time.Minute || len(okta.Subjects.Issuers) != 1 || okta.Subjects.Issuers[0] != "https://login.acme.test" {
		t.Errorf("okta: got %+v", okta)
	}
	if !corp.Hold || corp.MostPercent != 5 || corp.Always != 0 || corp.Subjects.Accounts["ana@acme.test"] != "00u1" {
		t.Errorf("corp: got %+v", corp)
	}
	for _, x := range c.Transmitters {
		cfg, err := x.Open()
		if err != nil || (cfg.Poll == nil) == (len(cfg.Tokens) == 0) || (cfg.KeysURL == "") == (len(cfg.Keys) == 0) {
			t.Errorf("%s: got %+v, %v", x.Name, cfg, err)
		}
		for _, token := range cfg.Tokens {
			if got, err := token(); err != nil || got != "s3cret-push-token-of-okta" {
				t.Errorf("%s: got the token %q, %v", x.Name, got, err)
			}
		}
	}
	if changed := c.NeedsRestart(c); len(changed) != 0 {
		t.Errorf("unchanged: got %q", changed)
	}
}

func TestMistakesOfTransmitters(t *testing.T) {
	dir, good := signalsConfig(t)
	for name, c := range map[string]struct{ old, fresh, want string }{
		"unknown key":            {"    provider: login\n    push", "    provder: login\n    push", "provder"},
		"no issuer":              {"    issuer: https://acme.okta.com\n", "", "write the transmitter's issuer"},
		"unknown provider":       {"    provider: login\n    push", "    provider: logn\n    push", `did you mean "login"?`},
		"two sources of keys":    {"    jwks_uri:", "    keys_file: keys.json\n    jwks_uri:", "jwks_uri or keys_file"},
		"keys over http":         {"https://acme.okta.com/keys", "http://acme.okta.com/keys", "use an https URL"},
		"no usable key":          {"keys_file: keys.json", "keys_file: none.json", "has no key"},
		"a secret key":           {"keys_file: keys.json", "keys_file: weak.json", "key 1"},
		"missing keys":           {"keys_file: keys.json", "keys_file: gone.json", "reading keys"},
		"push and poll":          {"    push:", "    poll: {endpoint: https://acme.okta.com/poll}\n    push:", "push or poll"},
		"neither":                {"    push: {token_files: [push.token]}\n", "", "push or poll"},
		"no token":               {"token_files: [push.token]", "token_files: []", "token_files"},
		"short token":            {"token_files: [push.token]", "token_files: [short.token]", "shorter than 20 characters"},
		"poll with a user":       {"https://idp.corp.test/poll", "https://u:p@idp.corp.test/poll", "use an https URL"},
		"poll at the cloud":      {"https://idp.corp.test/poll", "http://169.254.169.254/poll", "use an https URL"},
		"polls too rarely":       {"every: 30s", "every: 11m", "must be 1s to"},
		"no stream":              {"stream_id: s1, ", "", "write the id of the stream"},
		"silent push":            {"    verification: {endpoint: https://acme.okta.com/verify, stream_id: s1, token_file: poll.token}\n", "", "needs verification"},
		"stale before the next":  {"    stale_after: 1h", "    stale_after: 15m", "twice as long"},
		"unknown on_stale":       {"on_stale: hold", "on_stale: keep", "choose end or hold"},
		"on_stale alone":         {"    stale_after: 10m\n", "", "needs stale_after"},
		"share over 100":         {"most_percent: 5", "most_percent: 101", "must be 1 to 100"},
		"negative always":        {"always: 0", "always: -1", "must not be negative"},
		"unknown email":          {"email: account", "email: any", "choose how an address"},
		"unknown opaque":         {"opaque: session", "opaque: user", "choose what an opaque"},
		"account without a sub":  {`"00u1"`, `"0 0"`, "is not the sub"},
		"age over a week":        {"    page: security\n  corp", "    max_age: 200h\n    page: security\n  corp", "must be 5m to"},
		"same issuer, audience":  {"    issuer: https://idp.corp.test\n    keys_file: keys.json\n    audience: https://broker.acme.test/signals", "    issuer: https://acme.okta.com\n    keys_file: keys.json", "an event would belong to both"},
		"name in capitals":       {"  corp:", "  Corp:", "not a valid name"},
		"unreadable authorities": {"    provider: login\n    push", "    ca_file: gone.pem\n    provider: login\n    push", "reading authorities"},
	} {
		t.Run(name, func(t *testing.T) {
			if !strings.Contains(good, c.old) {
				t.Fatalf("the file has no %q", c.old)
			}
			_, err := Parse(filepath.Join(dir, "broker.yaml"), []byte(strings.Replace(good, c.old, c.fresh, 1)), nil)
			if err == nil || !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), "broker.yaml:") {
				t.Errorf("got %v, want %q with its place", err, c.want)
			}
		})
	}
	unpaged := strings.ReplaceAll(good, "    page: security\n", "")
	if c, err := Parse(filepath.Join(dir, "broker.yaml"), []byte(unpaged), nil); err != nil || len(c.Warnings) != 2 {
		t.Errorf("without page: got %v", err)
	}
}
