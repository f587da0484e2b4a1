package e2e

import (
	"fmt"
	"os"
	"strings"
	"testing"
)

// A story is shown on the terminal by "make demo" and checked by "make e2e".
type story struct {
	t    *testing.T
	step int
}

func (s *story) say(format string, args ...any) {
	text := strings.TrimRight(fmt.Sprintf("   "+format, args...), " ")
	if os.Getenv("STORY") == "" {
		s.t.Log(text)
		return
	}
	fmt.Println(text)
}

func (s *story) chapter(title string) {
	s.step++
	if os.Getenv("STORY") != "" {
		fmt.Printf("\n%d. %s\n\n", s.step, title)
	}
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
	s := &story{t: t, step: 8}
	s.database()
	s.reports()
}

func (s *story) database() {
	l := labOf(s.t)
	s.chapter("A database user of Vault, valid while one command runs")
	sql := func(text string) string {
		return fmt.Sprintf(`PGHOST=127.0.0.1 PGPORT=%d PGDATABASE=postgres %s/psql --no-psqlrc -tAc %q`, l.postgres.port, l.postgres.bin, text)
	}
	out, errs, code := l.cli(l.cliAgent, "exec", "orders-db-ro", "--why", "INC-4711", "--", "sh", "-c",
		sql("SELECT current_user")+" && "+sql("SELECT id FROM orders")+" && "+sql("DELETE FROM orders"))
	said := strings.Fields(out)
	s.expect(len(said) == 2 && code != 0 && strings.Contains(errs, "permission denied"), "%d %s %s", code, out, errs)
	s.say("  $ broker exec orders-db-ro --why INC-4711 -- psql …")
	s.say("  SELECT current_user        %s", said[0])
	s.say("  SELECT id FROM orders      %s", said[1])
	s.say("  DELETE FROM orders         permission denied for table orders")
	s.say("")
	left := l.vaultUsers(s.t)
	s.expect(left == 0, "%d users are left", left)
	s.say("psql exited, and its user is gone: PostgreSQL has %d users that Vault created.", left)
}

func (s *story) reports() {
	c := cloudOf(s.t)
	s.chapter("A session at S3 for one customer's folder, in the AWS command line")
	read, err := c.s3(s.t, "reports", "cp", "s3://reports/acme/q1", "-")
	s.expect(err == nil && read == "secret of acme/q1", "%v %s", err, read)
	refused, err := c.s3(s.t, "reports", "cp", "s3://reports/other/q1", "-")
	s.expect(err != nil, "another customer's folder: %s", refused)
	s.say("  credential_process = broker aws reports --scope read --param prefix=acme")
	s.say("")
	s.say("  $ aws s3 cp s3://reports/acme/q1 -     %s", read)
	s.say("  $ aws s3 cp s3://reports/other/q1 -    403, the session's policy does not allow it")
	s.say("")
	s.say("The broker has no key of the STS: it signed an assertion, and the STS verified it")
	s.say("with the broker's published keys.")
}
