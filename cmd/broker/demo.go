package main

import (
	"bufio"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"accessbroker.internal/api"
	"accessbroker.internal/internal/devworld"
	"accessbroker.internal/internal/screen"
)

func (a *app) demoCommand() *cobra.Command {
	var step bool
	var part demoPart
	c := &cobra.Command{
		Use:   "demo",
		Short: "Show a credential from proof to end, with a real broker on this machine",
		Long: `demo starts a world like that of "broker dev" in a temporary folder. An agent, a
ticket API, a supplier, people and an auditor play their parts in it. Once, time
moves forward, and the demo says so: two contracts end. demo checks every step,
and exits with 0 only if all of them went as described.`,
		Example: `  broker demo
  broker demo --step`,
		Args: exactly(0, "no arguments"),
		RunE: func(c *cobra.Command, _ []string) (err error) {
			if step && !(interactive(a.in) && screen.IsTerminal(a.out)) {
				return usage("--step waits for a person: standard input and output must be a terminal")
			}
			a.tune(c.Context())
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
				d := &demo{app: a, world: w, tell: &screen.Teller{Out: a.out, Palette: a.palette()}}
				return d.play(ctx, step, part)
			})
		},
	}
	c.Flags().BoolVar(&step, "step", false, "pause after each chapter")
	c.Flags().BoolVar(&part.first, "all-but-last", false, "")
	c.Flags().IntVar(&part.last, "last", 0, "")
	for _, name := range []string{"all-but-last", "last"} {
		if err := c.Flags().MarkHidden(name); err != nil {
			panic(err) // no such flag
		}
	}
	return c
}

// A demoPart is a part of the story, between which "make demo" tells chapters with real
// servers.
type demoPart struct {
	first bool // all chapters but the last one
	last  int  // the number of the last chapter, alone; zero: not alone
}

// A demo is the story of "broker demo".
type demo struct {
	*app
	world      *devworld.World
	tell       *screen.Teller
	agent      *api.Client
	credential *api.Credential // the first one of the agent
	tickets    *ticketAPI
	screen     string // output of the last command
}

// clientOf returns the settings of a client with the identity of a Workload API socket.
func (d *demo) clientOf(name string) clientConfig {
	return clientConfig{server: d.world.URL(), socket: "unix://" + d.world.Socket(name)}
}

// chapters is the number of chapters of the story.
const chapters = 11

// play tells the story, or a part of it. With step, it pauses after each chapter.
func (d *demo) play(ctx context.Context, step bool, part demoPart) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	if !step {
		ctx, cancel = context.WithTimeout(ctx, time.Minute)
		defer cancel()
	}
	all := [chapters]func(context.Context) error{
		d.prove, d.ask, d.use, d.askForMore, d.approve, d.returnLease, d.assessSupplier, d.endContracts, d.verify, d.tamper, d.keepNothing,
	}
	story := all[:]
	switch {
	case part.first:
		story = all[:chapters-1]
	case part.last > 0:
		story, d.tell.Chapter = all[chapters-1:], part.last-1
	}
	if part.last == 0 {
		fmt.Fprintln(d.out, d.tell.Palette.Strong("Access Broker")+": the life of a credential, played on this machine.")
	}
	keyboard := bufio.NewReader(d.in)
	for i, chapter := range story {
		if step && i > 0 {
			if err := d.pause(ctx, keyboard); err != nil {
				return err
			}
		}
		if err := chapter(ctx); err != nil {
			return fmt.Errorf("chapter %d did not go as described: %w", d.tell.Chapter, err)
		}
	}
	if part.first {
		return nil
	}
	program := os.Args[0]
	fmt.Fprintf(d.out, "\nEverything went as described.\n  %s   tells it chapter by chapter\n  %s           lets your own program take part\n",
		d.tell.Palette.Command(program+" demo --step"), d.tell.Palette.Command(program+" dev"))
	return nil
}

// pause waits until the person presses Enter.
func (d *demo) pause(ctx context.Context, keyboard *bufio.Reader) error {
	fmt.Fprintf(d.out, "\nPress Enter for chapter %d of %d, or Ctrl-C to stop. ", d.tell.Chapter+1, chapters)
	_, err := d.answer(ctx, keyboard)
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case errors.Is(err, io.EOF):
		fmt.Fprintln(d.out)
		return fmt.Errorf("the demo stopped after chapter %d: the input has ended", d.tell.Chapter)
	case err != nil:
		return fmt.Errorf("reading from the terminal: %w", err)
	}
	if d.getenv("TERM") != "dumb" {
		fmt.Fprint(d.out, "\x1b[2A\r\x1b[J") // erases the prompt and the blank line before it
	}
	if d.credential != nil && time.Now().After(d.credential.ExpiresAt) {
		return errors.New("the agent's token expired during the pause: start the demo again")
	}
	return nil
}

