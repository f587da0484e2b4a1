package e2e

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"accessbroker.internal/api"
)

// testLogins issues and returns a database user through every auth method of the
// broker at Vault. The broker's token expires in the meantime, so it logs in again.
func testLogins(t *testing.T, l *lab) {
	for _, name := range []string{"orders-by-cert", "orders-by-token", "orders-by-agent"} {
		for range 2 {
			c := l.issue(t, api.Ask{Entitlement: name})
			if err := l.works(c); err != nil {
				t.Errorf("%s: %v", name, err)
			}
			lease, err := l.agent.Revoke(t.Context(), c.Lease, "done")
			if err != nil || lease.Revocation != "immediate" {
				t.Errorf("%s: returned: %+v, %v", name, lease, err)
			}
			if err := l.rejected(c); err != nil {
				t.Errorf("%s: %v", name, err)
			}
		}
	}
	// The broker reads its token file again when Vault refuses the token.
	l.vault.must(t, "POST", "auth/token/revoke", fields{"token": l.fileToken})
	l.fileToken = l.brokerToken(t)
	l.write(t, "vault.token", l.fileToken)
	eventually(t, "a credential with the new token", time.Minute, func() error {
		_, _, err := l.agent.AskAndCollect(t.Context(), api.Ask{Entitlement: "orders-by-token"})
		return err
	})
	l.endAll(t)
}

// brokerToken creates a token as an operator would for a token file or an agent.
func (l *lab) brokerToken(t testing.TB) string {
	t.Helper()
	return l.vault.must(t, "POST", "auth/token/create", fields{"policies": []string{"broker"}, "no_parent": true, "ttl": "1h"}).Auth.ClientToken
}

// testDiskFull fills the broker's disk while Vault creates a credential. The
// caller does not get the credential, the broker revokes it and is not ready,
// because it can't record anything. With the disk back, the broker works again.
func testDiskFull(t *testing.T, l *lab) {
	l.vaultProxy.beforeAnswer(func(r *http.Request) {
		if strings.HasSuffix(r.URL.Path, "/database/creds/orders-ro") {
			limitFiles(t, l.broker.cmd.Process.Pid, 1)
		}
	})
	_, _, err := l.agent.AskAndCollect(t.Context(), api.Ask{Entitlement: "orders-by-agent"})
	l.vaultProxy.beforeAnswer(nil)
	if err := wantRefusal(err, api.Unavailable, http.StatusServiceUnavailable); err != nil {
		t.Error(err)
	}
	// The user is gone although the disk is still full.
	eventually(t, "the end of the user that no caller got", time.Minute, func() error {
		if n, lost := l.vaultUsers(t), l.maxOrphans(); n > lost {
			return fmt.Errorf("%d users, at most %d are orphans", n, lost)
		}
		return nil
	})
	if err := l.ready(); err == nil {
		t.Error("the broker reports that it is ready and can record nothing")
	}
	_, _, err = l.agent.AskAndCollect(t.Context(), api.Ask{Entitlement: "tickets-api", Scopes: []string{"tickets:read"}})
	if err := wantRefusal(err, api.Unavailable, http.StatusServiceUnavailable); err != nil {
		t.Errorf("the broker's own tokens: %v", err)
	}
	limitFiles(t, l.broker.cmd.Process.Pid, unix.RLIM_INFINITY)
	eventually(t, "a credential with the disk back", 2*time.Minute, func() error {
		if err := l.ready(); err != nil {
			return err
		}
		c, _, err := l.agent.AskAndCollect(t.Context(), api.Ask{Entitlement: "orders-by-agent"})
		if err == nil {
			err = l.works(c)
		}
		return err
	})
	l.endAll(t)
}

// limitFiles makes every write of a process beyond a file size fail, as a full
// disk would.
func limitFiles(t testing.TB, pid int, size uint64) {
	var old unix.Rlimit
	if err := unix.Prlimit(pid, unix.RLIMIT_FSIZE, nil, &old); err != nil {
		t.Error(err)
	}
	if err := unix.Prlimit(pid, unix.RLIMIT_FSIZE, &unix.Rlimit{Cur: size, Max: old.Max}, nil); err != nil {
		t.Error(err)
	}
}

// testThrottled lets the STS answer that the rate is exceeded. The broker retries a
// few times and then reports an error; other issuers keep working.
func testThrottled(t *testing.T, c *cloud) {
	sts := intercept(t, c.minio.address(), c.minio.caFile(), true)
	sts.writeCA(t, filepath.Join(c.dir, "between.pem"))
	c.broker.stop()
	c.configureSTS(sts.URL, "between.pem")
	c.start(t)
	ask := func() (string, string, int) {
		return c.run("request", "reports", "--scope", "read", "--param", "prefix=acme", "-o", "env")
	}
	var left, refused atomic.Int64
	sts.handle(func(w http.ResponseWriter, _ *http.Request) bool {
		if left.Add(-1) < 0 {
			return false
		}
		refused.Add(1)
		w.Header().Set("Content-Type", "text/xml")
		w.WriteHeader(http.StatusBadRequest)
		_, _ = io.WriteString(w, `<ErrorResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/"><Error><Type>Sender</Type><Code>Throttling</Code><Message>Rate exceeded</Message></Error><RequestId>r</RequestId></ErrorResponse>`)
		return true
	})
	left.Store(2)
	if out, errs, code := ask(); code != 0 || !strings.Contains(out, "AWS_SESSION_TOKEN=") || refused.Load() != 2 {
		t.Errorf("after two throttled calls: %d %s (%d were throttled)", code, errs, refused.Load())
	}
	left.Store(1 << 30)
	if _, errs, code := ask(); code == 0 || !strings.Contains(errs, string(api.IssuerUnavailable)) {
		t.Errorf("while it throttles: %d %s", code, errs)
	}
	if _, errs, code := c.run("request", "tickets-api", "--scope", "tickets:read"); code != 0 {
		t.Errorf("another issuer meanwhile: %d %s", code, errs)
	}
	left.Store(0)
	eventually(t, "a session after the throttling", 2*time.Minute, func() error {
		if _, errs, code := ask(); code != 0 {
			return errors.New(errs)
		}
		return nil
	})
	c.broker.stop()
	c.configureSTS(c.minio.address(), c.minio.caFile())
	c.start(t)
}
