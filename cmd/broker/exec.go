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

	"accessbroker.internal/api"
)

func (a *app) execCommand() *cobra.Command {
	var f askFlags
	var file string
	var once bool
	c := &cobra.Command{
		Use:   "exec ENTITLEMENT -- COMMAND [ARG ...]",
		Short: "Run a command with a credential, and give it back when it ends",
		Long: `exec asks for a credential, runs the command with it, and gives it back when the
command ends. The command's exit code is exec's.

The credential stands in the command's environment:

  bearer       BROKER_ACCESS_TOKEN
  aws          AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN
  userpass     PGUSER and PGPASSWORD; BROKER_USERNAME and BROKER_PASSWORD
  certificate  BROKER_CERTIFICATE, BROKER_PRIVATE_KEY, BROKER_CHAIN (PEM)
  vault        VAULT_TOKEN
  data         BROKER_ and the name of each field

and BROKER_LEASE, BROKER_EXPIRES_AT (RFC 3339) beside it. Whatever would lead the
tools of that type to another credential is taken away first, such as AWS_PROFILE,
PGPASSFILE and an older AWS_SESSION_TOKEN; but a user that PGSERVICE leads to stays,
and is preferred to PGUSER. With --file it stands in a file of mode 0600 instead,
named in BROKER_CREDENTIAL_FILE, which is renewed in place while the command runs,
and removed at the end: a token as it is, other credentials as JSON.

A credential in the environment can't be renewed: when its time is over, the
command is told to end (SIGTERM), and is ended ten seconds later.

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
			ask, err := f.ask(args[0])
			if err != nil {
				return err
			}
			return a.session(c.Context(), func(ctx context.Context, client *api.Client) error {
				credential, err := a.obtain(ctx, client, ask, f.wait)
				if err != nil {
					return err
				}
				r := &execution{app: a, client: client, credential: credential, file: file, once: once}
				return r.run(ctx, args[1:])
			})
		},
	}
	f.add(c)
	completes(c, "scope", a.completeScope)
	c.Flags().StringVar(&file, "file", "", "put the credential into this file, and keep it fresh")
	c.Flags().BoolVar(&once, "no-renew", false, "end the command with the credential instead of renewing it")
	a.client.addPerson(c)
	return c
}

// endGrace is how long a command may take to end when its access has ended.
const endGrace = 10 * time.Second

// An execution is a command that runs with a credential.
type execution struct {
	*app
	client     *api.Client
	credential *api.Credential
	file       string
	once       bool
}

func (r *execution) run(ctx context.Context, command []string) error {
	defer func() { r.giveBack(r.client, r.credential, "the command ended") }()
	env, err := r.environment()
	if err != nil {
		return err
	}
	if r.file != "" {
		defer func() { _ = os.Remove(r.file) }()
	}
	cmd := exec.Command(command[0], command[1:]...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = r.in, r.out, r.err
	cmd.Env = env
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("starting the command: %w", err)
	}
	done := make(chan error, 1)
	go func() { done <- cmd.Wait() }()
	return exitOf(r.supervise(ctx, cmd.Process, done))
}

// supervise passes signals on, keeps the credential fresh, and ends the
// command when its access ends.
func (r *execution) supervise(ctx context.Context, process *os.Process, done <-chan error) error {
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGUSR1, syscall.SIGUSR2)
	defer signal.Stop(signals)
	turn := time.NewTimer(r.untilTurn())
	defer turn.Stop()
	var kill <-chan time.Time
	for {
		select {
		case err := <-done:
			return err
		case s := <-signals:
			_ = process.Signal(s) // it may have ended by itself
		case <-kill:
			_ = process.Kill()
		case <-turn.C:
			if r.renew(ctx) {
				turn.Reset(r.untilTurn())
				continue
			}
			fmt.Fprintln(r.err, "broker: access has ended: the command is told to end")
			_ = process.Signal(syscall.SIGTERM)
			kill = time.After(endGrace)
		}
	}
}

// untilTurn is when to renew, at two thirds of what is left; or when the
// credential ends, if it can't be renewed.
func (r *execution) untilTurn() time.Duration {
	left := time.Until(r.credential.ExpiresAt)
	if r.renewable() {
		left = left * 2 / 3
	}
	return max(left, time.Second)
}

func (r *execution) renewable() bool { return r.file != "" && !r.once }

// renew puts a new credential into the file, and says whether the access goes
// on. As long as the old one lives, it does: a broker that can't be reached, or
// can't serve now, is asked again, and one that refuses is not.
func (r *execution) renew(ctx context.Context) bool {
	if !r.renewable() {
		return false
	}
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	fresh, err := r.client.Renew(ctx, r.credential.Lease)
	if err != nil {
		fmt.Fprintf(r.err, "broker: renewing: %s\n", plainly(err.Error()))
		r.once = !api.Transient(err)
		return time.Until(r.credential.ExpiresAt) > 2*time.Second
	}
	r.credential = fresh
	if err := r.writeFile(); err != nil {
		fmt.Fprintf(r.err, "broker: %v\n", err)
		return false
	}
	return true
}

// environment is the command's, and writes the file if there is one.
func (r *execution) environment() ([]string, error) {
	env := commandEnvironment(os.Environ(), r.credential, r.file)
	if r.file != "" {
		return env, r.writeFile()
	}
	return env, nil
}

// commandEnvironment is ours, without what is only for us, and with the
// credential in place of any other of its type. Where the credential stands in
// a file, what the tools of its type use is the command's affair.
func commandEnvironment(ours []string, c *api.Credential, file string) []string {
	all, gone := variables(c), displaced[c.Type]
	if file != "" {
		all, gone = append(all[:2:2], [2]string{"BROKER_CREDENTIAL_FILE", file}), nil // of the lease alone
	}
	var env []string
	for _, kv := range ours {
		name, _, _ := strings.Cut(kv, "=")
		if !strings.HasPrefix(name, "BROKER_") && !slices.Contains(gone, name) {
			env = append(env, kv)
		}
	}
	for _, kv := range all {
		env = append(env, kv[0]+"="+kv[1])
	}
	return env
}

// writeFile replaces the file whole, so that no reader sees half a credential.
func (r *execution) writeFile() error {
	temp, err := os.CreateTemp(filepath.Dir(r.file), ".broker-*") // mode 0600
	if err != nil {
		return fmt.Errorf("writing the credential: %w", err)
	}
	_, err = temp.WriteString(fileOf(r.credential))
	if err = errors.Join(err, temp.Close()); err == nil {
		err = os.Rename(temp.Name(), r.file)
	}
	if err != nil {
		_ = os.Remove(temp.Name())
		return fmt.Errorf("writing the credential: %w", err)
	}
	return nil
}

// giveBack ends a lease; if that fails, time does it.
func (a *app) giveBack(client *api.Client, c *api.Credential, why string) {
	ctx, cancel := context.WithTimeout(context.Background(), endGrace)
	defer cancel()
	if _, err := client.Revoke(ctx, c.Lease, why); err != nil {
		fmt.Fprintf(a.err, "broker: giving %s back: %s; it ends at %s\n", plainly(c.Lease), plainly(err.Error()), clock(c.ExpiresAt))
	}
}

// exitOf makes the command's exit code ours.
func exitOf(err error) error {
	var exit *exec.ExitError
	if !errors.As(err, &exit) {
		return err
	}
	if status, ok := exit.Sys().(syscall.WaitStatus); ok && status.Signaled() {
		return exitError(128 + int(status.Signal()))
	}
	return exitError(exit.ExitCode())
}
