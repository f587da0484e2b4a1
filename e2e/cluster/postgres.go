package cluster

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"accessbroker.internal/e2e/servers"
)

// The roles of a Postgres. All have the password Password.
const (
	Admin    = "postgres"     // the superuser
	Owner    = "broker_owner" // owns the schema
	Role     = "broker"       // the broker's own
	Database = "broker"
	Password = "only-in-tests"
)

// PostgresOptions describe a Postgres.
type PostgresOptions struct {
	Name     string   // of its process and its folder; default: postgres
	WAL      string   // a folder for the write-ahead log; default: in the data folder
	Settings []string // lines of postgresql.conf
	Tables   string   // a folder for the broker's tables; default: in the data folder
}

// A Postgres is a real PostgreSQL on loopback that requires a password from every user.
// PostgreSQL refuses to run as root; a program that runs as root starts it as the user of
// its Debian package.
type Postgres struct {
	Port int

	bin, dir, name string
	tables         string // see PostgresOptions
	server         *Process
}

// NewPostgres creates the data of a PostgreSQL in a new folder under dir, and does not start
// it. The path of dir must be short, because a socket is in it.
func NewPostgres(ctx context.Context, dir string, o PostgresOptions) (*Postgres, error) {
	if o.Name == "" {
		o.Name = "postgres"
	}
	p, err := newPostgres(dir, o.Name)
	if err != nil {
		return nil, err
	}
	password := filepath.Join(p.dir, "password")
	if err := os.WriteFile(password, []byte(Password+"\n"), 0o644); err != nil {
		return nil, err
	}
	args := []string{"--pgdata", p.Data(), "--username", Admin, "--pwfile", password,
		"--auth", "scram-sha-256", "--encoding", "UTF8", "--locale", "C", "--no-sync"}
	p.tables = o.Tables
	if o.WAL != "" {
		args = append(args, "--waldir", o.WAL, "--wal-segsize", "1")
	}
	if err := p.run(ctx, "initdb", args...); err != nil {
		return nil, err
	}
	return p, p.Configure(append([]string{"listen_addresses = '127.0.0.1'", "unix_socket_directories = '" + p.dir + "'", "log_connections = on",
		"log_statement = ddl", "max_wal_senders = 10", "wal_keep_size = 64"}, o.Settings...)...)
}

func newPostgres(dir, name string) (p *Postgres, err error) {
	initdb, err := servers.Command("initdb")
	if err != nil {
		return nil, err
	}
	p = &Postgres{bin: filepath.Dir(initdb), dir: filepath.Join(dir, name), name: name}
	if p.Port, err = FreePort(); err != nil {
		return nil, err
	}
	if err := os.Mkdir(p.dir, 0o700); err != nil {
		return nil, err
	}
	return p, GiveToPostgres(p.dir)
}

// GiveToPostgres lets the user that runs PostgreSQL use a folder.
func GiveToPostgres(dir string) error {
	if os.Getuid() != 0 {
		return nil
	}
	u, err := user.Lookup("postgres")
	if err != nil {
		return fmt.Errorf("PostgreSQL refuses to run as root, and its package created no user: %w", err)
	}
	var uid, gid int
	if _, err := fmt.Sscan(u.Uid+" "+u.Gid, &uid, &gid); err != nil {
		return err
	}
	if err := os.Chown(dir, uid, gid); err != nil {
		return err
	}
	// Folders above it may be private to root: each lets the user pass.
	for parent := filepath.Dir(dir); strings.HasPrefix(parent, os.TempDir()+"/"); parent = filepath.Dir(parent) {
		info, err := os.Stat(parent)
		if err != nil {
			return err
		}
		if err := os.Chmod(parent, info.Mode()|0o011); err != nil {
			return err
		}
	}
	return nil
}

// asPostgres returns the command line that runs a command as a user that PostgreSQL
// accepts. A change of user resets the parent death signal that Launch sets, so setpriv sets
// it again; SIGQUIT is the fastest shutdown of PostgreSQL.
func asPostgres(path string, args ...string) (string, []string) {
	if os.Getuid() != 0 {
		return path, args
	}
	return "setpriv", append([]string{"--reuid", "postgres", "--regid", "postgres", "--init-groups", "--pdeathsig", "QUIT", path}, args...)
}

// run runs one of PostgreSQL's commands to its end.
func (p *Postgres) run(ctx context.Context, name string, args ...string) error {
	path, args := asPostgres(filepath.Join(p.bin, name), args...)
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.Dir, cmd.Env = p.dir, append(os.Environ(), "PGPASSWORD="+Password)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w\n%s", name, err, out)
	}
	return nil
}

// Bin returns the folder of PostgreSQL's commands.
func (p *Postgres) Bin() string { return p.bin }

// Data returns the path of the data folder.
func (p *Postgres) Data() string { return filepath.Join(p.dir, "data") }

// Address returns the address on which the server listens.
func (p *Postgres) Address() string { return fmt.Sprintf("127.0.0.1:%d", p.Port) }

// Output returns what the server has logged.
func (p *Postgres) Output() string { return p.server.Out.String() }

// PID returns the process ID of the server.
func (p *Postgres) PID() int { return p.server.Cmd.Process.Pid }

// Done returns a channel that is closed when the running server ends.
func (p *Postgres) Done() <-chan struct{} { return p.server.Done }

// DSN returns the URL of a database for a role.
func (p *Postgres) DSN(role, database string) string { return DSN(role, database, p.Address()) }

// DSN returns the URL of a database at one or more addresses.
func DSN(role, database string, addresses ...string) string {
	u := url.URL{Scheme: "postgres", User: url.UserPassword(role, Password), Host: strings.Join(addresses, ","), Path: "/" + database}
	if len(addresses) > 1 {
		u.RawQuery = "target_session_attrs=read-write"
	}
	return u.String()
}

