package main

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"accessbroker.internal/api"
	"accessbroker.internal/audit"
	"accessbroker.internal/audit/verify"
	"accessbroker.internal/internal/devworld"
)

func (a *app) demoCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "demo",
		Short: "Show a credential from proof to end, with a real broker on this machine",
		Long: `demo starts a world like that of "broker dev" in a temporary folder. An agent, a
ticket API, two people and an auditor play their parts in it. demo checks every
step, and exits with 0 only if all of them went as described.`,
		Example: `  broker demo`,
		Args:    exactly(0, "no arguments"),
		RunE: func(c *cobra.Command, _ []string) (err error) {
			a.tune()
			dir, err := os.MkdirTemp("", "broker-demo-")
			if err != nil {
				return fmt.Errorf("creating a folder: %w", err)
			}
			defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
			at, err := devworld.FreeAddresses()
			if err != nil {
				return err
			}
			w, err := devworld.New(dir, at)
			if err != nil {
				return err
			}
			log, _ := newLogger(a.err, "text", slog.LevelError) // of this level, no line waits
			return w.Run(c.Context(), log, func(ctx context.Context) error {
				ctx, cancel := context.WithTimeout(ctx, time.Minute)
				defer cancel()
				d := &demo{app: a, world: w}
				return d.run(ctx)
			})
		},
	}
}

// A demo is the story of "broker demo".
type demo struct {
	*app
	world   *devworld.World
	step    int
	agent   *api.Client
	tickets *ticketAPI
	screen  string // output of the last command
}

// clientOf returns the settings of a client with the identity of a Workload API socket.
func (d *demo) clientOf(name string) clientConfig {
	return clientConfig{server: d.world.URL(), socket: "unix://" + d.world.Socket(name)}
}

func (d *demo) chapter(title string) {
	d.step++
	fmt.Fprintf(d.out, "\n%d. %s\n\n", d.step, title)
}

func (d *demo) say(format string, args ...any) {
	fmt.Fprintln(d.out, strings.TrimRight("   "+fmt.Sprintf(format, args...), " "))
}

func (d *demo) run(ctx context.Context) error {
	fmt.Fprintln(d.out, "Access Broker: one credential, from proof to end, on this machine.")
	var credential *api.Credential
	for _, chapter := range []func() error{
		func() error { return d.prove(ctx) },
		func() (err error) { credential, err = d.ask(ctx); return err },
		func() error { return d.use(ctx, credential) },
		func() error { return d.askForMore(ctx) },
		func() error { return d.approve(ctx) },
		func() error { return d.returnLease(ctx, credential) },
		func() error { return d.verify(ctx) },
		func() error { return d.tamper(ctx) },
	} {
		if err := chapter(); err != nil {
			return fmt.Errorf("step %d did not go as described: %w", d.step, err)
		}
	}
	fmt.Fprintf(d.out, "\nEvery step went as described. Try it yourself: %s dev\n", os.Args[0])
	return nil
}

func (d *demo) prove(ctx context.Context) error {
	d.chapter("An AI agent proves who it is")
	client, done, err := d.connect(ctx, d.clientOf("agent"))
	if err != nil {
		return err
	}
	context.AfterFunc(ctx, done)
	d.agent = client
	who, err := client.WhoAmI(ctx)
	if err != nil {
		return err
	}
	d.say("The agent has no password and no key of its own. It fetches an X.509-SVID")
	d.say("from its SPIFFE Workload API, and presents it to the broker over mutual TLS.")
	d.say("The broker answers:")
	d.say("")
	d.say("  you are    %s", who.ID)
	d.say("  kind       %s of team %s, owner %s", who.Kind, who.Team, strings.Join(who.Accountable, ", "))
	d.say("  proved by  %s, valid until %s", who.Proof.Method, clock(who.Proof.ExpiresAt))
	return expect(who.ID == "spiffe://acme.test/agent/triage" && who.Kind == "agent", "the agent is identified as %s %s", who.Kind, who.ID)
}

