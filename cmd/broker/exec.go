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
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"accessbroker.internal/agent"
	"accessbroker.internal/api"
)

func (a *app) execCommand() *cobra.Command {
	var f askFlags
	var file string
	var noRenew bool
	c := &cobra.Command{
		Use:   "exec ENTITLEMENT|REQUEST -- COMMAND [ARG ...]",
		Short: "Run a command with a credential, then return it",
		Long: `exec requests a credential, runs the command with it, and returns the
credential when the command ends. It exits with the command's exit code. For the
id of a request, such as one that an AI agent has filed, exec collects a
credential of that request instead of filing another one.

The credential is in the command's environment:

  bearer       BROKER_ACCESS_TOKEN
  aws          AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN
  userpass     PGUSER and PGPASSWORD; BROKER_USERNAME and BROKER_PASSWORD
  certificate  BROKER_CERTIFICATE, BROKER_PRIVATE_KEY, BROKER_CHAIN (PEM)
  vault        VAULT_TOKEN
  data         BROKER_ and the name of each field

together with BROKER_LEASE and BROKER_EXPIRES_AT (RFC 3339). exec removes
variables by which the tools of that type would find another credential, such
as AWS_PROFILE, PGPASSFILE and an older AWS_SESSION_TOKEN. It keeps PGSERVICE;
a user in that service's entry takes precedence over PGUSER.

With --file, the credential is in a file of mode 0600 instead, and
BROKER_CREDENTIAL_FILE names the file. A token is plain text, any other
credential is JSON. exec renews the credential in place while the command runs
and removes the file at the end. It neither replaces nor removes a file that
exec did not write, and refuses a FILE that is a symbolic link.

A credential in the environment can't be renewed. When it expires, exec sends
SIGTERM to the command, and SIGKILL ten seconds later.

exec passes signals on to the command, except Ctrl-C and Ctrl-\ in a terminal,
which the command gets from the terminal. If exec itself is killed, the command
gets SIGTERM. The exit code is 126 for a command that can't be executed, and 127
for one that does not exist; no credential is requested for either.

` + exitHelp,
		Example: `  broker exec tickets-api --scope tickets:read --why "nightly report" -- ./report.sh
  broker exec orders-db-ro -- psql -h db.acme.test orders
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
			return nil
		},
		ValidArgsFunction: a.completeEntitlement,
		RunE: func(c *cobra.Command, args []string) error {
			if c.Flags().Changed("file") && file == "" { // such as an unset variable of a shell
				return usage("--file is empty: name a file, or omit --file")
			}
			return a.exec(c.Context(), args[0], f, args[1:], &ownFile{path: file, flag: "--file", writer: "exec", mark: credentialMark}, !noRenew)
		},
	}
	f.add(c)
	completes(c, "scope", a.completeScope)
	c.Flags().StringVar(&file, "file", "", "write the credential to this file and renew it there")
	c.Flags().BoolVar(&noRenew, "no-renew", false, "end the command when the credential expires, instead of renewing it")
	a.client.addCollecting(c)
	return c
}

// killDelay is the time between SIGTERM and SIGKILL for a command whose credential
// has expired.
const killDelay = 10 * time.Second

// credentialMark marks the files of exec.
const credentialMark = "credential"

// An execution is a command that runs with a credential.
type execution struct {
	*app
	held agent.Held
	file *ownFile
}

// exec runs a command with a credential of an entitlement, or of a request. It rejects what cannot work before it
// requests the credential.
func (a *app) exec(ctx context.Context, entitlement string, f askFlags, command []string, file *ownFile, renew bool) error {
	program, err := lookUp(command[0])
	if err != nil {
		fmt.Fprintf(a.err, "broker: %v\n", err)
		return exitError(exitCodeOfStart(err))
	}
	if err := file.check(); err != nil {
		return err
	}
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
		e := &execution{app: a, file: file, held: agent.Held{Client: client, Credential: credential}}
		if file.path != "" && renew {
			e.held.Replace = func(c *api.Credential) error { return file.write(fileOf(c)) }
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
	if e.file.path != "" {
		defer func() {
			if err := e.file.remove(); err != nil {
				fmt.Fprintf(e.err, "broker: %v\n", err)
			}
		}()
		if err := e.file.write(fileOf(e.held.Credential)); err != nil {
			return err
		}
	}
	cmd := &exec.Cmd{
		Path: program, Args: command, Stdin: e.in, Stdout: e.out, Stderr: e.err,
		Env: commandEnvironment(os.Environ(), e.held.Credential, e.file.path),
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

// commandEnvironment returns the inherited environment without the variables of this
// program, and with the credential in place of others of its type. With a file, it
// keeps the others: the command decides which tools use the file.
func commandEnvironment(inherited []string, c *api.Credential, file string) []string {
	add, remove := variables(c), displaced[c.Type]
	if file != "" {
		lease := add[:2:2]
		add, remove = append(lease, [2]string{"BROKER_CREDENTIAL_FILE", file}), nil
	}
	var env []string
	for _, kv := range inherited {
		name, _, _ := strings.Cut(kv, "=")
		if !strings.HasPrefix(name, "BROKER_") && !slices.Contains(remove, name) {
			env = append(env, kv)
		}
	}
	for _, kv := range add {
		env = append(env, kv[0]+"="+kv[1])
	}
	return env
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
