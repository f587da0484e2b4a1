package main

import (
	"bufio"
	"bytes"
	"context"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"accessbroker.internal/api"
)

// If the answer is lost, the error states that the kill switch may be in progress and
// how to check.
func TestKillAnswerIsLost(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	var bodies []string
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			if r, err := http.ReadRequest(bufio.NewReader(c)); err == nil {
				var b bytes.Buffer
				_, _ = b.ReadFrom(r.Body)
				bodies = append(bodies, b.String())
			}
			_ = c.Close()
		}
	}()
	k := killSwitch{app: &app{}, client: adminClient(socket, killWait), access: "--admin-socket " + socket, selector: api.Selector{Issuer: "vault"}, why: "INC-1"}
	err = k.kill(context.Background(), "")
	if err == nil || !strings.Contains(err.Error(), "it finishes without this command") || !strings.Contains(err.Error(), "broker blocks --admin-socket "+socket) {
		t.Errorf("got %v", err)
	}
	_ = l.Close()
	<-done
	if len(bodies) == 0 || !strings.Contains(bodies[0], `"force":true`) {
		t.Errorf("got calls %q, want one with force", bodies)
	}
	if err = k.kill(context.Background(), ""); err == nil || strings.Contains(err.Error(), "finishes") || exitCode(err) != exitUnreachable {
		t.Errorf("without a broker: got %v", err)
	}
}

// The text never counts a credential as revoked that cannot be, lists what ends and how,
// and mentions a person's sessions.
func TestKillText(t *testing.T) {
	until := time.Date(2026, 11, 28, 12, 0, 0, 0, time.UTC)
	hit := func(revocation string) api.KillHit {
		return api.KillHit{Lease: "lse_05eubk8s4tq9v6m3kc2rn7h1p0", Holder: "spiffe://acme.test/agent/triage", Entitlement: "tickets-api", Revocation: revocation, ExpiresAt: until}
	}
	mixed := &api.KillPreview{
		Leases: 53, Ended: 2, Irrevocable: 50, Lasting: 1, WorkUntil: until, ByIssuer: map[string]int{"tickets": 53},
		Hits: []api.KillHit{hit("immediate"), hit("pending"), hit("at_expiry"), hit("at_rotation"), hit("never")},
	}
	for name, test := range map[string]struct {
		text   killText
		holder string
		hits   *api.KillPreview
		want   string
	}{
		"mixed": {killPreview, "spiffe://acme.test/agent/triage", mixed, `3 credentials would be revoked.
  49 cannot be revoked and work until they expire, the last until 2026-11-28 12:00:00Z
  1 cannot be revoked and keeps working after it expires; change the account that it belongs to
  2 belong to leases that ended before
  53 from issuer tickets
LEASE                           HOLDER                           ENTITLEMENT  ENDS         AT
lse_05eubk8s4tq9v6m3kc2rn7h1p0  spiffe://acme.test/agent/triage  tickets-api  at once
lse_05eubk8s4tq9v6m3kc2rn7h1p0  spiffe://acme.test/agent/triage  tickets-api  is revoked
lse_05eubk8s4tq9v6m3kc2rn7h1p0  spiffe://acme.test/agent/triage  tickets-api  on expiry    2026-11-28 12:00:00Z
lse_05eubk8s4tq9v6m3kc2rn7h1p0  spiffe://acme.test/agent/triage  tickets-api  on rotation
lse_05eubk8s4tq9v6m3kc2rn7h1p0  spiffe://acme.test/agent/triage  tickets-api  never
and 48 more
`},
		"irrevocable": {killDone, "spiffe://acme.test/agent/triage", &api.KillPreview{Leases: 3, Irrevocable: 3, WorkUntil: until}, `Blocked. No credential can be revoked.
  3 cannot be revoked and work until they expire, the last until 2026-11-28 12:00:00Z
`},
		"narrow": {killPreview, "spiffe://acme.test/agent/triage", &api.KillPreview{Leases: 2, Hits: []api.KillHit{hit("immediate"), hit("at_expiry")}}, `2 credentials would be revoked.
holder: spiffe://acme.test/agent/triage
LEASE                           ENTITLEMENT  ENDS       AT
lse_05eubk8s4tq9v6m3kc2rn7h1p0  tickets-api  at once
lse_05eubk8s4tq9v6m3kc2rn7h1p0  tickets-api  on expiry  2026-11-28
`},
		"one": {killDone, "spiffe://acme.test/agent/triage", &api.KillPreview{Leases: 1}, "Blocked. 1 credential is being revoked.\n"},
		"person": {killConfirm, "login/ben", &api.KillPreview{}, `A block will be placed. No live credentials match.
  all sessions of this person end; logins are refused until the block is lifted
`},
		"typo": {killConfirm, "spiffe://acme.test/agent/traige", &api.KillPreview{Unmatched: true, Near: "spiffe://acme.test/agent/triage"}, `NOTHING MATCHES holder spiffe://acme.test/agent/traige: no live credential, no request, no name in the rules.
Did you mean spiffe://acme.test/agent/triage?
A block will be placed. No live credentials match.
`},
	} {
		t.Run(name, func(t *testing.T) {
			var b strings.Builder
			k := killSwitch{selector: api.Selector{Holder: test.holder}}
			shown := newTable(&b)
			if name == "narrow" {
				shown.width = 80
			}
			k.write(shown, test.text, test.hits)
			if err := shown.Flush(); err != nil || b.String() != test.want {
				t.Errorf("got\n%s\nwant\n%s", b.String(), test.want)
			}
		})
	}
}
