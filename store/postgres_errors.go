package store

import (
	"cmp"
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"database/sql/driver"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"accessbroker.internal/broker"
)

// causes are what operators read about an error of PostgreSQL, by SQLSTATE or by its class.
// https://www.postgresql.org/docs/current/errcodes-appendix.html
var causes = map[string]string{
	"08":    "the connection to the database failed",
	"08P01": "the connection pooler in front of the database refused the connection", // PgBouncer uses it for all its own errors
	"25006": "the database is read-only: it is a standby, or an administrator made it so",
	"25P03": "the database ended a transaction that was idle for too long",
	"25P04": "the database ended a transaction that took too long",
	"28":    "the database refuses the broker's role, password or certificate",
	"3D000": "the database does not exist",
	"40":    "a transaction collided with another one",
	"42":    "the database's tables are not those of this version: run broker store migrate",
	"42501": "the broker's role lacks a right in the database: run broker store migrate",
	"53":    "the database is short of resources",
	"53100": "the database's disk is full",
	"53200": "the database is out of memory",
	"53300": "the database has too many connections",
	"55P03": "another transaction held a lock of the database for too long",
	"57":    "the database ended the statement",
	"57014": "the database did not finish a statement in time",
	"57P01": "the database is shutting down",
	"57P02": "the database crashed and restarts",
	"57P03": "the database is starting up, recovering or shutting down",
	"57P04": "the database was removed",
	"57P05": "the database ended a session that was idle for too long",
	"58":    "the database cannot read or write its files",
	"XX":    "the database is damaged, or has a fault of its own",
}

// away returns what /readyz shows of an error of PostgreSQL. The error itself, which can name
// hosts and roles, is for the log only.
func away(err error) error {
	return fmt.Errorf("%w: %s", broker.ErrUnavailable, cmp.Or(cause(err), "the database cannot be used"))
}

// Public returns an error as anyone may read it. Of an error of PostgreSQL, only the cause
// remains, without names of hosts and roles.
func Public(err error) error {
	known, server, connecting := (*unavailableError)(nil), (*pgconn.PgError)(nil), (*pgconn.ConnectError)(nil)
	if errors.As(err, &known) && cause(known.err) != "" || errors.As(err, &server) || errors.As(err, &connecting) {
		return away(err)
	}
	return err
}

// troubled notes that the database cannot be written, and why.
func (s *Store) troubled(err error) {
	words := "the database cannot be written"
	if s.Shared() {
		words = cmp.Or(cause(err), words)
	}
	s.unwritable.Store(&words)
}

// recovered notes that a group was committed. On a full disk, a group whose rows fit into pages
// that the tables have proves nothing: see probe.
func (s *Store) recovered() {
	if why := s.unwritable.Load(); why != nil && *why != causes[diskFull] {
		s.unwritable.Store(nil)
	}
}

const (
	diskFull = "53100"

	// probeEvery is the pause between attempts to write, while the database can't be written.
	probeEvery = 200 * time.Millisecond

	// probeSize is more than what tables have left in their pages.
	probeSize = 1 << 20
)

// probe tries to write. After a full disk, it writes so much that the disk must have space.
func (s *Store) probe(ctx context.Context) error {
	why := s.unwritable.Load()
	if why == nil || *why != causes[diskFull] {
		_, err := s.delete(ctx, deleteFeed, sweepBatch)
		return err
	}
	block := make([]byte, probeSize)
	_, _ = rand.Read(block) // never fails
	err := s.exec(ctx, func(ctx context.Context, w *writer) error {
		if err := w.exec(ctx, "INSERT INTO commits (seq, nonce, at, changes) VALUES (?, ?, 0, ?)", probeSeq, block[:1], block); err != nil {
			return err
		}
		return w.exec(ctx, "DELETE FROM commits WHERE seq = ?", probeSeq)
	})
	if err == nil {
		s.unwritable.CompareAndSwap(why, nil)
	}
	return err
}

// probeSeq is the number of no commit.
const probeSeq = -1

// selectReadOnly reports whether a server accepts no writes. The connections of readers are
// read-only themselves, so it reads what the setting is without them.
const selectReadOnly = "SELECT pg_is_in_recovery() OR (SELECT reset_val FROM pg_settings WHERE name = 'default_transaction_read_only') = 'on'"

// pingShared returns an error if the server can't be reached or accepts no writes.
func (s *Store) pingShared(ctx context.Context) error {
	var readOnly bool
	switch err := s.readers.QueryRowContext(ctx, selectReadOnly).Scan(&readOnly); {
	case err != nil:
		return away(err)
	case readOnly:
		return away(errStandby)
	}
	return nil
}

// cause returns, in words for an operator, why the database cannot be used. The words contain
// no name, address or password, because anyone may call /readyz. Empty: the error is not
// about the database being away.
func cause(err error) string {
	if isFull(err) && sqlState(err) == "" {
		return "the disk is full"
	}
	if state := sqlState(err); len(state) == 5 {
		if words := causes[state]; words != "" {
			return words
		}
		return causes[state[:2]]
	}
	switch {
	case errors.Is(err, ErrRewound):
		return ErrRewound.Error()
	case errors.Is(err, errStandby):
		return causes["25006"]
	case errors.Is(err, pgconn.ErrReadOnlyConnection), errors.Is(err, pgconn.ErrPrimaryConnection):
		return "only a read-only server is reachable: a standby that has not been promoted"
	case isCertificate(err):
		return "the database's certificate is not trusted, or TLS failed"
	}
	return connectionCause(err)
}

// connectionCause is cause for errors that are not PostgreSQL's own.
func connectionCause(err error) string {
	name := (*net.DNSError)(nil)
	switch {
	case errors.As(err, &name):
		return "the host name of the database has no address"
	case errors.Is(err, syscall.ECONNREFUSED), errors.Is(err, fs.ErrNotExist) && errors.As(err, new(*net.OpError)):
		return "no database listens at its address"
	case errors.Is(err, syscall.EHOSTUNREACH), errors.Is(err, syscall.ENETUNREACH):
		return "no network route leads to the database"
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, os.ErrDeadlineExceeded), pgconn.Timeout(err), errors.Is(err, syscall.ETIMEDOUT):
		return "the database did not answer in time"
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, net.ErrClosed), errors.Is(err, pgconn.ErrConnClosed),
		errors.Is(err, driver.ErrBadConn), errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE), errors.Is(err, syscall.ECONNABORTED):
		return "the connection to the database was cut"
	}
	return ""
}

func isCertificate(err error) bool {
	verification, header := (*tls.CertificateVerificationError)(nil), tls.RecordHeaderError{}
	authority, host, invalid := x509.UnknownAuthorityError{}, x509.HostnameError{}, x509.CertificateInvalidError{}
	alert := tls.AlertError(0)
	return errors.As(err, &verification) || errors.As(err, &header) || errors.As(err, &authority) || errors.As(err, &host) || errors.As(err, &invalid) || errors.As(err, &alert)
}
