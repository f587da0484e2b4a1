package cluster

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"accessbroker.internal/e2e/servers"
)

// A PgBouncer pools connections in transaction mode.
type PgBouncer struct {
	Port int

	dir, config string
	process     *Process
}

// NewPgBouncer starts a PgBouncer in a new folder under dir, in front of the server at an
// address.
func NewPgBouncer(ctx context.Context, dir, target string) (b *PgBouncer, err error) {
	b = &PgBouncer{dir: filepath.Join(dir, "pgbouncer")}
	b.config = filepath.Join(b.dir, "pgbouncer.ini")
	if b.Port, err = FreePort(); err != nil {
		return nil, err
	}
	if err := os.Mkdir(b.dir, 0o700); err != nil {
		return nil, err
	}
	users := ""
	for _, role := range []string{Role, Owner} {
		users += fmt.Sprintf("%q %q\n", role, Password)
	}
	if err := os.WriteFile(filepath.Join(b.dir, "userlist.txt"), []byte(users), 0o644); err != nil {
		return nil, err
	}
	if err := b.write(target); err != nil {
		return nil, err
	}
	if err := GiveToPostgres(b.dir); err != nil {
		return nil, err
	}
	return b, b.Start(ctx)
}

const pgBouncerFile = `[databases]
* = host=%[1]s port=%[2]s

[pgbouncer]
listen_addr = 127.0.0.1
listen_port = %[3]d
unix_socket_dir =
auth_type = scram-sha-256
auth_file = %[4]s/userlist.txt
pool_mode = transaction
max_client_conn = 500
default_pool_size = 20
server_login_retry = 1
query_wait_timeout = 10
`

func (b *PgBouncer) write(target string) error {
	host, port, err := net.SplitHostPort(target)
	if err != nil {
		return err
	}
	return os.WriteFile(b.config, fmt.Appendf(nil, pgBouncerFile, host, port, b.Port, b.dir), 0o644)
}

// Start starts PgBouncer again with the same port.
func (b *PgBouncer) Start(ctx context.Context) error {
	path, err := servers.Command("pgbouncer")
	if err != nil {
		return err
	}
	path, args := asPostgres(path, b.config) // it refuses to run as root
	if b.process, err = Launch(Command{Name: "pgbouncer", Path: path, Args: args, Log: filepath.Join(b.dir, "log")}); err != nil {
		return err
	}
	return Await(ctx, "the start of PgBouncer", time.Minute, func() error {
		if b.process.Ended() {
			return fmt.Errorf("%w:\n%s", errEnded, b.process.Out)
		}
		return listens(b.Address())
	})
}

// listens returns nil if a server listens on an address.
func listens(address string) error {
	conn, err := net.DialTimeout("tcp", address, 5*time.Second)
	if err != nil {
		return err
	}
	return conn.Close()
}

// Address returns the address on which PgBouncer listens.
func (b *PgBouncer) Address() string { return fmt.Sprintf("127.0.0.1:%d", b.Port) }

// SetTarget makes new connections to PostgreSQL go to another address.
func (b *PgBouncer) SetTarget(target string) error {
	if err := b.write(target); err != nil {
		return err
	}
	return b.process.Cmd.Process.Signal(syscall.SIGHUP)
}

// Process returns the running process.
func (b *PgBouncer) Process() *Process { return b.process }

// Stop ends PgBouncer and its connections.
func (b *PgBouncer) Stop() { b.process.Stop() }