// Configure appends lines to postgresql.conf. They count from the next start or reload.
func (p *Postgres) Configure(lines ...string) error {
	f, err := os.OpenFile(filepath.Join(p.Data(), "postgresql.conf"), os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString("\n" + strings.Join(lines, "\n") + "\n")
	return errors.Join(err, f.Close())
}

// Start starts the server, or starts it again with the same data and port, and waits until
// it answers.
func (p *Postgres) Start(ctx context.Context) error {
	if err := p.Launch(); err != nil {
		return err
	}
	return Await(ctx, "the start of "+p.name, time.Minute, func() error {
		if p.server.Ended() {
			return fmt.Errorf("%w:\n%s", errEnded, p.Output())
		}
		_, err := p.Query(ctx, Admin, Password, "postgres", "SELECT 1")
		return err
	})
}

// Launch starts the server and does not wait until it answers.
func (p *Postgres) Launch() (err error) {
	path, args := asPostgres(filepath.Join(p.bin, "postgres"), "-D", p.Data(), "-p", strconv.Itoa(p.Port))
	p.server, err = Launch(Command{Name: p.name, Path: path, Args: args, Log: filepath.Join(p.dir, "log")})
	return err
}

// Stop is the fast shutdown: it disconnects clients. At SIGTERM, PostgreSQL waits for them.
func (p *Postgres) Stop() {
	if p.server != nil && !p.server.Ended() {
		p.Resume()
		p.server.end(syscall.SIGINT)
	}
}

// Crash ends all processes of the server at once, as a power cut does.
func (p *Postgres) Crash() {
	for _, pid := range p.freeze() {
		_ = syscall.Kill(pid, syscall.SIGKILL)
	}
	<-p.server.Done
}

// Restart is Stop and Start.
func (p *Postgres) Restart(ctx context.Context) error {
	p.Stop()
	return p.Start(ctx)
}

// Pause suspends all processes of the server.
func (p *Postgres) Pause() { p.freeze() }

// freeze suspends the server and then its children, until no new one is found.
func (p *Postgres) freeze() []int {
	pids := []int{p.PID()}
	_ = syscall.Kill(p.PID(), syscall.SIGSTOP)
	for before := 0; len(pids) > before; {
		before = len(pids)
		pids = append(pids[:1], children(p.PID())...)
		for _, pid := range pids[1:] {
			_ = syscall.Kill(pid, syscall.SIGSTOP)
		}
	}
	return pids
}

// Resume ends Pause.
func (p *Postgres) Resume() {
	for _, pid := range append(children(p.PID()), p.PID()) {
		_ = syscall.Kill(pid, syscall.SIGCONT)
	}
}

// children returns the process IDs of a process's children.
func children(parent int) (pids []int) {
	stats, _ := filepath.Glob("/proc/[0-9]*/stat") // the pattern is valid
	for _, name := range stats {
		text, err := os.ReadFile(name)
		if err != nil {
			continue // it has ended
		}
		var pid, ppid int
		var state string
		_, rest, _ := strings.Cut(string(text), ") ") // the command's name is in parentheses
		_, err = fmt.Sscan(rest, &state, &ppid)
		if _, scanned := fmt.Sscan(string(text), &pid); err == nil && scanned == nil && ppid == parent {
			pids = append(pids, pid)
		}
	}
	return pids
}

// Query runs statements as a user in a session of its own, and returns their rows: one per
// line, with columns separated by "|".
func (p *Postgres) Query(ctx context.Context, user, password, database, sql string) (string, error) {
	cmd := exec.CommandContext(ctx, filepath.Join(p.bin, "psql"), "--no-psqlrc", "--no-password", "--quiet", "--tuples-only", "--no-align",
		"--set", "ON_ERROR_STOP=1", "--host", "127.0.0.1", "--port", strconv.Itoa(p.Port), "--username", user, "--dbname", database, "--command", sql)
	cmd.Env = append(os.Environ(), "PGPASSWORD="+password, "PGSSLMODE=disable", "PGCONNECT_TIMEOUT=10")
	out, err := cmd.Output()
	if err != nil {
		var exit *exec.ExitError
		if errors.As(err, &exit) {
			return "", fmt.Errorf("psql: %w: %s", err, exit.Stderr)
		}
		return "", fmt.Errorf("psql: %w", err)
	}
	return strings.TrimSpace(string(out)), nil
}

// Exec runs statements in a database as the superuser.
func (p *Postgres) Exec(ctx context.Context, database, sql string) (string, error) {
	return p.Query(ctx, Admin, Password, database, sql)
}

// CreateDatabase creates the roles and an empty database for a broker.
func (p *Postgres) CreateDatabase(ctx context.Context, name string) error {
	for _, role := range []string{Owner, Role} {
		known, err := p.Exec(ctx, "postgres", "SELECT 1 FROM pg_roles WHERE rolname = '"+role+"'")
		if err == nil && known == "" {
			_, err = p.Exec(ctx, "postgres", fmt.Sprintf("CREATE ROLE %s LOGIN PASSWORD '%s'", role, Password))
		}
		if err != nil {
			return err
		}
	}
	create := fmt.Sprintf("CREATE DATABASE %s OWNER %s", name, Owner)
	if p.tables != "" {
		if _, err := p.Exec(ctx, "postgres", "CREATE TABLESPACE tables LOCATION '"+p.tables+"'"); err != nil {
			return err
		}
		create += " TABLESPACE tables"
	}
	_, err := p.Exec(ctx, "postgres", create)
	return err
}
