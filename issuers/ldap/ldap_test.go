package ldap_test

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"strings"
	"testing"
	"time"

	"accessbroker.internal/broker"
	"accessbroker.internal/broker/membership"
	"accessbroker.internal/issuers/issuertest"
	"accessbroker.internal/issuers/ldap"
)

const holder = "spiffe://acme.test/agent/triage"

// prepare has an issuer find a member at a server whose connections answer handles.
func prepare(t *testing.T, answer func(net.Conn)) error {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go answer(c)
		}
	}()
	issuer := ldap.New(ldap.Config{
		Name: "directory", URL: "ldap://" + l.Addr().String(), TLS: &tls.Config{}, BindDN: "cn=broker", Password: func() (string, error) { return "secret", nil },
		Base: "dc=acme", PeopleBase: "dc=acme", Match: "uid", IDAttribute: "entryUUID",
		Ledger: membership.New(membership.Config{}), Names: membership.Names{Accounts: map[string]string{holder: "triage"}},
	})
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	lease := issuertest.Lease(time.Now())
	lease.Holder = holder
	_, err = issuer.Prepare(ctx, broker.Order{Lease: lease, Entitlement: &broker.Entitlement{Spec: &ldap.Spec{Group: "cn=admins"}}})
	return err
}

// A directory that hangs, breaks off, or sends what is no answer or a huge one, delays no
// call past its deadline and costs no memory.
func TestBrokenServersAreUnavailable(t *testing.T) {
	t.Parallel()
	for name, answer := range map[string]func(net.Conn){
		"hangs":      func(net.Conn) {},
		"breaks off": func(c net.Conn) { _ = c.Close() },
		"no LDAP":    func(c net.Conn) { _, _ = c.Write([]byte("HTTP/1.1 400 Bad Request\r\n\r\n")) },
		"a packet of 2 GB": func(c net.Conn) {
			_, _ = c.Write([]byte{0x30, 0x84, 0x7f, 0xff, 0xff, 0xff, 0x04, 0x84, 0x7f, 0xff, 0xff, 0xf0})
		},
		"without an end": func(c net.Conn) {
			junk := make([]byte, 1<<16)
			for i := range junk {
				junk[i] = 0x30
			}
			for {
				if _, err := c.Write(junk); err != nil {
					return
				}
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			err := prepare(t, answer)
			if !errors.Is(err, broker.ErrIssuerUnavailable) {
				t.Errorf("got %v", err)
			}
			if err != nil && strings.Contains(err.Error(), "secret") {
				t.Errorf("the error has the password: %v", err)
			}
		})
	}
}

func TestSpecs(t *testing.T) {
	t.Parallel()
	for want, specs := range map[bool][]ldap.Spec{
		true:  {{Group: "cn=admins,dc=acme"}, {Group: "cn=a", Role: true}, {Group: "cn=a", Attribute: "member"}},
		false: {{}, {Group: "admins"}, {Group: "cn=" + strings.Repeat("x", 300)}, {Group: "cn=a", Attribute: "member)(uid"}, {Group: "cn=a", Attribute: "1x"}},
	} {
		for _, s := range specs {
			if err := s.Check(); (err == nil) != want {
				t.Errorf("%+v: got %v, want valid %t", s, err, want)
			}
		}
	}
}

// The handle names the directory, so that another one of the same name is recognised.
func TestIssuerOwnsItsLeasesAlone(t *testing.T) {
	t.Parallel()
	cfg := ldap.Config{URL: "ldaps://ldap.acme.test", Base: "dc=acme", Ledger: membership.New(membership.Config{})}
	here, elsewhere := ldap.New(cfg), cfg
	elsewhere.Base = "dc=other"
	l := issuertest.Lease(time.Now())
	l.Handle = []byte(`{"at":"other","group":"1","member":"2"}`)
	l.Expires = time.Now().Add(-time.Hour)
	for _, issuer := range []*membership.Issuer{here, ldap.New(elsewhere)} {
		if issuer.Owns(l) {
			t.Error("the issuer owns the lease of another one")
		}
		// A membership does not expire, so the lease is not over either.
		if err := issuer.Revoke(t.Context(), l); !errors.Is(err, broker.ErrIssuerUnavailable) {
			t.Errorf("Revoke: got %v", err)
		}
	}
}
