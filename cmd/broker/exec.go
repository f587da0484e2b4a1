package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"os/signal"
	"reflect"
	"sync"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"accessbroker.internal/agent"
	"accessbroker.internal/api"
)

const execHelp = `exec requests a credential, runs the command with it, and returns the
credential when the command ends. It exits with the command's exit code. For the
id of a request, such as one that an AI agent has filed, exec collects a
credential of that request instead of filing another one.

The credential is in files of a folder in memory that no other user can enter.
exec renews it there while the command runs, and removes the folder at the end.
The command's environment names the files:

  each type    BROKER_CREDENTIAL_FILE: a token as plain text, else JSON
  bearer       BROKER_ACCESS_TOKEN_FILE; BROKER_HEADER_FILE for curl -H @FILE
  aws          AWS_SHARED_CREDENTIALS_FILE, and AWS_PROFILE
  userpass     PGPASSFILE, PGSERVICEFILE, PGSERVICE and PGUSER;
               BROKER_USERNAME_FILE and BROKER_PASSWORD_FILE
  certificate  BROKER_TLS_CERT_FILE (with chain) and BROKER_TLS_KEY_FILE, also
               as PGSSLCERT and PGSSLKEY; BROKER_CERTIFICATE_FILE,
               BROKER_PRIVATE_KEY_FILE and BROKER_CHAIN_FILE
  vault        VAULT_CONFIG_PATH (a token helper), and BROKER_HEADER_FILE
  data         BROKER_ and the name of each field and _FILE

together with BROKER_LEASE and BROKER_EXPIRES_AT (RFC 3339, of the first
credential). exec removes variables by which the tools of that type would find
another credential, such as AWS_ACCESS_KEY_ID and PGPASSWORD. It keeps
PGSERVICE, and then sets no other one. The AWS region comes from AWS_REGION, or
from [profile access-broker] in ~/.aws/config.

With --env, the credential is in environment variables instead:

  bearer       BROKER_ACCESS_TOKEN
  aws          AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN
  userpass     PGUSER and PGPASSWORD; BROKER_USERNAME and BROKER_PASSWORD
  certificate  BROKER_CERTIFICATE, BROKER_PRIVATE_KEY, BROKER_CHAIN (PEM)
  vault        VAULT_TOKEN
  data         BROKER_ and the name of each field

--env-var sets a variable of your choice to one field. Every child of the
command inherits variables, they end up in crash reports, and other processes of
the same user read them in /proc/PID/environ. A credential in the environment
can't be renewed: when it expires, exec sends SIGTERM to the command, and
SIGKILL ten seconds later.

With --file, the credential is in that file of mode 0600 alone, as in
BROKER_CREDENTIAL_FILE, and exec leaves other variables as they are. It neither
replaces nor removes a file that exec did not write, and refuses a FILE that is
a symbolic link.

exec passes signals on to the command, except Ctrl-C and Ctrl-\ in a terminal,
which the command gets from the terminal. If exec itself is killed, the command
gets SIGTERM. The exit code is 126 for a command that can't be executed, and 127
for one that does not exist; no credential is requested for either.

`

func (a *app) execCommand() *cobra.Command {
	var f askFlags
	var how handover
	var noRenew bool
	c := &cobra.Command{
		Use:   "exec ENTITLEMENT|REQUEST [flags] -- COMMAND [ARG ...]",
		Short: "Run a command with a credential, then return it",
		Long:  execHelp + exitHelp,
		Example: `  broker exec tickets-api --scope tickets:read --why "nightly report" -- ./report.sh
  broker exec orders-db-ro -- psql -h db.acme.test orders
  broker exec tickets-api --scope tickets:read -- \
      sh -c 'curl -H @"$BROKER_HEADER_FILE" https://tickets.acme.test/tickets'
  broker exec github-read --env-var GH_TOKEN=token -- gh issue list
  broker exec tickets-api --scope tickets:read --file /dev/shm/token -- ./daemon
  broker exec req_0658sg2b7puh5u0qv0s9k8g6nk -- ./close-tickets.sh`,
		Args: func(c *cobra.Command, args []string) error {
			if at := c.ArgsLenAtDash(); at != 1 || len(args) < 2 {
				return usage("exec takes one entitlement or request, -- and a command")
			}
			if asks := f; isID("request", args[0]) {
				if asks.wait = 0; !reflect.ValueOf(asks).IsZero() {
					return usage("of the flags of a request, only --wait goes with %s, which is already filed", args[0])
				}
			}
			return how.check(c)
		},
		ValidArgsFunction: a.completeEntitlement,
		RunE: func(c *cobra.Command, args []string) error {
			return a.exec(c.Context(), args[0], f, args[1:], how, !noRenew)
		},
	}
	f.add(c)
	completes(c, "scope", a.completeScope)
	how.add(c)
	c.Flags().BoolVar(&noRenew, "no-renew", false, "end the command when the credential expires, instead of renewing it")
	a.client.addCollecting(c)
	return c
}

