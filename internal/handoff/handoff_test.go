package handoff

import (
	"slices"
	"strings"
	"testing"
	"time"

	"accessbroker.internal/api"
)

func testCredential(kind string, secret map[string]string) *api.Credential {
	return &api.Credential{
		Lease: "lse_1", Request: "req_1", Type: kind, Secret: secret,
		ExpiresAt: time.Date(2026, 11, 2, 13, 0, 0, 0, time.FixedZone("", 3600)),
	}
}

// The command sees the variables of its credential, and none by which the tools of
// that type would find another one.
func TestInVariables(t *testing.T) {
	inherited := []string{
		"PATH=/bin", "BROKER_URL=https://broker.test", "BROKER_PASSWORD=old", "EMPTY=", "=C:=strange",
		"AWS_ACCESS_KEY_ID=old", "AWS_SECRET_ACCESS_KEY=old", "AWS_SESSION_TOKEN=old", "AWS_SECURITY_TOKEN=old",
		"AWS_PROFILE=old", "AWS_DEFAULT_PROFILE=old", "AWS_CREDENTIAL_EXPIRATION=old", "AWS_WEB_IDENTITY_TOKEN_FILE=old",
		"AWS_ROLE_ARN=old", "AWS_CONTAINER_CREDENTIALS_FULL_URI=old", "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI=old", "AWS_REGION=eu-west-1",
		"PGUSER=old", "PGPASSWORD=old", "PGPASSFILE=old", "PGHOST=db", "VAULT_TOKEN=old", "VAULT_ADDR=https://vault.test",
	}
	aws, pg, vault := inherited[5:16], inherited[17:20], inherited[21:22]
	lease := []string{"BROKER_LEASE=lse_1", "BROKER_EXPIRES_AT=2026-11-02T12:00:00Z"}
	for name, c := range map[string]struct {
		kind, file string
		secret     map[string]string
		gone       []string
		set        []string
	}{
		"bearer": {"bearer", "", map[string]string{"token": "t"}, nil, []string{"BROKER_ACCESS_TOKEN=t"}},
		"aws": {"aws", "", map[string]string{"access_key_id": "i", "secret_access_key": "s", "session_token": "t"}, aws,
			[]string{"AWS_ACCESS_KEY_ID=i", "AWS_SECRET_ACCESS_KEY=s", "AWS_SESSION_TOKEN=t"}},
		"aws, no session": {"aws", "", map[string]string{"access_key_id": "i", "secret_access_key": "s"}, aws,
			[]string{"AWS_ACCESS_KEY_ID=i", "AWS_SECRET_ACCESS_KEY=s"}},
		"userpass": {"userpass", "", map[string]string{"username": "u", "password": "p=\n'"}, pg,
			[]string{"PGUSER=u", "PGPASSWORD=p=\n'", "BROKER_USERNAME=u", "BROKER_PASSWORD=p=\n'"}},
		"certificate": {"certificate", "", map[string]string{"certificate": "c", "private_key": "k", "chain": "h", "serial": "1"}, nil,
			[]string{"BROKER_CERTIFICATE=c", "BROKER_PRIVATE_KEY=k", "BROKER_CHAIN=h"}},
		"vault": {"vault", "", map[string]string{"token": "t"}, vault, []string{"VAULT_TOKEN=t"}},
		"data": {"data", "", map[string]string{"signed-key": "k", "a.b": "c"}, nil,
			[]string{"BROKER_A_B=c", "BROKER_SIGNED_KEY=k"}},
		"aws in a file": {"aws", "/f", map[string]string{"access_key_id": "i", "secret_access_key": "s"}, nil,
			[]string{"BROKER_CREDENTIAL_FILE=/f"}},
	} {
		t.Run(name, func(t *testing.T) {
			want := slices.DeleteFunc(slices.Clone(inherited), func(kv string) bool {
				return strings.HasPrefix(kv, "BROKER_") || slices.Contains(c.gone, kv)
			})
			want = slices.Concat(want, lease, c.set)
			e := InVariables(testCredential(c.kind, c.secret))
			if c.file != "" {
				e = InFile(testCredential(c.kind, c.secret), c.file)
			}
			if got := e.Of(inherited); !slices.Equal(got, want) {
				t.Errorf("got\n%q\nwant\n%q", got, want)
			}
		})
	}
}

// libpq, "The Connection Service File": a value begins after the first equals sign and
// ends before the white space at the end of the line. There are no escapes.
func TestPgservice(t *testing.T) {
	for _, c := range []struct{ user, password, want string }{
		{"u", "p", "user=u\npassword=p\n"},
		{`a:b\`, ` #'"=[x]`, "user=a:b\\\npassword= #'\"=[x]\n"},
		{"u", "two\nlines", ""},
		{"u", "p ", ""},
		{"u\t", "p", ""},
		{"u", strings.Repeat("x", maxServiceLine), ""},
	} {
		credential := testCredential("userpass", map[string]string{"username": c.user, "password": c.password})
		credential.Entitlement = "orders-db"
		want := c.want
		if want != "" {
			want = "[orders-db]\n" + want
		}
		got, err := Pgservice(credential, credential.Entitlement)
		if got != want || (err != nil) != (want == "") {
			t.Errorf("%q, %q: got %q, %v, want %q", c.user, c.password, got, err, want)
		}
	}
	if section, err := Pgservice(testCredential("bearer", map[string]string{"token": "t"}), "s"); err == nil {
		t.Errorf("a token: got %q, want an error", section)
	}
}

// libpq, "The Password File": a backslash escapes a colon or backslash in a field, and
// there is no escape for a line break.
func TestPgpass(t *testing.T) {
	for _, c := range []struct{ user, password, want string }{
		{"u", "p", "*:*:*:u:p"},
		{`a:b`, `c:d:`, `*:*:*:a\:b:c\:d\:`},
		{`a\b`, `\:\\`, `*:*:*:a\\b:\\\:\\\\`},
		{"u", `#' "*`, `*:*:*:u:#' "*`},
		{"u", "two\nlines", ""},
		{"u\r", "p", ""},
	} {
		got, err := Pgpass(testCredential("userpass", map[string]string{"username": c.user, "password": c.password}))
		if got != c.want || (err != nil) != (c.want == "") {
			t.Errorf("%q, %q: got %q, %v, want %q", c.user, c.password, got, err, c.want)
		}
	}
	if line, err := Pgpass(testCredential("bearer", map[string]string{"token": "t"})); err == nil {
		t.Errorf("a token: got %q, want an error", line)
	}
}