func (d *demo) ask(ctx context.Context) (*api.Credential, error) {
	d.chapter("It requests two scopes with a reason, and receives a token for ten minutes")
	ask := api.Ask{Entitlement: "tickets-api", Scopes: []string{"tickets:read", "tickets:comment"}, Justification: "triage of INC-4711"}
	credential, pending, err := d.agent.AskAndCollect(ctx, ask)
	if err != nil {
		return nil, err
	}
	if credential == nil {
		return nil, fmt.Errorf("the request is pending: %s", pending.ID)
	}
	d.say("  requested  %s: %s", ask.Entitlement, strings.Join(ask.Scopes, " "))
	d.say("  because    %s", ask.Justification)
	d.say("  decided    permit, by policies/tickets.cedar")
	d.say("  received   a %s token until %s, as lease %s", credential.Type, clock(credential.ExpiresAt), credential.Lease)
	d.say("  recorded   as record %d of the log, before the broker answered", credential.Receipt.Index)
	d.say("")
	d.say("These are claims of the token:")
	d.say("")
	claims, err := claimsOf(credential.Secret["token"])
	if err != nil {
		return nil, err
	}
	for _, name := range []string{"aud", "sub", "scope", "entitlement", "exp"} {
		if name == "exp" {
			d.say("  %-11s  %.0f", name, claims[name])
			continue
		}
		d.say("  %-11s  %v", name, claims[name])
	}
	return credential, expect(claims["scope"] == "tickets:comment tickets:read", "the token's scope is %v", claims["scope"])
}

// claimsOf returns the claims of a token, unverified, for display.
func claimsOf(token string) (claims map[string]any, err error) {
	parts := strings.Split(token, ".")
	if len(parts) != 3 {
		return nil, errors.New("the token is not a JWT")
	}
	payload, err := base64.RawURLEncoding.DecodeString(parts[1])
	if err != nil {
		return nil, fmt.Errorf("reading the token: %w", err)
	}
	return claims, json.Unmarshal(payload, &claims)
}

func (d *demo) use(ctx context.Context, credential *api.Credential) error {
	d.chapter("A ticket API accepts the token for its scopes only")
	d.say("The ticket API does not know the agent. It checks the token's signature with")
	d.say("the broker's published keys, its audience, its expiry and its scope:")
	d.say("")
	var err error
	if d.tickets, err = d.startTickets(ctx); err != nil {
		return err
	}
	for _, call := range []struct {
		method, path, token string
		want                int
	}{
		{http.MethodGet, "/tickets/4711", credential.Secret["token"], http.StatusOK},
		{http.MethodPost, "/tickets/4711/comments", credential.Secret["token"], http.StatusCreated},
		{http.MethodPost, "/tickets/4711/close", credential.Secret["token"], http.StatusForbidden},
		{http.MethodGet, "/tickets/4711", "", http.StatusUnauthorized},
	} {
		status, answer, err := d.tickets.call(ctx, call.method, call.path, call.token)
		if err != nil {
			return err
		}
		with := "with the token"
		if call.token == "" {
			with = "without it"
		}
		d.say("  %-4s %-24s %-14s  %d  %s", call.method, call.path, with, status, answer)
		if err := expect(status == call.want, "%s %s: got %d, want %d", call.method, call.path, status, call.want); err != nil {
			return err
		}
	}
	return nil
}

func (d *demo) askForMore(ctx context.Context) error {
	d.chapter("A service requests too much, and learns why it is denied and what is allowed")
	summary, done, err := d.connect(ctx, d.clientOf("service"))
	if err != nil {
		return err
	}
	defer done()
	_, _, err = summary.AskAndCollect(ctx, api.Ask{Entitlement: "tickets-api", Scopes: []string{"tickets:read", "tickets:close"}, Justification: "clean-up"})
	var refused *api.Error
	if !errors.As(err, &refused) {
		return fmt.Errorf("the service's request for tickets:close: got %v", err)
	}
	d.say("A service requests tickets:close:")
	d.say("")
	d.say("  %d %s: %s", refused.Status, refused.Code, refused.Detail)
	if refused.Allowed != nil {
		d.say("  allowed: %s", strings.Join(refused.Allowed.Scopes, " "))
	}
	d.say("  recorded as request %s", refused.RequestID)
	return expect(refused.Code == api.Denied && refused.RequestID != "" && refused.Allowed != nil, "got refusal %+v", refused)
}

