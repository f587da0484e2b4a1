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

// The text separates leases that ended before, and mentions a person's sessions.
func TestKillText(t *testing.T) {
	var b strings.Builder
	k := killSwitch{selector: api.Selector{Holder: "login/ben"}}
	k.write(&b, killPreview, &api.KillPreview{Leases: 9, Ended: 7})
	for _, want := range []string{"2 credentials would be revoked.\n", "7 others ended before", "all sessions of this person"} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("got %q, want %q in it", b.String(), want)
		}
	}
	b.Reset()
	k.selector.Holder = "spiffe://acme.test/agent"
	if k.write(&b, killPreview, &api.KillPreview{Leases: 2}); strings.Contains(b.String(), "before") || strings.Contains(b.String(), "person") {
		t.Errorf("got %q", b.String())
	}
}
