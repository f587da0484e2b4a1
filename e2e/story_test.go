package e2e

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"accessbroker.internal/internal/screen"
)

// A story is shown on the terminal by "make demo" and checked by "make e2e".
type story struct {
	*screen.Teller
	t *testing.T
}

// newStory returns a story that continues after a chapter. Without STORY, it goes to the
// test's log.
func newStory(t *testing.T, after int) *story {
	s := &story{&screen.Teller{Out: t.Output(), Chapter: after}, t}
	if os.Getenv("STORY") != "" {
		s.Out, s.Palette = os.Stdout, screen.PaletteFor(os.Stdout, os.Getenv)
	}
	return s
}

// expect ends the story if the condition does not hold.
func (s *story) expect(holds bool, format string, args ...any) {
	s.t.Helper()
	if !holds {
		s.t.Fatalf("the story took another course: "+format, args...)
	}
}

// TestStory continues the story of "broker demo" with credentials of real
// servers.
func TestStory(t *testing.T) {
	t.Parallel() // it mostly waits
	s := newStory(t, 10)
	s.database()
	s.reports()
}

func (s *story) database() {
	l := labOf(s.t)
	s.Open("A database user of Vault, valid while one command runs")
	sql := func(text string) string {
		return fmt.Sprintf(`PGHOST=127.0.0.1 PGPORT=%d PGDATABASE=postgres %s/psql --no-psqlrc -tAc %q`, l.postgres.Port, l.postgres.Bin(), text)
	}
	out, errs, code := l.cli(l.cliAgent, "exec", "orders-db-ro", "--why", "INC-4711", "--", "sh", "-c",
		sql("SELECT current_user")+" && "+sql("SELECT id FROM orders")+" && "+sql("DELETE FROM orders"))
	said := strings.Fields(out)
	s.expect(len(said) == 2 && code != 0 && strings.Contains(errs, "permission denied"), "%d %s %s", code, out, errs)
	s.Types("broker exec orders-db-ro --why INC-4711 -- psql …")
	s.Good("issued", "the user %s", said[0])
	s.Good("accepted", "SELECT id FROM orders  →  %s", said[1])
	s.Bad("refused", "DELETE FROM orders  →  permission denied for table orders")
	left := l.vaultUsers(s.t)
	s.expect(left == 0, "%d users are left", left)
	s.Good("revoked", "psql has exited, and PostgreSQL has %d users that Vault created", left)
}

func (s *story) reports() {
	c := cloudOf(s.t)
	s.Open("A session at S3 for one customer's folder, in the AWS command line")
	read, err := c.s3(s.t, "reports", "cp", "s3://reports/acme/q1", "-")
	s.expect(err == nil && read == "secret of acme/q1", "%v %s", err, read)
	refused, err := c.s3(s.t, "reports", "cp", "s3://reports/other/q1", "-")
	s.expect(err != nil && strings.Contains(err.Error()+refused, "403"), "another customer's folder: %s, %v", refused, err)
	s.Say("credential_process = broker aws reports --param prefix=acme …")
	s.Types("aws s3 cp s3://reports/acme/q1 -")
	s.Good("accepted", "%s", read)
	s.Types("aws s3 cp s3://reports/other/q1 -")
	s.Bad("refused", "403: the session's policy allows the prefix acme only")
	s.Say("The broker has no key of AWS. The STS verified a signed assertion.")
}
