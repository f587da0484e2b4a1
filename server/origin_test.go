package server

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"accessbroker.internal/attest"
)

// The operator may write the default port or capitals into external_url. A browser's
// origin has neither.
func TestPasskeysUnderOtherSpellings(t *testing.T) {
	t.Parallel()
	for _, external := range []string{"https://broker.acme.test", "https://broker.acme.test:443", "https://Broker.ACME.test", "HTTPS://broker.acme.test:/", "https://broker.acme.test:0443"} {
		t.Run(external, func(t *testing.T) {
			w := newWorld(t, func(c *Config) {
				withPeople(c)
				c.ExternalURL = external
				p, err := attest.NewPasskeys("Broker.acme.test", external)
				if err != nil {
					t.Fatal(err)
				}
				c.Passkeys = p
			})
			ben := newDevice(t, w, "login/ben")
			r := w.guarded(t, signIt)
			path := "/ui/requests/" + r.ID
			good := formOf("do", "approve", "digest", r.Digest, "scope.read", "on", "comment", "as agreed", "ttl", "5m")
			if status, where := ben.enrol(t); status != http.StatusSeeOther || where != "/ui/passkeys?done=enrolled" {
				t.Fatalf("enrolling: got %d to %q", status, where)
			}
			if status, where, page := ben.visit(http.MethodPost, path, ben.sign(t, path+"/sign", good)); status != http.StatusSeeOther {
				t.Errorf("approving: got %d to %q %s", status, where, page)
			}
		})
	}
}

// A browser without Sec-Fetch-Site sends the origin in its own spelling, and a client
// may write the default port into Host.
func TestCrossOriginComparesOrigins(t *testing.T) {
	t.Parallel()
	w := newWorld(t, func(c *Config) { withPeople(c); c.ExternalURL = "https://Broker.acme.test:443" })
	for origin, want := range map[string]bool{"https://broker.acme.test": true, "https://evil.test": false, "https://broker.acme.test.evil.test": false, "http://broker.acme.test": false, "null": false} {
		for _, host := range []string{"broker.acme.test", "broker.acme.test:443", "BROKER.acme.test"} {
			r := httptest.NewRequest(http.MethodPost, "https://broker.acme.test/ui/logout", strings.NewReader(""))
			r.Host = host
			r.Header.Set("Origin", origin)
			r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
			answer := httptest.NewRecorder()
			w.Handler(UI).ServeHTTP(answer, r)
			if origin == "http://broker.acme.test" && host == "broker.acme.test" {
				continue // net/http can't tell: the scheme is not in Host
			}
			if refused := strings.Contains(answer.Body.String(), "Cross-origin") || strings.Contains(answer.Body.String(), "cross_origin"); refused == want {
				t.Errorf("origin %s, host %s: got %d, refused %t", origin, host, answer.Code, refused)
			}
		}
	}
}

func TestURLsWithoutNormalSpelling(t *testing.T) {
	t.Parallel()
	for _, external := range []string{"", "broker.acme.test", "https://broker.acme.test.", "https://bröker.acme.test", "https://ana@broker.acme.test", "https://broker.acme.test/?x", "https://broker.acme.test/#", "https://broker.acme.test/a/../b"} {
		if _, err := attest.NewPasskeys("broker.acme.test", external); err == nil {
			t.Errorf("%s: passkeys were accepted", external)
		}
		cfg := newWorld(t, nil).cfg
		cfg.ExternalURL = external
		if _, err := New(cfg); err == nil {
			t.Errorf("%s: a server was accepted", external)
		}
	}
	for _, rp := range []string{"", "acme.tes", "roker.acme.test", "evil.test"} {
		if _, err := attest.NewPasskeys(rp, "https://broker.acme.test"); err == nil {
			t.Errorf("the relying party %q was accepted", rp)
		}
	}
}
