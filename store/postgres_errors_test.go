package store

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"database/sql/driver"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"syscall"
	"testing"

	"github.com/jackc/pgx/v5/pgconn"

	"accessbroker.internal/broker"
)

// TestCauses looks at what operators read about the errors of PostgreSQL and of connections
// to it.
func TestCauses(t *testing.T) {
	t.Parallel()
	server := func(code string) error { return &pgconn.PgError{Severity: "FATAL", Code: code, Message: "secret-host"} }
	network := func(err error) error {
		return &net.OpError{Op: "dial", Net: "tcp", Addr: &net.TCPAddr{IP: net.IPv4(10, 9, 8, 7), Port: 5432}, Err: os.NewSyscallError("connect", err)}
	}
	for want, errs := range map[string][]error{
		"the database's disk is full":                        {server("53100")},
		"has too many connections":                           {server("53300")},
		"is short of resources":                              {server("53400")},
		"is shutting down":                                   {server("57P01")},
		"starting up, recovering or shutting down":           {server("57P03"), errors.Join(network(syscall.ECONNREFUSED), server("57P03"))},
		"crashed and restarts":                               {server("57P02")},
		"is read-only: it is a standby":                      {server("25006"), errStandby},
		"collided":                                           {server("40001"), server("40P01")},
		"held a lock of the database for too long":           {server("55P03")},
		"did not finish a statement in time":                 {server("57014")},
		"refuses the broker's role, password or certificate": {server("28P01"), server("28000")},
		"the database does not exist":                        {server("3D000")},
		"the broker's role lacks a right":                    {server("42501")},
		"are not those of this version":                      {server("42P01")},
		"cannot read or write its files":                     {server("58030"), server("58P01")},
		"is damaged, or has a fault of its own":              {server("XX001"), server("XX000")},
		"the connection pooler in front of the database":     {server("08P01")},
		"the connection to the database failed":              {server("08006")},
		"no database listens at its address":                 {network(syscall.ECONNREFUSED), network(syscall.ENOENT)},
		"no network route leads to the database":             {network(syscall.EHOSTUNREACH), network(syscall.ENETUNREACH)},
		"the host name of the database has no address":       {&net.DNSError{Err: "no such host", Name: "secret-host"}},
		"did not answer in time":                             {context.DeadlineExceeded, os.ErrDeadlineExceeded, network(syscall.ETIMEDOUT)},
		"the connection to the database was cut":             {io.EOF, io.ErrUnexpectedEOF, driver.ErrBadConn, pgconn.ErrConnClosed, network(syscall.ECONNRESET), network(syscall.EPIPE)},
		"certificate is not trusted":                         {x509.HostnameError{Host: "secret-host", Certificate: &x509.Certificate{}}, x509.UnknownAuthorityError{}, tls.RecordHeaderError{}},
		"only a read-only server is reachable":               {pgconn.ErrReadOnlyConnection, pgconn.ErrPrimaryConnection},
		"lacks commits that this broker has seen":            {ErrRewound},
		"the database cannot be used":                        {errors.New("secret-host")},
	} {
		for _, err := range errs {
			got := away(fmt.Errorf("reaching secret-host as secret-role: %w", err))
			if !strings.Contains(got.Error(), want) || strings.Contains(got.Error(), "secret") || strings.Contains(got.Error(), "10.9") || !errors.Is(got, broker.ErrUnavailable) {
				t.Errorf("%v: got %q, want %q and no name", err, got, want)
			}
		}
	}
	for code, words := range causes {
		if words == "" || len(code) != 2 && len(code) != 5 {
			t.Errorf("%s: %q", code, words)
		}
	}
}

// TestConnectErrorsNameNoHost connects to servers that are not there: what /readyz shows names
// neither the host nor the role nor the password.
func TestConnectErrorsNameNoHost(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := l.Addr().String()
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	_, err = pgconn.Connect(t.Context(), "postgres://secret-role:secret-password@"+address+"/broker?sslmode=disable")
	err = unavailable("reading", err)
	if got := Public(fmt.Errorf("the rules: %w", err)).Error(); !strings.Contains(got, "no database listens at its address") || strings.Contains(got, "secret") || strings.Contains(got, "127.0.0.1") {
		t.Errorf("got %q from %v", got, err)
	}
	if other := errors.New("the bundle is old"); Public(other) != other || Public(nil) != nil {
		t.Error("Public changes errors that are not the database's")
	}
}

// The connections of readers are read-only themselves, which does not make the server so.
func TestPingAsksTheServer(t *testing.T) {
	db := postgresPool(t, func(c *postgresConfig) { c.readOnly = true })
	s := &Store{readers: db}
	if err := s.pingShared(t.Context()); err != nil {
		t.Errorf("got %v", err)
	}
}
