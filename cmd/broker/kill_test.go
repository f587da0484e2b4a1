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