func (d *demo) prove(ctx context.Context) error {
	d.tell.Open("An AI agent proves who it is")
	client, err := d.connectAgent(ctx)
	if err != nil {
		return err
	}
	who, err := client.WhoAmI(ctx)
	if err != nil {
		return err
	}
	d.tell.Say("The agent has no password and no API key. SPIFFE gives its process a certificate, valid for an hour, which it shows to the broker.")
	d.tell.Good("proved", "%s", who.ID)
	d.tell.Say("%s of team %s, owner %s", who.Kind, who.Team, strings.Join(who.Accountable, ", "))
	return expect(who.ID == "spiffe://acme.test/agent/triage" && who.Kind == "agent", "the agent is identified as %s %s", who.Kind, who.ID)
}

// connectAgent returns the agent's client.
func (d *demo) connectAgent(ctx context.Context) (*api.Client, error) {
	if d.agent != nil {
		return d.agent, nil
	}
	client, done, err := d.connect(ctx, d.clientOf("agent"))
	if err != nil {
		return nil, err
	}
	context.AfterFunc(ctx, done)
	d.agent = client
	return client, nil
}

func (d *demo) ask(ctx context.Context) error {
	d.tell.Open("The agent requests access with a reason, and receives a token")
	credential, pending, err := d.agent.AskAndCollect(ctx, d.requests("triage of INC-4711", "tickets:read", "tickets:comment"))
	if err != nil {
		return err
	}
	if credential == nil {
		return fmt.Errorf("the request is pending: %s", pending.ID)
	}
	d.credential = credential
	d.tell.Good("permit", "policies/tickets.cedar lets agents read and comment")
	d.tell.Good("issued", "a token for ten minutes, until %s", clock(credential.ExpiresAt))
	d.tell.Good("recorded", "in the log, as record %d, before the broker answered", credential.Receipt.Index)
	claims, err := claimsOf(credential.Secret["token"])
	if err != nil {
		return err
	}
	return expect(claims["scope"] == "tickets:comment tickets:read", "the token's scope is %v", claims["scope"])
}

// requests tells what a caller requests, and returns the request.
func (d *demo) requests(why string, scopes ...string) api.Ask {
	ask := api.Ask{Entitlement: "tickets-api", Scopes: scopes, Justification: why}
	d.tell.Note("requests", "%s: %s", ask.Entitlement, strings.Join(scopes, " "))
	d.tell.Note("because", "%s", why)
	return ask
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

func (d *demo) use(ctx context.Context) (err error) {
	d.tell.Open("A ticket API accepts the token for its scopes only")
	d.tell.Say("The API has the broker's public keys. It does not know the agent.")
	if d.tickets, err = d.startTickets(ctx); err != nil {
		return err
	}
	token := d.credential.Secret["token"]
	for _, call := range []struct {
		method, path, token string
		want                int
	}{
		{http.MethodGet, "/tickets/4711", token, http.StatusOK},
		{http.MethodPost, "/tickets/4711/comments", token, http.StatusCreated},
		{http.MethodPost, "/tickets/4711/close", token, http.StatusForbidden},
		{http.MethodGet, "/tickets/4711", "", http.StatusUnauthorized},
	} {
		if err := d.calls(ctx, call.method, call.path, call.token, call.want); err != nil {
			return err
		}
	}
	return nil
}

// calls calls the ticket API and tells its answer.
func (d *demo) calls(ctx context.Context, method, path, token string, want int) error {
	status, answer, err := d.tickets.call(ctx, method, path, token)
	if err != nil {
		return err
	}
	const form = "%-27s  %d  %s"
	if call := method + " " + path; status < 400 {
		d.tell.Good("accepted", form, call, status, answer)
	} else {
		d.tell.Bad("refused", form, call, status, answer)
	}
	return expect(status == want, "%s %s: got %d, want %d", method, path, status, want)
}

func (d *demo) askForMore(ctx context.Context) error {
	d.tell.Open("A service requests too much, and learns what it may have")
	service, done, err := d.connect(ctx, d.clientOf("service"))
	if err != nil {
		return err
	}
	defer done()
	_, _, err = service.AskAndCollect(ctx, d.requests("clean-up", "tickets:read", "tickets:close"))
	var refused *api.Error
	if !errors.As(err, &refused) {
		return fmt.Errorf("the service's request for tickets:close: got %v", err)
	}
	d.tell.Bad("refused", "%d %s: %s", refused.Status, refused.Code, refused.Detail)
	if refused.Allowed != nil {
		d.tell.Note("allowed", "%s", strings.Join(refused.Allowed.Scopes, " "))
	}
	d.tell.Good("recorded", "as request %s", refused.RequestID)
	return expect(refused.Code == api.Denied && refused.RequestID != "" && refused.Allowed != nil, "got refusal %+v", refused)
}

// expect returns an error unless ok.
func expect(ok bool, format string, args ...any) error {
	if ok {
		return nil
	}
	return fmt.Errorf(format, args...)
}