func (d *demo) returnLease(ctx context.Context, credential *api.Credential) error {
	d.chapter("The agent returns the token when it is done")
	server, done, err := d.connect(ctx, d.clientOf("tickets"))
	if err != nil {
		return err
	}
	defer done()
	introspect := func(when string, want bool) error {
		answer, err := server.Introspect(ctx, api.Token(credential.Secret["token"]))
		if err != nil {
			return err
		}
		d.say("  the ticket API's server introspects the token, %-7s active: %t", when+":", answer.Active)
		return expect(answer.Active == want, "introspection: got active: %t", answer.Active)
	}
	if err := introspect("before", true); err != nil {
		return err
	}
	l, err := d.agent.Revoke(ctx, credential.Lease, "done")
	if err != nil {
		return err
	}
	d.say("  the agent returns %s: %s", l.ID, l.Status)
	if err := introspect("after", false); err != nil {
		return err
	}
	d.say("")
	d.say("The broker states the exact effect:")
	d.say("  %s", revocationEffect(l, time.Now()))
	return expect(l.Status == api.LeaseRevoked, "the lease is %s", l.Status)
}

func (d *demo) verify(ctx context.Context) error {
	d.chapter("An auditor verifies the log with nothing but the file")
	if err := d.world.Service().Publish(ctx); err != nil {
		return err
	}
	code := d.audits(ctx, d.world.Database())
	if err := expect(code == exitOK, "broker audit verify ended with %d", code); err != nil {
		return err
	}
	d.say("")
	d.say("Its records:")
	d.say("")
	return d.showLog(ctx)
}

// showLog prints the records of the log.
func (d *demo) showLog(ctx context.Context) error {
	for item, err := range d.world.Service().Store().Source().Items(ctx) {
		if err != nil {
			return err
		}
		r, err := audit.Decode(item.Leaf)
		if err != nil {
			return err
		}
		what := ""
		if r.Caller != nil {
			what = strings.TrimPrefix(r.Caller.ID, "spiffe://"+devworld.TrustDomain)
		}
		if r.Request != nil {
			what += "  " + strings.Join(r.Request.Scopes, " ")
		}
		d.say("  %2d  %-17s  %s", item.Index, r.Kind, strings.TrimSpace(what))
	}
	return nil
}

// audits runs the command of an auditor, who knows only the log's key.
func (d *demo) audits(ctx context.Context, what string) (code int) {
	return demoPerson{d, ""}.runs(ctx, "", "audit", "verify", what, "--key", d.world.Service().LogKey())
}

func (d *demo) tamper(ctx context.Context) error {
	d.chapter("A changed byte in a copy of the log is found")
	copied := d.world.Path("copy.jsonl")
	index, err := d.exportChanged(ctx, copied)
	if err != nil {
		return err
	}
	code, at := d.audits(ctx, copied), fmt.Sprintf("record %d ", index)
	return expect(code == exitFailed && strings.Contains(d.screen, "NOT VERIFIED") && strings.Contains(d.screen, at), "broker audit verify ended with %d, or without %q", code, at)
}

// exportChanged exports the log and changes one letter of the agent's name in the record
// of the credential.
func (d *demo) exportChanged(ctx context.Context, path string) (int64, error) {
	var export bytes.Buffer
	if err := verify.Export(ctx, &export, d.world.Service().Store().Source()); err != nil {
		return 0, err
	}
	const before, after = "agent/triage", "agent/triagE"
	lines := bytes.SplitAfter(export.Bytes(), []byte("\n"))
	for i, line := range lines {
		if i == 0 || !bytes.Contains(line, []byte(audit.LeaseIssued)) {
			continue
		}
		d.say("In record %d, %q becomes %q:", i-1, before, after)
		d.say("")
		lines[i] = bytes.Replace(line, []byte(before), []byte(after), 1)
		return int64(i - 1), os.WriteFile(path, bytes.Join(lines, nil), 0o600)
	}
	return 0, errors.New("the log has no record of an issued lease")
}

// expect returns an error unless ok.
func expect(ok bool, format string, args ...any) error {
	if ok {
		return nil
	}
	return fmt.Errorf(format, args...)
}
