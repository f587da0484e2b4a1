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

// A kill switch whose answer is lost may have been pulled: the operator is told
// so, and how to look.
func TestKillWithoutAnAnswer(t *testing.T) {
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
	k := killing{app: &app{}, client: adminClient(socket, killWait), by: "--admin-socket " + socket, selector: api.Selector{Issuer: "vault"}, why: "INC-1"}
	err = k.pull(context.Background(), "")
	if err == nil || !strings.Contains(err.Error(), "goes on by itself") || !strings.Contains(err.Error(), "broker blocks --admin-socket "+socket) {
		t.Errorf("the operator is told: %v", err)
	}
	_ = l.Close()
	<-done
	if len(bodies) == 0 || !strings.Contains(bodies[0], `"force":true`) {
		t.Errorf("it was asked %q", bodies)
	}
	if err = k.pull(context.Background(), ""); err == nil || strings.Contains(err.Error(), "by itself") || exitCode(err) != exitUnreachable {
		t.Errorf("with nobody there: %v", err)
	}
}

// What has ended before is not told as ending, and a person is told of sessions.
func TestKillIsTold(t *testing.T) {
	var b strings.Builder
	k := killing{selector: api.Selector{Holder: "login/ben"}}
	k.write(&b, "it would end", &api.KillPreview{Leases: 9, Ended: 7})
	for _, want := range []string{"it would end 2 credentials\n", "7 others ended before", "all sessions of this person"} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("it says %q, not %q", b.String(), want)
		}
	}
	b.Reset()
	k.selector.Holder = "spiffe://acme.test/agent"
	if k.write(&b, "it would end", &api.KillPreview{Leases: 2}); strings.Contains(b.String(), "before") || strings.Contains(b.String(), "person") {
		t.Errorf("it says %q", b.String())
	}
}