// killDelay is the time between SIGTERM and SIGKILL for a command whose credential
// has expired.
const killDelay = 10 * time.Second

// An execution is a command that runs with a credential.
type execution struct {
	*app
	held   agent.Held
	pass   passer
	remove func() // what pass has written
}

// exec runs a command with a credential of an entitlement, or of a request. It rejects what cannot work before it
// requests the credential.
func (a *app) exec(ctx context.Context, entitlement string, f askFlags, command []string, how handover, renew bool) (err error) {
	program, err := lookUp(command[0])
	if err != nil {
		fmt.Fprintf(a.err, "broker: %v\n", err)
		return exitError(exitCodeOfStart(err))
	}
	pass, err := how.passer()
	if err != nil {
		return err
	}
	remove := sync.OnceFunc(func() {
		if err := pass.Close(); err != nil {
			fmt.Fprintf(a.err, "broker: %v\n", err)
		}
	})
	defer remove()
	// Once the command runs, a signal is the command's: it may survive Ctrl-C and needs
	// renewals until it ends.
	work, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	detach := context.AfterFunc(ctx, cancel)
	obtain := a.withCredential
	if isID("request", entitlement) {
		obtain = a.withCollected
	}
	return obtain(work, entitlement, f, func(work context.Context, client *api.Client, credential *api.Credential) error {
		e := &execution{app: a, pass: pass, remove: remove, held: agent.Held{Client: client, Credential: credential}}
		if pass.renewable() && renew {
			e.held.Replace = pass.Write
		}
		return e.run(work, program, command, detach)
	})
}

// run runs the command and returns the credential afterwards. detach separates the
// context from the signals of this process, or returns false if one has arrived.
func (e *execution) run(ctx context.Context, program string, command []string, detach func() bool) error {
	defer func() { e.warnUnreturned(e.held.Credential, e.held.Return(ctx, "the command ended")) }()
	signals := relayedSignals()
	defer signal.Stop(signals)
	if !detach() {
		return errInterrupted
	}
	defer e.remove() // before the credential is returned
	if err := e.pass.Write(e.held.Credential); err != nil {
		return err
	}
	environment, err := e.pass.environment(e.held.Credential)
	if err != nil {
		return err
	}
	cmd := &exec.Cmd{
		Path: program, Args: command, Stdin: e.in, Stdout: e.out, Stderr: e.err,
		Env: environment.Of(os.Environ()),
	}
	r := newRelay(signals)
	defer r.close()
	done, err := r.start(cmd)
	if err != nil {
		fmt.Fprintf(e.err, "broker: starting the command: %v\n", err)
		return exitError(exitCodeOfStart(err))
	}
	return commandExit(e.supervise(ctx, r, done))
}

// supervise relays signals to the command, renews the credential, and ends the
// command when the credential expires. It returns when the command has ended.
func (e *execution) supervise(ctx context.Context, r *relay, done <-chan error) error {
	due := time.NewTimer(e.held.Due())
	defer due.Stop()
	var kill <-chan time.Time
	for {
		select {
		case err := <-done:
			return err
		case s := <-r.signals:
			r.relay(s)
		case <-kill:
			r.kill()
		case <-due.C:
			usable, err := e.held.Renew(ctx)
			if err != nil {
				fmt.Fprintf(e.err, "broker: %s\n", printable(err.Error()))
			}
			if usable {
				due.Reset(e.held.Due())
				continue
			}
			fmt.Fprintln(e.err, "broker: no valid credential; ending the command")
			r.send(syscall.SIGTERM)
			kill = time.After(killDelay)
		}
	}
}

// Exit codes of a command that did not start (POSIX, "Exit Status for Commands").
const (
	exitNotExecutable = 126
	exitNotFound      = 127
)

// lookUp returns the path of a program, as the shell finds it.
func lookUp(name string) (string, error) {
	path, err := exec.LookPath(name)
	if errors.Is(err, exec.ErrDot) {
		return "", fmt.Errorf("%s is in the current folder: name it ./%[1]s", name)
	}
	return path, err
}

func exitCodeOfStart(err error) int {
	if errors.Is(err, exec.ErrNotFound) || errors.Is(err, fs.ErrNotExist) {
		return exitNotFound
	}
	return exitNotExecutable
}

// commandExit turns the end of a command into the same exit code of this process.
func commandExit(err error) error {
	var exit *exec.ExitError
	if !errors.As(err, &exit) {
		return err
	}
	if status, ok := exit.Sys().(syscall.WaitStatus); ok && status.Signaled() {
		return exitError(128 + int(status.Signal()))
	}
	return exitError(exit.ExitCode())
}
