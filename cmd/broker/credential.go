package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"accessbroker.internal/agent"
	"accessbroker.internal/api"
	"accessbroker.internal/internal/handoff"
)

// Formats of a credential, in addition to text and json.
const (
	asEnv    = "env"    // export lines for a POSIX shell
	asFile   = "file"   // the content that exec --file writes
	asPgpass = "pgpass" // a line of PostgreSQL's password file
	// A service file selects the user, too. A password file only has passwords of
	// users that the client has selected otherwise.
	asPgservice = "pgservice"
)

var credentialFormats = []string{"text", "json", asEnv, asFile, asPgpass, asPgservice}

const credentialHelp = `-o env prints the credential as export lines for a shell, -o file as
"exec --file" writes it, -o pgpass as a line of PostgreSQL's password file, and
-o pgservice as a section of PostgreSQL's connection service file, with the
entitlement as the name of the service and with user and password.

`

// handOver prints a credential in the format of -o. If that fails, it returns the
// lease.
func (a *app) handOver(ctx context.Context, client *api.Client, c *api.Credential) error {
	return a.handOverTo(ctx, client, c, a.printCredential)
}

func (a *app) handOverTo(ctx context.Context, client *api.Client, c *api.Credential, print func(*api.Credential) error) error {
	err := agent.HandOver(ctx, client, c, print)
	var failed *agent.HandOverError
	if errors.As(err, &failed) {
		a.warnUnreturned(c, failed.Return)
		return failed.Err
	}
	return err
}

// warnUnreturned reports that a lease could not be returned. A nil error is a lease
// that was.
func (a *app) warnUnreturned(c *api.Credential, err error) {
	if err != nil {
		fmt.Fprintf(a.err, "broker: %s; the credential expires at %s\n", printable(err.Error()), clock(c.ExpiresAt))
	}
}

func (a *app) printCredential(c *api.Credential) error {
	switch a.output {
	case asEnv:
		var text strings.Builder
		e := handoff.InVariables(c)
		if len(e.Remove) > 0 {
			fmt.Fprintf(&text, "unset %s\n", strings.Join(e.Remove, " "))
		}
		for _, kv := range e.Set {
			fmt.Fprintf(&text, "export %s=%s\n", kv[0], shellQuote(kv[1]))
		}
		_, err := io.WriteString(a.out, text.String())
		return err
	case asFile:
		_, err := io.WriteString(a.out, handoff.Text(c))
		return err
	case asPgpass:
		line, err := handoff.Pgpass(c)
		if err == nil {
			_, err = fmt.Fprintln(a.out, line)
			fmt.Fprintf(a.err, "broker: the password is of the user %s: connect with psql -U %[1]s, or use -o pgservice\n", shellQuote(c.Secret["username"]))
		}
		return err
	case asPgservice:
		section, err := handoff.Pgservice(c, c.Entitlement)
		if err == nil {
			_, err = io.WriteString(a.out, section)
		}
		return err
	}
	return a.print(c, func(w io.Writer) {
		fmt.Fprintf(w, "lease\t%s\n", c.Lease)
		fmt.Fprintf(w, "request\t%s\n", c.Request)
		if len(c.Scopes) > 0 {
			fmt.Fprintf(w, "scopes\t%s\n", strings.Join(c.Scopes, " "))
		}
		fmt.Fprintf(w, "expires\t%s (in %s)\n", clock(c.ExpiresAt), timeLeft(time.Until(c.ExpiresAt)))
		if c.Confirm != nil {
			fmt.Fprintf(w, "bound to\t%s\n", c.Confirm)
		}
		fmt.Fprintf(w, "record\t%d\n", c.Receipt.Index)
		if c.Membership != nil {
			fmt.Fprintf(w, "system\t%s\ngroup\t%s\n", printable(c.Membership.System), printable(c.Membership.Group))
		}
		for _, name := range handoff.Fields(c) {
			if strings.Contains(c.Secret[name], "\n") {
				fmt.Fprintf(w, "%s:\n%s\n", name, strings.TrimSpace(c.Secret[name]))
				continue
			}
			fmt.Fprintf(w, "%s\t%s\n", name, c.Secret[name])
		}
	})
}

// shellQuote quotes text for POSIX shells. Within single quotes, only a single quote
// is special.
func shellQuote(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }
