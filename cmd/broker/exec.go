package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
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
		Use:   "exec ENTITLEMENT -- COMMAND [ARG ...]",
		Short: "Run a command with a credential, then return it",
		Long: `exec requests a credential, runs the command with it, and returns the
credential when the command ends. It exits with the command's exit code.

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
and removes the file at the end.

A credential in the environment can't be renewed. When it expires, exec sends
SIGTERM to the command, and SIGKILL ten seconds later.

` + exitHelp,
		Example: `  broker exec tickets-api --scope tickets:read --why "nightly report" -- ./report.sh
  broker exec orders-db-ro -- psql -h db.acme.test orders
  broker exec tickets-api --scope tickets:read --file /dev/shm/token -- ./daemon`,
		Args: func(c *cobra.Command, args []string) error {
			if at := c.ArgsLenAtDash(); at != 1 || len(args) < 2 {
				return usage("exec takes one entitlement, -- and a command")
			}
			return nil
		},
		ValidArgsFunction: a.completeEntitlement,
		RunE: func(c *cobra.Command, args []string) error {
			return a.withCredential(c.Context(), args[0], f, func(ctx context.Context, client *api.Client, credential *api.Credential) error {
				e := &execution{app: a, file: file, held: agent.Held{Client: client, Credential: credential}}
				if file != "" && !noRenew {
					e.held.Replace = e.writeFile
				}
				return e.run(ctx, args[1:])
			})
		},
	}
	f.add(c)
	completes(c, "scope", a.completeScope)
	c.Flags().StringVar(&file, "file", "", "write the credential to this file and renew it there")
	c.Flags().BoolVar(&noRenew, "no-renew", false, "end the command when the credential expires, instead of renewing it")
	a.client.addPerson(c)
	return c
}

// killDelay is the time between SIGTERM and SIGKILL for a command whose credential
// has expired.
const killDelay = 10 * time.Second

// An execution is a command that runs with a credential.
type execution struct {
	*app
	held agent.Held
	file string // empty: the credential is in the environment
}

func (e *execution) run(ctx context.Context, command []string) error {
	defer func() { e.warnUnreturned(e.held.Credential, e.held.Return(ctx, "the command ended")) }()
	env, err := e.environment()
	if err != nil {
		return err
	}
	if e.file != "" {
		defer func() { _ = os.Remove(e.file) }()
	}
	cmd := exec.Command(command[0], command[1:]...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = e.in, e.out, e.err
	cmd.Env = env
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("starting the command: %w", err)
	}
	done := make(chan error, 1)
	go func() { done <- cmd.Wait() }()
	return commandExit(e.supervise(ctx, cmd.Process, done))
}

// supervise forwards signals to the command, renews the credential, and ends the
// command when the credential expires. It returns when the command has ended.
func (e *execution) supervise(ctx context.Context, process *os.Process, done <-chan error) error {
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGUSR1, syscall.SIGUSR2)
	defer signal.Stop(signals)
	due := time.NewTimer(e.held.Due())
	defer due.Stop()
	var kill <-chan time.Time
	for {
		select {
		case err := <-done:
			return err
		case s := <-signals:
			_ = process.Signal(s) // the command may have ended
		case <-kill:
			_ = process.Kill()
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
			_ = process.Signal(syscall.SIGTERM)
			kill = time.After(killDelay)
		}
	}
}

// environment returns the command's environment and writes the credential file, if
// there is one.
func (e *execution) environment() ([]string, error) {
	env := commandEnvironment(os.Environ(), e.held.Credential, e.file)
	if e.file != "" {
		return env, e.writeFile(e.held.Credential)
	}
	return env, nil
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

// writeFile replaces the credential file atomically, so that no reader sees a part
// of a credential.
func (e *execution) writeFile(c *api.Credential) error {
	temp, err := os.CreateTemp(filepath.Dir(e.file), ".broker-*") // mode 0600
	if err != nil {
		return fmt.Errorf("writing the credential: %w", err)
	}
	_, err = temp.WriteString(fileOf(c))
	if err = errors.Join(err, temp.Close()); err == nil {
		err = os.Rename(temp.Name(), e.file)
	}
	if err != nil {
		_ = os.Remove(temp.Name())
		return fmt.Errorf("writing the credential: %w", err)
	}
	return nil
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
