package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"

	"accessbroker.internal/agent"
	"accessbroker.internal/api"
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
		if gone := displaced[c.Type]; len(gone) > 0 {
			fmt.Fprintf(&text, "unset %s\n", strings.Join(gone, " "))
		}
		for _, kv := range variables(c) {
			fmt.Fprintf(&text, "export %s=%s\n", kv[0], shellQuote(kv[1]))
		}
		_, err := io.WriteString(a.out, text.String())
		return err
	case asFile:
		_, err := io.WriteString(a.out, fileOf(c))
		return err
	case asPgpass:
		line, err := pgpass(c)
		if err == nil {
			_, err = fmt.Fprintln(a.out, line)
			fmt.Fprintf(a.err, "broker: the password is of the user %s: connect with psql -U %[1]s, or use -o pgservice\n", shellQuote(c.Secret["username"]))
		}
		return err
	case asPgservice:
		section, err := pgservice(c)
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
		for _, name := range secretFields(c) {
			if strings.Contains(c.Secret[name], "\n") {
				fmt.Fprintf(w, "%s:\n%s\n", name, strings.TrimSpace(c.Secret[name]))
				continue
			}
			fmt.Fprintf(w, "%s\t%s\n", name, c.Secret[name])
		}
	})
}

func secretFields(c *api.Credential) []string { return slices.Sorted(maps.Keys(c.Secret)) }

// variables returns the environment variables of a credential: the lease, the
// expiry, and those that the tools of its type read.
func variables(c *api.Credential) [][2]string {
	out := [][2]string{{"BROKER_LEASE", c.Lease}, {"BROKER_EXPIRES_AT", c.ExpiresAt.UTC().Format(time.RFC3339)}}
	names := map[string][][2]string{ // type: variable, field
		"bearer":      {{"BROKER_ACCESS_TOKEN", "token"}},
		"aws":         {{"AWS_ACCESS_KEY_ID", "access_key_id"}, {"AWS_SECRET_ACCESS_KEY", "secret_access_key"}, {"AWS_SESSION_TOKEN", "session_token"}},
		"userpass":    {{"PGUSER", "username"}, {"PGPASSWORD", "password"}, {"BROKER_USERNAME", "username"}, {"BROKER_PASSWORD", "password"}},
		"certificate": {{"BROKER_CERTIFICATE", "certificate"}, {"BROKER_PRIVATE_KEY", "private_key"}, {"BROKER_CHAIN", "chain"}},
		"vault":       {{"VAULT_TOKEN", "token"}},
	}
	known, ok := names[c.Type]
	if c.Confirm != nil && c.Confirm.KeyThumbprint != "" {
		out = append(out, [2]string{"BROKER_TOKEN_TYPE", "DPoP"})
	}
	if c.Membership != nil {
		return append(out, [2]string{"BROKER_SYSTEM", c.Membership.System}, [2]string{"BROKER_GROUP", c.Membership.Group})
	}
	if !ok {
		for _, field := range secretFields(c) {
			known = append(known, [2]string{"BROKER_" + variableName(field), field})
		}
	}
	for _, pair := range known {
		if value, ok := c.Secret[pair[1]]; ok {
			out = append(out, [2]string{pair[0], value})
		}
	}
	return out
}

// displaced lists, by type of credential, the variables by which tools find another
// one. A tool would use the other credential, or a mixture of both. Variables that
// locate a system, such as PGHOST, AWS_REGION and VAULT_ADDR, are not among them.
var displaced = map[string][]string{
	"aws": { // AWS SDKs and Tools Reference Guide, "Environment variables", and older names
		"AWS_ACCESS_KEY_ID", "AWS_ACCESS_KEY", "AWS_SECRET_ACCESS_KEY", "AWS_SECRET_KEY", "AWS_SESSION_TOKEN", "AWS_SECURITY_TOKEN",
		"AWS_CREDENTIAL_EXPIRATION", "AWS_PROFILE", "AWS_DEFAULT_PROFILE",
		"AWS_ROLE_ARN", "AWS_ROLE_SESSION_NAME", "AWS_WEB_IDENTITY_TOKEN_FILE",
		"AWS_CONTAINER_CREDENTIALS_RELATIVE_URI", "AWS_CONTAINER_CREDENTIALS_FULL_URI",
		"AWS_CONTAINER_AUTHORIZATION_TOKEN", "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE",
	},
	"userpass": {"PGUSER", "PGPASSWORD", "PGPASSFILE"},
	"vault":    {"VAULT_TOKEN"},
}

// variableName converts the name of a field to the name of an environment variable.
func variableName(field string) string {
	return strings.Map(func(r rune) rune {
		switch {
		case r >= 'a' && r <= 'z':
			return r - 'a' + 'A'
		case r >= 'A' && r <= 'Z' || r >= '0' && r <= '9':
			return r
		}
		return '_'
	}, field)
}

// shellQuote quotes text for POSIX shells. Within single quotes, only a single quote
// is special.
func shellQuote(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }

// fileOf returns a credential as the content of a file: a token alone as it is, any
// other credential as a JSON object of its fields.
func fileOf(c *api.Credential) string {
	if token, ok := c.Secret["token"]; ok && len(c.Secret) == 1 {
		return token
	}
	var content any = c.Secret
	if c.Membership != nil {
		content = c.Membership
	}
	text, err := json.Marshal(content)
	if err != nil {
		return ""
	}
	return string(text) + "\n"
}

// pgpass returns a line of PostgreSQL's password file that matches any host, port
// and database.
func pgpass(c *api.Credential) (string, error) {
	if err := checkPostgres(asPgpass, c); err != nil {
		return "", err
	}
	escape := strings.NewReplacer(`\`, `\\`, `:`, `\:`).Replace
	return "*:*:*:" + escape(c.Secret["username"]) + ":" + escape(c.Secret["password"]), nil
}

// maxServiceLine is the longest line of a service file that libpq reads, in bytes.
const maxServiceLine = 1000

// pgservice returns a section of PostgreSQL's connection service file, which has no
// escapes. libpq drops white space at the end of a line.
func pgservice(c *api.Credential) (string, error) {
	if err := checkPostgres(asPgservice, c); err != nil {
		return "", err
	}
	text := "[" + c.Entitlement + "]\n"
	for _, field := range [][2]string{{"user", c.Secret["username"]}, {"password", c.Secret["password"]}} {
		line := field[0] + "=" + field[1]
		if strings.TrimRight(line, " \t\v\f") != line || len(line) > maxServiceLine {
			return "", fmt.Errorf("the %s ends with white space or is too long, which a service file can't represent", field[0])
		}
		text += line + "\n"
	}
	return text, nil
}

// checkPostgres refuses a credential that PostgreSQL's files can't represent.
func checkPostgres(format string, c *api.Credential) error {
	if c.Type != "userpass" {
		return fmt.Errorf("-o %s is for credentials of type \"userpass\", and this one is of type %q", format, c.Type)
	}
	if strings.ContainsAny(c.Secret["username"]+c.Secret["password"], "\r\n\x00") {
		return errors.New("the user name or password has a line break, which PostgreSQL's files can't represent")
	}
	return nil
}
